"""How many BN groups share a forward pass: as many as fit into memory and change no byte."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from reta.errors import MemoryLimitError, out_of_memory
from reta.progress import log

T = TypeVar("T")


class Packing:
    """Packs of BN groups that share a pass.

    Groups do not touch each other, so in exact arithmetic a pack gives what its groups give one by
    one, sooner. In float32 it mostly does, but some kernels add up in another order for another
    number of images (oneDNN's 1×1 convolutions of many channels, as in MobileNet and DenseNet). On
    a CPU the first work of every kind is therefore done in both ways; where a byte differs, groups
    go one by one from then on. So the bytes are those of groups one by one, whatever the packing.
    On a GPU kernels differ by shape as a rule, and groups are packed all the same.

    Attributes:
        at_once: BN groups in a pass.
        members: images in a group.
    """

    def __init__(self, at_once: int, members: int, groups: int, device: torch.device) -> None:
        self.at_once, self.members = min(at_once, groups), members
        self._compares = device.type == "cpu"
        self._same: set[Hashable] = set()
        self._alone: set[Hashable] = set()

    def packs(self, count: int) -> list[slice]:
        """Cut so many groups into packs."""
        step = self.at_once
        return [slice(i, min(i + step, count)) for i in range(0, count, step)]

    def do(self, kind: Hashable, work: Callable[[], T], group: str, whole: bool = False) -> T:
        """Return what some work gives, in half as large packs whenever memory runs out.

        The groups, and with them the statistics, stay what they are.

        Args:
            kind: of work; all of a kind is done by the same kernels.
            work: follows `packs`; returns a tensor, or a tuple that begins with it. It may be
                called again, so it changes nothing.
            group: what a single group is, for people.
            whole: whether every pass is a single group already, whatever `packs` says.

        Raises:
            MemoryLimitError: if a single group does not fit.
        """
        while True:
            try:
                return self._exactly(kind, work)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._pack_less(group, whole)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _exactly(self, kind: Hashable, work: Callable[[], T]) -> T:
        if self.at_once == 1 or not self._compares or (kind, self.at_once) in self._same:
            return work()
        if kind in self._alone:
            return self._one_by_one(work)
        together, alone = work(), self._one_by_one(work)
        if torch.equal(_first(together), _first(alone)):
            self._same.add((kind, self.at_once))
        else:
            self._alone.add(kind)
            log.info("BN groups go through the teachers one by one: packs would round differently")
        return alone

    def _one_by_one(self, work: Callable[[], T]) -> T:
        before, self.at_once = self.at_once, 1
        try:
            return work()
        finally:
            self.at_once = before

    def _pack_less(self, group: str, whole: bool) -> None:
        if self.at_once == 1 or whole:
            raise MemoryLimitError(
                f"one BN group of {group} does not fit into memory, and its statistics cannot be "
                "taken in parts; lower --block (classes optimised together) or --image-size, or "
                "use a device with more memory"
            )
        self.at_once = -(-self.at_once // 2)
        images = self.at_once * self.members
        log.warning("out of memory: goes on with %d images in a pass, same statistics", images)


def _first(result: Any) -> torch.Tensor:
    found = result[0] if isinstance(result, tuple) else result
    assert isinstance(found, torch.Tensor)
    return found
