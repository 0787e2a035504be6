"""Running out of memory: where how much is done at once changes speed alone, less is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from reta.errors import MemoryLimitError, out_of_memory
from reta.progress import log

T = TypeVar("T")


class Halving:
    """Does work part by part, and in half as large parts whenever memory runs out.

    For work in which items do not touch each other: a network in eval mode, or groups that are
    normalised each by themselves. Results are the same up to rounding.

    Args:
        what: the items, for people, such as "images of 224 px".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._most: int | None = None

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
