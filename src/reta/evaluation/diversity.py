"""How much of a class the distilled images show: geometry, diversity, coverage, anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F

from reta.evaluation.geometry import measure as measure_geometry
from reta.evaluation.result import Figure, Result
from reta.evaluation.subject import Subject
from reta.memory import Passes
from reta.models import Classifier
from reta.runtime import random_generator


@torch.no_grad()
def unit_features(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Return penultimate features ``(n, d)`` on the unit sphere of images ``(n, 3, s, s)``."""

    def features(part: torch.Tensor) -> torch.Tensor:
        return model.features(part.to(model.mean.device).float() / 255).cpu()

    return F.normalize(torch.cat(Passes(images.shape[-1]).of(features, images)), dim=1)


def manifold_scores(real: torch.Tensor, fake: torch.Tensor, k: int = 5) -> dict[str, float]:
    """Return precision, recall, density and coverage of a synthetic set against a real one.

    A point's ball reaches to its k-th nearest neighbour in its own set. *Precision* is the share
    of synthetic points in a real ball, *recall* the share of real points in a synthetic ball
    (Kynkäänniemi et al., NeurIPS 2019); *density* is the number of real balls around a synthetic
    point, over k, and *coverage* the share of real balls with a synthetic point in them (Naeem
    et al., ICML 2020). Density may exceed 1, the others lie in [0, 1].

    Args:
        real: ``(n, d)``, n > k.
        fake: ``(m, d)``; where m ≤ k its balls reach to the furthest of the set, and of a single
            point there is no recall: 0.
        k: neighbours.
    """
    real, fake = real.double(), fake.double()
    across = _distances(real, fake)
    own = _radii(real, k)
    scores = {
        "precision": float((across <= own[:, None]).any(dim=0).double().mean()),
        "density": float((across <= own[:, None]).double().sum(dim=0).mean() / k),
        "coverage": float((across.amin(dim=1) <= own).double().mean()),
        "recall": 0.0,
    }
    if len(fake) > 1:
        reach = _radii(fake, min(k, len(fake) - 1))
        scores["recall"] = float((across <= reach[None]).any(dim=1).double().mean())
    return scores


def _distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    # Exact differences: the usual matrix product loses the small distances that radii are.
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(points: torch.Tensor, k: int) -> torch.Tensor:
    """Return the distance ``(n,)`` of each point to its k-th nearest other point."""
    return _distances(points, points).kthvalue(k + 1, dim=1).values


def effective_number(features: torch.Tensor) -> float:
    """Return the Vendi score: how many quite different images there are, as it were.

    The exponential of the entropy of the eigenvalues of K/n, K the cosine similarities of unit
    features ``(n, d)`` (Friedman and Dieng, TMLR 2023): 1 if all are alike, n if orthogonal.
    """
    values = torch.linalg.eigvalsh(features.double() @ features.double().T / len(features))
    values = values[values > 1e-12]
    return float((-(values * values.log()).sum()).exp())


def anchor_reuse(anchors: Sequence[Sequence[Sequence[int]]]) -> list[dict[str, float]]:
    """Return, for the start and each connection, how often real images serve as anchors.

    Args:
        anchors: pool indices by connection, class and image.

    Returns:
        Per connection, averaged over classes: the share of ``distinct`` anchors among the images,
        and the share of images that hang on the most used anchor (``largest``).
    """
    rows = []
    for classes in anchors:
        distinct = mean(len(set(own)) / len(own) for own in classes)
        largest = mean(max(own.count(one) for one in own) / len(own) for own in map(list, classes))
        rows.append({"distinct": distinct, "largest": largest})
    return rows


@dataclass(frozen=True)
class Diversity:
    """Contraction gap κ, diversity within a class, coverage of the real images, anchor reuse.

    In the feature space of the first teacher, on unit features. Coverage and its kin are
    measured against the real training images; as many real test images, drawn at random, show
    what a set of this size could reach. Betti curves, diagrams and persistence images of real and
    synthetic sets are in geometry.json.

    Attributes:
        neighbours: k of precision, recall, density and coverage.
        draws: random real sets that are averaged.
    """

    neighbours: int = 5
    draws: int = 5

    def measure(self, subject: Subject) -> Result:
        """Return κ, diversity and coverage by class."""
        settings = {"k": self.neighbours, "draws": self.draws}
        teachers = {"teachers": subject.manifest["teachers"]}
        details = subject.once("diversity", settings | teachers, lambda: self._details(subject))
        every = details["classes"]

        def over(name: str, side: str = "synthetic") -> list[float]:
            return [mean(row[side][name] for row in every)]

        figures = {
            "kappa": Figure("κ", [mean(row["kappa"] for row in every)], "number", "lower"),
            "coverage": Figure("coverage", over("coverage")),
            "recall": Figure("recall", over("recall")),
            "precision": Figure("precision", over("precision"), better=None),
            "density": Figure("density", over("density"), "number", None),
            "effective_share": Figure("effective number / ipc", over("effective_share")),
            "distance": Figure("mean distance within a class", over("distance"), "number", None),
        }
        if details["anchors"]:
            last = details["anchors"][-1]
            figures["distinct_anchors"] = Figure("distinct anchors", [last["distinct"]])
        return Result(figures, details, _NOTES)

    def _details(self, subject: Subject) -> dict[str, Any]:
        labels = range(len(subject.classes))
        teacher, pool = subject.committee[0], subject.pool
        geometry = measure_geometry(teacher, pool, subject.images, labels, draws=self.draws)
        synthetic = unit_features(teacher, subject.data.images).unflatten(0, (len(labels), -1))
        rows = []
        for label in labels:
            real = F.normalize(pool.features[pool.members(label)], dim=1)
            rows.append(
                {
                    "class": subject.classes[label],
                    "kappa": geometry["kappa"][label],
                    "synthetic": self._row(real, synthetic[label]),
                    "real": self._reference(subject, label, real),
                }
            )
        recovered = [
            record["facts"]
            for name, record in subject.run.records().items()
            if name.startswith("recover-")
        ]
        return {
            "classes": rows,
            "contraction": _by_connection(recovered, "contraction_ratio"),
            "fit_gap": _by_connection(recovered, "fit_gap"),
            "anchors": anchor_reuse(_join(recovered)),
        }

    def _row(self, real: torch.Tensor, own: torch.Tensor) -> dict[str, float]:
        k = min(self.neighbours, len(real) - 1)
        scores = manifold_scores(real, own, k) if k else dict.fromkeys(_SCORES, 0.0)
        distance = float(torch.pdist(own.double()).mean()) if len(own) > 1 else 0.0
        share = effective_number(own) / len(own)
        return scores | {"distance": distance, "effective_share": share}

    def _reference(self, subject: Subject, label: int, real: torch.Tensor) -> dict[str, float]:
        """Return the same scores of real test images, as many as there are distilled ones."""
        test = subject.source.test
        members = test.of_class(label)
        if not len(members):
            return dict.fromkeys((*_SCORES, "distance", "effective_share"), 0.0)
        features = unit_features(subject.committee[0], test.pixels(members))
        rows = []
        for draw in range(self.draws):
            rng = random_generator(0, "diversity", label, draw)
            chosen = torch.from_numpy(rng.permutation(len(members))[: subject.ipc])
            rows.append(self._row(real, features[chosen]))
        return {name: mean(row[name] for row in rows) for name in rows[0]}


_SCORES = ("precision", "density", "coverage", "recall")
_NOTES = (
    "All distances are in the feature space of the first teacher, which the images were made with.",
    "Coverage and recall grow with the number of images: compare sets of one size, or with the "
    "real images beside.",
)


def _by_connection(recovered: list[dict[str, Any]], name: str) -> list[float]:
    """Return a figure of each connection, averaged over the blocks of classes."""
    every = [[row[name] for row in facts["connections"]] for facts in recovered]
    return [mean(values) for values in zip(*every, strict=True)]


def _join(recovered: list[dict[str, Any]]) -> list[list[list[int]]]:
    """Return the anchors by connection over the classes of all blocks."""
    every = [facts["anchors"] for facts in recovered]
    return [[own for block in blocks for own in block] for blocks in zip(*every, strict=True)]
