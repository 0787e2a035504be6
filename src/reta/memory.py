"""Running out of memory: where how much is done at once changes speed alone, less is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from reta.errors import MemoryLimitError, out_of_memory
from reta.progress import log
from reta.runtime import images_per_pass

T = TypeVar("T")


class Halving:
    """Does work part by part, and in half as large parts whenever memory runs out.

    For work in which items do not touch each other: a network in eval mode, or groups that are
    normalised each by themselves. Results are the same up to rounding.

    Args:
        what: the items, for people, such as "images of 224 px".
        most: items in a part to begin with; all by default.
    """

    def __init__(self, what: str, most: int | None = None) -> None:
        self.what = what
        self._most = most

    def __call__(self, work: Callable[[slice], T], count: int) -> list[T]:
        """Return what work gives for consecutive parts of so many items.

        Raises:
            MemoryLimitError: if a single item does not fit.
        """
        results: list[T] = []
        begin = 0
        while begin < count:
            part = slice(begin, min(count, begin + (self._most or count)))
            try:
                results.append(work(part))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if part.stop - begin == 1:
                    raise MemoryLimitError(
                        f"a pass of {self.what} does not fit into memory, and cannot be made "
                        "smaller; lower --image-size, choose smaller networks, or use a device "
                        "with more memory"
                    ) from error
                self._most = (part.stop - begin) // 2
            else:
                begin = part.stop
                continue
            # Outside of the handler, whose traceback holds on to what did not fit.
            log.warning("out of memory: goes on with half as many %s in a pass", self.what)
        return results


class Passes(Halving):
    """Takes images that do not touch each other through networks, `images_per_pass` or fewer.

    Args:
        side: of the images.
    """

    def __init__(self, side: int) -> None:
        super().__init__(f"images of {side} px", images_per_pass(side))

    def of(self, work: Callable[[torch.Tensor], T], items: torch.Tensor) -> list[T]:
        """Return what work gives for consecutive parts of the items: images, or their indices."""
        return self(lambda part: work(items[part]), len(items))


def mean_gradients(
    loss: Callable[[slice], torch.Tensor],
    at: Sequence[torch.Tensor],
    count: int,
    halving: Halving,
) -> list[torch.Tensor]:
    """Return the gradients of the mean loss of a batch, of no more of it at a time than fits.

    Args:
        loss: the mean over a part of the batch, whose items do not touch each other.
        at: where the gradients are taken.
        count: items in the batch.
        halving: cuts it.
    """

    def share(part: slice) -> tuple[torch.Tensor, ...]:
        size, value = part.stop - part.start, loss(part)
        return torch.autograd.grad(value if size == count else value * (size / count), at)

    first, *others = halving(share, count)
    return [sum(rest, one) for one, *rest in zip(first, *others, strict=True)]


def descend(
    optimiser: torch.optim.Optimizer,
    loss: Callable[[slice], torch.Tensor],
    count: int,
    halving: Halving,
) -> None:
    """Take one step of an optimiser on the mean loss of a batch, see `mean_gradients`."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    gradients = mean_gradients(loss, weights, count, halving)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimiser.step()


@contextmanager
def as_memory_limit(message: str) -> Iterator[None]:
    """Say a lack of memory in the block in these words, where less at once is other work.

    Raises:
        MemoryLimitError: then.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise MemoryLimitError(message) from error
