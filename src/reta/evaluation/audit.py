"""Data governance: how much of single real images a distilled set still holds.

Residual methods blend real images into synthetic ones, so a distilled set is not free of its
source. Three looks: which real images lie nearest, how much of the anchors is left, and whether a
student of the set betrays which images were in the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata

from reta.data.images import ImageSet
from reta.evaluation.diversity import unit_features
from reta.evaluation.result import Figure, Result
from reta.evaluation.subject import Subject
from reta.memory import Passes
from reta.models import Classifier, file_stem
from reta.runtime import images_per_pass, random_generator

_HASH_COPY = 4  # of 64 bits


def difference_hash(images: torch.Tensor) -> torch.Tensor:
    """Return dHash, a perceptual hash: ``(n, 64)`` bool of images ``(n, 3, s, s)`` uint8.

    The image as 8 rows of 9 grey means; a bit says whether a mean is above its left neighbour.
    """
    weights = torch.tensor([0.299, 0.587, 0.114])
    grey = torch.einsum("nchw,c->nhw", images.cpu().float(), weights)
    small = F.adaptive_avg_pool2d(grey[:, None], (8, 9))[:, 0]
    return (small[:, :, 1:] > small[:, :, :-1]).flatten(1)


def anchor_weights(
    alpha: float, anchors: Sequence[Sequence[Sequence[int]]], connections: int
) -> list[list[dict[int, float]]]:
    """Return the weight each real image has in each distilled one by the schedule alone.

    A connection x ← α·x + (1 − α)·o leaves α of what was there, so the start image keeps α^k after
    k connections, and the anchor of connection i has (1 − α)·α^(k−i). Optimisation in between
    changes the pixels, but no step of it knows the anchor: this is what would be left without it.

    Args:
        alpha: weight of the synthetic image.
        anchors: pool indices, first of the start images if those are real, then of every
            connection; by class and image.
        connections: k.

    Returns:
        By class and image, the weight by pool index; images used twice add up.
    """
    has_start = len(anchors) == connections + 1
    result = []
    for by_class in zip(*anchors, strict=True):
        images = []
        for used in zip(*by_class, strict=True):
            weights: dict[int, float] = {}
            for place, index in enumerate(used):
                step = place if has_start else place + 1  # 0 is the start
                share = 1.0 if step == 0 else 1 - alpha
                weight = share * alpha ** (connections - step)
                weights[int(index)] = weights.get(int(index), 0.0) + weight
            images.append(weights)
        result.append(images)
    return result


def explained(image: torch.Tensor, anchor: torch.Tensor) -> tuple[float, float]:
    """Return slope and R² of the regression of an image's pixels on an anchor's.

    Both ``(3, s, s)``; the mean of each channel is taken out first, since all images share some
    brightness. R² is the share of the image's variance that is a multiple of the anchor.
    """
    own = (image.double() - image.double().mean(dim=(1, 2), keepdim=True)).flatten()
    other = (anchor.double() - anchor.double().mean(dim=(1, 2), keepdim=True)).flatten()
    power, product = float(other @ other), float(own @ other)
    total = float(own @ own)
    if power == 0 or total == 0:
        return 0.0, 0.0
    return product / power, product**2 / (power * total)


def auc(members: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> float:
    """Return the chance that a member's score exceeds another's, ties counting half."""
    ranks = rankdata(np.concatenate([members, others]))[: len(members)].sum()
    count = len(members) * len(others)
    return float((ranks - len(members) * (len(members) + 1) / 2) / count)


def auc_interval(
    members: np.ndarray[Any, Any], others: np.ndarray[Any, Any], draws: int = 500
) -> tuple[float, float]:
    """Return a 95 % percentile bootstrap interval of `auc`, both sides resampled."""
    rng = random_generator(0, "audit", len(members), len(others))
    values = [
        auc(rng.choice(members, len(members)), rng.choice(others, len(others)))
        for _ in range(draws)
    ]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@torch.no_grad()
def scores(model: Classifier, images: ImageSet) -> np.ndarray[Any, Any]:
    """Return minus the cross-entropy ``(n,)`` of every image: high where a model is sure."""
    model.eval()
    device, found, passes = model.mean.device, [], Passes(images.size)
    parts = torch.arange(len(images)).split(images_per_pass(images.size))
    for part, pixels in zip(parts, images.batches(parts), strict=True):
        logits = passes.of(lambda own: model(own.to(device).float() / 255).cpu(), pixels)
        labels = images.labels[part]
        found.append(-F.cross_entropy(torch.cat(logits), labels, reduction="none"))
    result: np.ndarray[Any, Any] = torch.cat(found).double().numpy()
    return result


@dataclass(frozen=True)
class Audit:
    """Nearest real images, what is left of the anchors, membership inference.

    *Nearest*: in the features of the first teacher and by a perceptual hash (dHash). An image is
    called close if it is nearer to a training image of its class than all but 5 % of the real test
    images are; by chance 5 % would be. *Left of the anchors*: the weight of the heaviest real image
    by the schedule, and the share of the final pixels' variance that a regression on it explains,
    beside the same for other real images of the class. *Membership*: how well the loss of a
    student tells pool images, and anchors alone, from test images (Yeom et al., 2018): 0.5 is
    chance.

    It finds traces; it cannot prove that there are none, and is no privacy guarantee: a stronger
    attack (shadow models, the teachers' soft labels) may find more. Weights of teachers are not
    audited, though they saw every image.

    Attributes:
        nearest: real images that are listed for each distilled one.
    """

    nearest: int = 3

    def measure(self, subject: Subject) -> Result:
        """Return the traces of single real images."""
        teachers = {"teachers": subject.manifest["teachers"]}
        found = subject.once("audit", asdict(self) | teachers, lambda: self._images(subject))
        rows = found["images"]
        members = [self._membership(subject, index, rows) for index in range(subject.seeds)]
        figures = {
            "close": Figure(
                "distilled images close to a real one", [found["close"]], "share", "lower"
            ),
            "membership": Figure(
                "membership AUC, pool", [own["pool"]["auc"] for own in members], "number", "lower"
            ),
        }
        anchored = [row["anchor"] for row in rows if row["anchor"]]
        if anchored:
            figures["anchor_weight"] = Figure(
                "heaviest real image by the schedule",
                [mean(one["weight"] for one in anchored)],
                "share",
                "lower",
            )
            figures["explained"] = Figure(
                "variance it explains",
                [mean(one["explained"] for one in anchored)],
                "share",
                "lower",
            )
            figures["membership_anchors"] = Figure(
                "membership AUC, anchors",
                [own["anchors"]["auc"] for own in members],
                "number",
                "lower",
            )
        details = {**found, "membership": members}
        return Result(figures, details, _notes(found, members))

    def _images(self, subject: Subject) -> dict[str, Any]:
        """Return what is known of every distilled image, without any student."""
        pool, source = subject.pool, subject.source
        recovered = [
            record["facts"]
            for name, record in subject.run.records().items()
            if name.startswith("recover-")
        ]
        weights = _weights(subject.manifest["recipe"], recovered)
        features = unit_features(subject.committee[0], subject.data.images)
        features = features.unflatten(0, (len(subject.classes), -1))
        rows: list[dict[str, Any]] = []
        close: list[bool] = []
        for label in range(len(subject.classes)):
            members = pool.members(label)
            real = source.train.pixels(members).cpu()
            known = F.normalize(pool.features[members], dim=1)
            distances = torch.cdist(features[label].double(), known.double())
            bits = _bits(difference_hash(subject.images[label]), difference_hash(real))
            limit = _limit(subject, label, known)
            for index, image in enumerate(subject.images[label]):
                near = distances[index].argsort()[: self.nearest]
                twin = int(bits[index].argmin())
                close.append(float(distances[index].min()) < limit)
                rows.append(
                    {
                        "class": subject.classes[label],
                        "index": index,
                        "close": close[-1],
                        "nearest": [
                            {"image": int(members[one]), "distance": float(distances[index, one])}
                            for one in near
                        ],
                        "hash": {"image": int(members[twin]), "bits": int(bits[index, twin])},
                        "anchor": _anchor(image, weights, label, index, members, real),
                    }
                )
        copies = mean(row["hash"]["bits"] <= _HASH_COPY for row in rows)
        return {"images": rows, "close": mean(close), "hash_copies": copies}

    def _membership(
        self, subject: Subject, index: int, rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return how well one student tells pool images and anchors from test images."""
        student = subject.students[index]

        def work() -> dict[str, Any]:
            inside = scores(student.model, subject.source.train)
            outside = scores(student.model, subject.source.test)
            anchors = sorted({row["anchor"]["image"] for row in rows if row["anchor"]})
            return {
                "pool": _told(inside, outside),
                "anchors": _told(inside[anchors], outside) if anchors else None,
            }

        name = f"audit-{file_stem(subject.student)}-{student.seed}"
        return subject.once(name, {"student": student.digest}, work)


def _told(members: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> dict[str, Any]:
    threshold = np.quantile(others, 0.99)
    return {
        "auc": auc(members, others),
        "interval": list(auc_interval(members, others)),
        "true_positives_at_1_percent": float((members > threshold).mean()),
        "members": len(members),
        "others": len(others),
    }


def _bits(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the Hamming distances ``(n, m)`` of two sets of hashes."""
    return torch.cdist(one.float(), other.float(), p=0).round().long()


def _limit(subject: Subject, label: int, known: torch.Tensor) -> float:
    """Return the distance below which 5 % of real test images have a training image."""
    test = subject.source.test
    own = test.of_class(label)
    if not len(own):
        return 0.0
    features = unit_features(subject.committee[0], test.pixels(own))
    nearest = torch.cdist(features.double(), known.double()).amin(dim=1)
    return float(nearest.quantile(0.05))


def _weights(
    recipe: Mapping[str, Any], recovered: Sequence[Mapping[str, Any]]
) -> list[list[dict[int, float]]]:
    """Return the weights of real images by class and image, over all blocks; empty if none."""
    alpha = float((recipe.get("connection") or {}).get("alpha", 1.0))
    found: list[list[dict[int, float]]] = []
    for facts in recovered:
        if facts["anchors"]:
            found += anchor_weights(alpha, facts["anchors"], len(facts["connections"]))
    return found


def _anchor(
    image: torch.Tensor,
    weights: Sequence[Sequence[Mapping[int, float]]],
    label: int,
    index: int,
    members: torch.Tensor,
    real: torch.Tensor,
) -> dict[str, Any] | None:
    """Return the heaviest real image of a distilled one, and how much of it can be seen."""
    if not weights:
        return None
    heaviest, weight = max(weights[label][index].items(), key=lambda pair: pair[1])
    place = int((members == heaviest).nonzero()[0])
    slope, share = explained(image, real[place])
    others = [explained(image, one)[1] for at, one in enumerate(real[:50]) if at != place]
    return {
        "image": heaviest,
        "weight": weight,
        "slope": slope,
        "explained": share,
        "explained_by_others": mean(others) if others else None,
    }


def _notes(found: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [
        "An audit finds traces of real images; finding none proves nothing, and is no privacy "
        "guarantee.",
        f"{100 * found['close']:.0f} % of the distilled images are closer to a training image of "
        "their class than 95 % of real test images are; chance is 5 %.",
    ]
    if found["hash_copies"]:
        notes.append(
            f"{100 * found['hash_copies']:.0f} % have a training image within {_HASH_COPY} of 64 "
            "bits of perceptual hash: look at them."
        )
    low = min(own["pool"]["interval"][0] for own in members)
    if low > 0.5:
        notes.append("Students tell pool images from test images better than chance.")
    if not any(row["anchor"] for row in found["images"]):
        notes.append("No real image was blended in by this method.")
    return notes
