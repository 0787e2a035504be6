"""What is wrong with a set of images, and what a reader of its results should know."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dctn

from reta.data.images import PER_READ, read_ahead
from reta.data.intake import Pixels
from reta.data.listing import Listing
from reta.errors import DataError
from reta.progress import track

NEAR, ALIKE = 4, 0.985
"""Bits of 64 in which the hashes of two similar images may differ; correlation of their greys.

Chosen on 3,000 training images each of CIFAR-100, Fashion-MNIST and ImageNette: 0, 8 and 0 of 4.5
million pairs are that near, and 93 to 100 % of images compressed as JPEG at quality 50, shrunk by a
quarter, or brightened are that near to the original.
"""

# Endings of images that are not read: who has such files means them to count.
_OTHER_IMAGES = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".eps", ".pdf", ".ppm"),
    *(".pgm", ".pbm", ".tga", ".ico", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf"),
    *(".rw2", ".exr", ".hdr", ".dcm", ".nii", ".npy", ".mp4", ".mov", ".avi"),
)
_FLAT = 4.0  # standard deviation of the greys of an image too plain for a perceptual hash
_MOST_PAIRS = 1000  # of each kind that a report lists; all are counted


@dataclass(frozen=True)
class Finding:
    """What a look at one image gave.

    Attributes:
        sha256: of the bytes as they are stored; empty if they cannot be read.
        perceptual: hash of what it looks like; None if it is too plain, or cannot be used.
        refused: why it cannot be used, or nothing.
        notes: what was done to it that one should know.
    """

    sha256: str = ""
    perceptual: bytes | None = None
    refused: str = ""
    notes: tuple[str, ...] = ()


class Looking:
    """What a worker does to a read: hash, decode and judge each image."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def __call__(self, places: Sequence[int]) -> list[Finding]:
        """Return a finding for each place."""
        return [self._look(place) for place in places]

    def _look(self, place: int) -> Finding:
        digest, notes = "", list[str]()
        try:
            digest = hashlib.sha256(self.listing.content(place)).hexdigest()
            pixels = self.listing.read(place, notes)
        except DataError as error:
            return Finding(digest, None, str(error))
        return Finding(digest, perceptual_hash(pixels), "", tuple(notes))


def perceptual_hash(image: Pixels) -> bytes | None:
    """Return 264 bytes that hardly change when an image (h, w, 3) is resized or compressed.

    The signs of the lowest 8x8 frequencies of the grey 32x32 image about their median (pHash, 8
    bytes), then its 16x16 greys about their mean, as int8. None for an image so plain that both
    would be noise.
    """
    grey = Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.BILINEAR)
    values = np.asarray(grey, dtype=np.float64)
    small = values.reshape(16, 2, 16, 2).mean(axis=(1, 3))
    small -= small.mean()
    if small.std() < _FLAT:
        return None
    low = dctn(values, norm="ortho")[:8, :8].flatten()
    signs = np.packbits(low > np.median(low[1:]))  # low[0] is the mean brightness
    greys = np.rint(127 * small / np.abs(small).max()).astype(np.int8)
    return bytes(signs.tobytes() + greys.tobytes())


@dataclass
class Report:
    """All that a scan found.

    Attributes:
        images: how many there are in ``training`` and ``test``.
        classes: for each class, how many images of each part can be used.
        problems: part, path and reason of each image or file that is lost or misleads.
        notes: part, path and what one should know.
        duplicates: how many pairs of each kind (``exact``, ``similar``) and place (``training``,
            ``test``, ``training and test``), and the first of them.
    """

    images: dict[str, int] = field(default_factory=dict)
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[dict[str, str]] = field(default_factory=list)
    notes: list[dict[str, str]] = field(default_factory=list)
    duplicates: list[dict[str, Any]] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Return the report as plain values."""
        sizes = [part.get("training", 0) for part in self.classes.values()]
        return {
            "images": self.images,
            "classes": self.classes,
            "smallest_class": min(sizes, default=0),
            "largest_class": max(sizes, default=0),
            "problems": self.problems,
            "notes": self.notes,
            "duplicates": self.duplicates,
        }


def scan_parts(parts: dict[str, Listing], workers: int | None = None) -> Report:
    """Look at every image of a set once.

    Args:
        parts: its listings, by name.
        workers: processes; as many as there are processors by default.
    """
    report = Report()
    seen: list[_Seen] = []
    for part, listing in parts.items():
        report.images[part] = len(listing)
        report.problems += _ignored(part, listing)
        for name in listing.classes:
            report.classes.setdefault(name, {})[part] = 0
        findings = _findings(listing, part, workers)
        for place, finding in enumerate(findings):
            name, label = listing.name(place), listing.classes[listing.labels[place]]
            if finding.refused:
                reason = finding.refused.removeprefix(f"{name}: ")
                report.problems.append({"part": part, "path": name, "reason": reason})
                continue
            report.classes[label][part] += 1
            report.notes += [
                {"part": part, "path": name, "note": note.removeprefix(f"{name}: ")}
                for note in finding.notes
            ]
            seen.append(_Seen(part, name, label, finding.sha256, finding.perceptual))
    report.problems += [
        {"part": part, "path": "", "reason": f"class {name!r} has no usable image"}
        for name, counts in report.classes.items()
        for part, count in counts.items()
        if not count
    ]
    report.duplicates = _duplicates(seen)
    report.problems += _misleading(report.duplicates)
    return report


def _findings(listing: Listing, part: str, workers: int | None) -> Iterator[Finding]:
    places = range(len(listing))
    reads = [list(places[i : i + PER_READ]) for i in range(0, len(listing), PER_READ)]
    answers = read_ahead(Looking(listing), reads, workers)
    for answer in track(answers, f"scanning {part} images", len(reads)):
        yield from answer


def _ignored(part: str, listing: Listing) -> list[dict[str, str]]:
    """Return the files that are passed over; texts beside images are no problem."""
    return [
        {"part": part, "path": path, "reason": reason}
        for path, reason in listing.ignored
        if Path(path).suffix.lower() in _OTHER_IMAGES or "sample with" in reason
    ]


@dataclass(frozen=True)
class _Seen:
    part: str
    path: str
    label: str
    sha256: str
    perceptual: bytes | None


def _duplicates(seen: Sequence[_Seen]) -> list[dict[str, Any]]:
    """Return the pairs of equal and of similar images, by kind and place.

    Each image is paired with the first that equals it, so a group of n gives n − 1 pairs; training
    images come first, so a test image is paired with a training image if there is one.
    """
    first: dict[str, int] = {}
    pairs = []
    for index, image in enumerate(seen):
        earlier = first.setdefault(image.sha256, index)
        if earlier != index:
            pairs.append(("exact", earlier, index))
    lone = list(first.values())
    hashes = [seen[index].perceptual for index in lone]
    pairs += [("similar", lone[a], lone[b]) for a, b in similar_pairs(hashes)]
    kinds: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for kind, one, other in pairs:
        places = sorted({seen[one].part, seen[other].part}, reverse=True)
        kinds[kind, " and ".join(places)].append((one, other))
    return [
        {
            "kind": kind,
            "where": where,
            "pairs": len(found),
            "across_classes": sum(seen[a].label != seen[b].label for a, b in found),
            "first": [
                {"paths": [seen[a].path, seen[b].path], "classes": [seen[a].label, seen[b].label]}
                for a, b in sorted(found)[:_MOST_PAIRS]
            ],
        }
        for (kind, where), found in sorted(kinds.items())
    ]


def similar_pairs(hashes: Sequence[bytes | None]) -> list[tuple[int, int]]:
    """Return the pairs of positions whose hashes differ in few bits and whose greys correlate.

    Two hashes that differ in at most n bits agree in at least one of n + 1 bands of bits, so only
    those that share a band are compared; no pair is missed.
    """
    where = np.array([i for i, value in enumerate(hashes) if value is not None], dtype=np.int64)
    joined = b"".join(value for value in hashes if value is not None)
    rows = np.frombuffer(joined, dtype=np.uint8).reshape(-1, 264)
    signs, greys = rows[:, :8].copy().view(np.uint64)[:, 0], rows[:, 8:].view(np.int8)
    found: set[tuple[int, int]] = set()
    edges = np.linspace(0, 64, NEAR + 2).astype(int)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        band = (signs >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order])) + 1
        for members in np.split(order, starts):
            found.update(_near(signs, greys, members))
    return sorted((int(where[one]), int(where[other])) for one, other in found)


def _near(
    signs: npt.NDArray[np.uint64], greys: npt.NDArray[np.int8], members: npt.NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """Yield the pairs among some images that are alike."""
    for start in range(0, len(members), 512):  # bounds the memory of a crowded band
        rows = members[start : start + 512]
        apart = np.bitwise_count(signs[rows][:, None] ^ signs[members][None, :])
        near = np.argwhere(apart <= NEAR)
        one, other = rows[near[:, 0]], members[near[:, 1]]
        one, other = one[one < other], other[one < other]
        a, b = greys[one].astype(np.float32), greys[other].astype(np.float32)
        length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        alike = (a * b).sum(axis=1) > ALIKE * length
        yield from zip(one[alike].tolist(), other[alike].tolist(), strict=True)


def _misleading(duplicates: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the duplicates that falsify a result: equal images in both parts, or two classes."""
    said = []
    for pair in (
        pair for found in duplicates if found["kind"] == "exact" for pair in found["first"]
    ):
        one, other = pair["paths"]
        if pair["classes"][0] != pair["classes"][1]:
            classes = " and ".join(map(repr, pair["classes"]))
            said.append((other, f"the same image as {one}, of the classes {classes}"))
    said += [
        (pair["paths"][1], f"the same image as {pair['paths'][0]}, which is a training image")
        for found in duplicates
        if found["kind"] == "exact" and found["where"] == "training and test"
        for pair in found["first"]
        if pair["classes"][0] == pair["classes"][1]
    ]
    return [{"part": "both", "path": path, "reason": reason} for path, reason in said]
