"""The teacher gate: does a teacher that was trained elsewhere recognise these images?

A wrong class order, normalisation or channel order leaves a teacher running and its labels
worthless. So it is measured on real images before anything is distilled, as given and under the
usual mistakes; if one of them explains what is wrong, the refusal names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from reta.data.images import ImageSet
from reta.errors import DataError
from reta.memory import Passes
from reta.models import Classifier, Triple
from reta.runtime import random_generator
from reta.teachers import NORMALIZATIONS

IMAGES = 512
"""How many images are looked at, of up to 64 px; of larger ones half as many."""

_GAIN = 0.1  # smallest gain in accuracy that points to a mistake; less is the luck of contrast
_SIGMAS = 3.0  # and by how many standard errors it must exceed chance


@dataclass(frozen=True)
class Verdict:
    """What the gate measured.

    Attributes:
        accuracy: on the images, as given.
        images: how many.
        cause: the likely mistake in words, if correcting one makes the teacher clearly better.
        corrected: accuracy after correcting it.
    """

    accuracy: float
    images: int
    cause: str | None = None
    corrected: float | None = None


def default_floor(classes: int) -> float:
    """Return the least accuracy of a teacher: five times chance, at most halfway from it to 1."""
    chance = 1 / classes
    return min(5 * chance, (1 + chance) / 2)


def judge(model: Classifier, images: ImageSet, own: tuple[Triple, Triple] | None = None) -> Verdict:
    """Measure a teacher on real images, as given and with each usual mistake put right.

    Args:
        model: frozen, with its logits in the order of the classes.
        images: that it was not trained on, if there are such.
        own: mean and standard deviation of these images, which the teacher may expect instead.
    """
    count = min(len(images), IMAGES if images.size <= 64 else IMAGES // 2)
    chosen = torch.from_numpy(random_generator(0, "gate").permutation(len(images))[:count])
    labels = images.labels[chosen]
    pixels = images.pixels(chosen)
    base = _predict(model, pixels, None)
    right = base == labels
    found: tuple[str, torch.Tensor] | None = None
    for words, other in _corrections(model, pixels, labels, base, own):
        if _clearly_better(other, right) and (found is None or _clearly_better(other, found[1])):
            found = words, other
    share = float(right.float().mean())
    if found is None:
        return Verdict(share, count)
    return Verdict(share, count, found[0], float(found[1].float().mean()))


def _corrections(
    model: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    base: torch.Tensor,
    own: tuple[Triple, Triple] | None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each usual mistake in words, and which answers ``(n,)`` are right without it."""
    yield "its classes are in another order than their names", _reordered(base, labels)
    given = (model.mean.flatten().tolist(), model.std.flatten().tolist())
    usual = {**NORMALIZATIONS, **({"data": own} if own else {})}
    for bgr in (False, True):
        shown = pixels.flip(1) if bgr else pixels
        order = "its channels are in the order blue, green, red" if bgr else ""
        if bgr:
            yield order, _predict(model, shown, None) == labels
        for name, mean_std in usual.items():
            if not np.allclose(given, mean_std, atol=1e-3):
                words = f"it expects the normalisation {name!r} (mean {_words(mean_std[0])})"
                right = _predict(model, shown, mean_std) == labels
                yield " and ".join(filter(None, (order, words))), right


def require(name: str, verdict: Verdict, classes: int, floor: float | None) -> str | None:
    """Refuse a teacher that is too weak or given wrongly; return a caution to pass on, if any.

    Args:
        name: of the teacher.
        verdict: of `judge`.
        classes: number of classes.
        floor: accuracy the user is content with, whatever the gate suspects; by default that of
            `default_floor`.

    Raises:
        DataError: naming the likely cause.
    """
    least = default_floor(classes) if floor is None else floor
    doubt = 2 * float(np.sqrt(least * (1 - least) / max(verdict.images, 1)))
    measured = (
        f"teacher {name} recognises {verdict.accuracy:.1%} of {verdict.images} real images "
        f"(chance {1 / classes:.1%})"
    )
    likely = (
        f"likely cause: {verdict.cause}; with that put right it recognises {verdict.corrected:.1%}"
        if verdict.cause
        else ""
    )
    if verdict.accuracy + doubt < least:
        cause = likely or "its classes, image size and normalisation may not be what is said"
        raise DataError(
            f"{measured}, less than {least:.1%}: {cause}. Adopt it again with the right settings "
            "(reta adopt --help), or lower --teacher-floor"
        )
    if verdict.cause and floor is None:
        raise DataError(
            f"{measured}; {likely}. Adopt it again with the right settings (reta adopt --help), "
            f"or say --teacher-floor {verdict.accuracy:.2f} to use it as it is"
        )
    return f"{measured}; {likely}" if verdict.cause else None


def _words(mean: Triple) -> str:
    return "/".join(f"{value:.3f}" for value in mean)


@torch.no_grad()
def _predict(
    model: Classifier, pixels: torch.Tensor, mean_std: tuple[object, object] | None
) -> torch.Tensor:
    """Return the predicted classes ``(n,)``, if need be under another normalisation."""
    mean, std = model.mean, model.std
    if mean_std is not None:
        mean, std = (torch.tensor(value).view(1, 3, 1, 1).to(mean) for value in mean_std)

    def answers(part: torch.Tensor) -> torch.Tensor:
        shown = part.to(model.mean.device).float() / 255
        logits: torch.Tensor = model.head(model.trunk((shown - mean) / std))
        return logits.argmax(1).cpu()

    return torch.cat(Passes(pixels.shape[-1]).of(answers, pixels))


def _reordered(answers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return what would be right ``(n,)`` had the classes the order that explains most answers.

    The order is found on one half of the images and tried on the other, so that it explains
    nothing by chance.
    """
    classes = int(max(answers.max(), labels.max())) + 1
    right = torch.zeros(len(labels), dtype=torch.bool)
    halves = [torch.arange(len(labels))[start::2] for start in (0, 1)]
    for seen, tried in (halves, halves[::-1]):
        confusion = np.zeros((classes, classes))
        np.add.at(confusion, (answers[seen].numpy(), labels[seen].numpy()), 1)
        confusion += 1e-6 * np.eye(classes)  # classes never answered keep their place
        meant = torch.from_numpy(linear_sum_assignment(confusion, maximize=True)[1])
        right[tried] = meant[answers[tried]] == labels[tried]
    return right


def _clearly_better(other: torch.Tensor, right: torch.Tensor) -> bool:
    """Return whether a correction gains more than its paired standard error allows for chance."""
    won, lost = int((other & ~right).sum()), int((~other & right).sum())
    return bool(won - lost > max(_GAIN * len(right), _SIGMAS * (won + lost) ** 0.5))
