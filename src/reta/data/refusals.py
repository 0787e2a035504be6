"""Images that cannot be used: named, counted, and left out only where that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from reta.data.images import PER_READ, read_ahead
from reta.data.listing import Listing
from reta.errors import DataError
from reta.progress import track

BadImages = Literal["fail", "skip", "quarantine"]

MOST_OF_CLASS = 0.01
MOST_IN_A_ROW = 100
_LISTED = 5  # bad images that a message names


@dataclass(frozen=True)
class LeftOut:
    """An image that was left out.

    Attributes:
        part: ``training`` or ``test``.
        key: its class and name, wherever the set lies.
        name: its path, or its file and row.
        reason: why.
        listing: the listing it was left out of.
        place: its place there.
    """

    part: str
    key: str
    name: str
    reason: str
    listing: Listing = field(repr=False, compare=False)
    place: int = field(repr=False, compare=False)

    def facts(self) -> dict[str, str]:
        """Return what a manifest says of it."""
        return {"part": self.part, "key": self.key, "name": self.name, "reason": self.reason}

    def content(self) -> bytes:
        """Return the bytes of the image as they are stored."""
        return self.listing.content(self.place)


class _Checking:
    """What a worker does to a read: try to decode each image."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def __call__(self, places: Sequence[int]) -> list[tuple[int, str]]:
        bad = []
        for place in places:
            try:
                self.listing.read(place)
            except DataError as error:
                bad.append((place, str(error)))
        return bad


def find_bad(listing: Listing, workers: int | None, part: str) -> dict[int, str]:
    """Return the places and reasons of the images that cannot be decoded, by decoding them all."""
    places = range(len(listing))
    reads = [list(places[i : i + PER_READ]) for i in range(0, len(listing), PER_READ)]
    answers = read_ahead(_Checking(listing), reads, workers)
    found: dict[int, str] = {}
    for bad in track(answers, f"checking {part} images", len(reads)):
        found.update(bad)
    return found


def leave_out(
    listing: Listing, bad: Mapping[int, str], part: str, policy: BadImages
) -> tuple[Listing, tuple[LeftOut, ...]]:
    """Return the listing without its bad images, and those; or refuse the set.

    Args:
        listing: of one part.
        bad: places and reasons.
        part: ``training`` or ``test``.
        policy: ``fail`` refuses a set with any bad image; the others leave them out as long as
            they are few: no more than one of a class or 1 % of it, and no 100 in a row.

    Raises:
        DataError: naming some of the images and the reasons.
    """
    if not bad:
        return listing, ()
    count = f"{len(bad)} of {len(listing)} {part} images cannot be used"
    lines = [bad[place] for place in sorted(bad)[:_LISTED]] + ["…"] * (len(bad) > _LISTED)
    reasons = "\n  ".join(lines)
    if policy == "fail":
        raise DataError(
            f"{listing.where}: {count}\n  {reasons}\n"
            "`reta scan` lists them all; --bad-images skip leaves them out"
        )
    keep = np.ones(len(listing), dtype=bool)
    keep[list(bad)] = False
    if trouble := _too_many(listing, keep):
        raise DataError(f"{listing.where}: {count}, {trouble}; repair the set\n  {reasons}")
    left = tuple(
        LeftOut(part, listing.key(place), listing.name(place), bad[place], listing, place)
        for place in sorted(bad)
    )
    return listing.only(keep), left


def _too_many(listing: Listing, keep: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> str:
    """Return why so many bad images are no accident, or nothing."""
    kept = np.flatnonzero(np.concatenate([[True], keep, [True]]))
    run = int(np.diff(kept).max()) - 1
    if run >= MOST_IN_A_ROW:
        return f"{run} of them in a row"
    for label, name in enumerate(listing.classes):
        own = keep[listing.labels == label]
        lost = int((~own).sum())
        if lost > max(1, MOST_OF_CLASS * len(own)):
            return f"{lost} of the {len(own)} of class {name!r}, more than 1 %"
    return ""
