"""The spaces in which an anchor may be looked for."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from reta.errors import UsageError
from reta.methods import METHODS
from reta.models import Classifier, freeze, instance_convnet
from reta.synthesis.connection import Query
from reta.synthesis.embedding import Embedding, embed, embed_class
from reta.synthesis.loop import Recovery, Settings
from reta.synthesis.pool import Pool
from reta.synthesis.retrieval import RetrievedAnchor, fit_complexity_score
from reta.synthesis.schedule import Schedule
from small_world import CLASSES


@pytest.mark.parametrize("kind", get_args(Embedding))
def test_real_and_synthetic_images_meet_in_one_space(
    kind: Embedding, double_committee: list[Classifier], double_pool: Pool
) -> None:
    """Another normalisation, layer or order on the real side: an image must find itself."""
    for label in range(4):
        members = double_pool.members(label)
        queries = embed(double_pool.pixels(members).double(), double_committee, kind)
        keys = embed_class(double_pool, label, double_committee, kind)
        torch.testing.assert_close(keys.double(), queries.detach(), rtol=1e-4, atol=1e-5)
        chosen = RetrievedAnchor(trade_off=0.0).choose(
            Query(double_pool, label, queries.detach(), None, 16, keys)
        )
        assert torch.equal(chosen, members)


@pytest.mark.parametrize("kind", get_args(Embedding))
def test_a_recovery_looks_in_that_space(
    kind: Embedding, committee: list[Classifier], pool: Pool
) -> None:
    """A space that the fast path of the teachers does not show, or whose choice is not used.

    Images that were not moved, in one step of rate 0, must find themselves wherever they look.
    """
    still = Schedule(steps=2, connections=1, learning_rate=1e-12)
    anchor = RetrievedAnchor(trade_off=0.0, embedding=kind)
    recipe = replace(METHODS["reta-drc"], schedule=still, connection=anchor)
    made = Recovery(recipe, committee, pool, range(CLASSES), Settings(ipc=2))
    made.run()
    began, chosen = made.used
    assert torch.equal(began, chosen)


def test_a_committee_sees_the_mean_of_its_distances(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """A teacher with longer features that outvotes the others."""
    images = double_pool.pixels(double_pool.members(1)).double()
    together = embed(images, double_committee, "committee")
    cost = fit_complexity_score(together, together, torch.zeros(len(images)), 0.0)
    alone = [
        torch.cdist(F.normalize(f, dim=1), F.normalize(f, dim=1)).square()
        for f in (teacher.features(images) for teacher in double_committee)
    ]
    torch.testing.assert_close(cost, sum(alone) / len(alone), rtol=1e-6, atol=1e-6)


def test_logits_are_the_head_of_the_features(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """Probabilities or features in their place."""
    images = double_pool.pixels(double_pool.members(0)).double()
    torch.testing.assert_close(
        embed(images, double_committee, "logits"), double_committee[0](images)
    )


def test_pixels_are_cells_without_the_mean(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """Brightness alone would decide: a constant image must have no direction."""
    teacher = double_committee[0]
    flat = teacher.mean.expand(1, 3, 16, 16)
    assert embed(flat, double_committee, "pixels").abs().max() < 1e-12
    assert embed(flat, double_committee, "pixels").shape == (1, 3 * 64)


def test_the_last_teacher_is_asked_alone(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """The first teacher, or both, in its place."""
    images = double_pool.pixels(double_pool.members(0)).double()
    found = embed(images, double_committee, "last")
    torch.testing.assert_close(found, double_committee[-1].features(images))


def test_the_middle_layer_is_between_pixels_and_features(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """A layer at the end, a hook that stays, or an average over images."""
    teacher = double_committee[0]
    images = double_pool.pixels(double_pool.members(0)).double()
    found = embed(images, double_committee, "middle")
    middle = teacher.batch_norms()[len(teacher.batch_norms()) // 2]
    assert found.shape == (len(images), middle.num_features)
    assert not middle._forward_pre_hooks
    torch.testing.assert_close(embed(images[2:3], double_committee, "middle"), found[2:3])
    with torch.no_grad():
        teacher.batch_norms()[-1].bias.add_(1.0)
    torch.testing.assert_close(embed(images, double_committee, "middle"), found)


def test_a_teacher_without_batch_norms_has_no_middle(double_pool: Pool) -> None:
    """An index error instead of the option's name."""
    bare = freeze(instance_convnet(4, 16, width=8))
    with pytest.raises(UsageError, match="has no BatchNorm layer"):
        embed(double_pool.pixels(double_pool.members(0)), [bare], "middle")


def test_coarse_features_do_not_see_single_pixels(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """The query at its full resolution: a chequerboard of pixels must vanish from it."""
    images = double_pool.pixels(double_pool.members(0)).double()
    rows = torch.arange(16, dtype=torch.float64)
    board = 0.2 * (1 - 2 * ((rows[:, None] + rows) % 2))

    def seen(kind: Embedding) -> torch.Tensor:
        """Return how far the board moves the images."""
        shown = embed(images + board, double_committee, kind)
        return (shown - embed(images, double_committee, kind)).norm()

    assert seen("coarse") < 0.1 * seen("features")
