"""Several networks of one architecture as one, so that a call does the work of all of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from reta.models.classifier import Classifier


class StackedClassifier(Classifier):
    """K networks of one architecture, trained as one: a launch on a GPU serves them all.

    Every weight and statistic is theirs with an axis in front, ``(K, …)``. They share nothing but
    the images, so the gradient of a sum of losses is each network's own. Dropout is drawn for each.
    """

    stacked = 1

    def __init__(self, models: Sequence[Classifier]) -> None:
        """Stack copies of some networks of one architecture."""
        nn.Module.__init__(self)
        one = copy.deepcopy(models[0])
        parameters, buffers = stack_module_state(list(models))
        for name, value in {**parameters, **buffers}.items():
            owner, _, leaf = name.rpartition(".")
            part = one.get_submodule(owner)
            if name in parameters:
                setattr(part, leaf, nn.Parameter(value.detach().clone()))
            else:
                part.register_buffer(leaf, value.clone())
        self.name, self.classes, self.feature_dim = one.name, one.classes, one.feature_dim
        self.trunk, self.head = one.trunk, one.head
        self.register_buffer("mean", one.mean)
        self.register_buffer("std", one.std)
        self._one = [one]  # in a list, or its modules, which are also ours, would be named twice

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``(n, K, classes)`` of images ``(n, 3, h, w)`` in [0, 1]."""
        (one,) = self._one

        def logits(values: dict[str, torch.Tensor]) -> torch.Tensor:
            found: torch.Tensor = functional_call(one, values, (images,))
            return found

        own = dict(self.named_parameters()) | dict(self.named_buffers())
        together: torch.Tensor = vmap(logits, out_dims=1, randomness="different")(own)
        return together

    def write_to(self, models: Sequence[Classifier]) -> None:
        """Give each network its weights and statistics."""
        state = self.state_dict()
        for index, model in enumerate(models):
            model.load_state_dict({name: value[index] for name, value in state.items()})
