"""Eq. 4 and 5: the score of an anchor, its complexity, and the choice."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from reta.data.images import DecodedImages
from reta.errors import UsageError
from reta.synthesis.connection import Query, resample
from reta.synthesis.pool import Pool
from reta.synthesis.retrieval import (
    RetrievedAnchor,
    class_complexity,
    edge_complexity,
    fit_complexity_score,
    scale_complexity,
)
from small_world import PER_CLASS


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def complexity_by_scipy(image: np.ndarray, sigma: float) -> float:
    energy = np.zeros(image.shape[1:])
    for channel in image:
        for axis in (0, 1):
            if sigma:
                radius = math.ceil(3 * sigma)
                channel = gaussian_filter1d(channel, sigma, axis, mode="mirror", radius=radius)
        for derivative in np.gradient(channel):
            energy += derivative**2
    return float(np.var(energy))


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(2, 14), width=st.integers(2, 14), channels=st.integers(1, 3),
    sigma=st.sampled_from([0.0, 0.4, 1.0, 1.5, 2.3]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_edge_complexity_is_that_of_scipy(
    height: int, width: int, channels: int, sigma: float, seed: int
) -> None:
    """Kernel radius, border, gradient or variance of another kind; images below the kernel."""
    images = rand(3, channels, height, width, seed=seed)
    ours = edge_complexity(images, sigma)
    expected = [complexity_by_scipy(image.numpy(), sigma) for image in images]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-15)


def test_a_constant_image_is_not_complex() -> None:
    """Borders that fade to black would give every bright image an edge."""
    images = torch.stack([torch.full((3, 9, 9), value) for value in (0.0, 0.3, 1.0)])
    assert edge_complexity(images).abs().max() < 1e-12


def test_a_ramp_is_not_complex_inside_and_noise_is() -> None:
    """A variance of the image instead of its gradient energy."""
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    noise = rand(1, 3, 32, 32).float()
    assert edge_complexity(ramp, 0.0) < 1e-10  # the same slope everywhere
    assert edge_complexity(noise) > 1e-5


def test_score_is_that_of_loops() -> None:
    """Distances that are not squared or not on the unit sphere; λ on the wrong term."""
    queries, keys, complexity = rand(4, 6) - 0.5, rand(5, 6, seed=1) - 0.5, rand(5, seed=2)
    score = fit_complexity_score(queries, keys, complexity, 0.3)
    for i in range(4):
        for j in range(5):
            q = queries[i] / math.sqrt(sum(float(v) ** 2 for v in queries[i]))
            z = keys[j] / math.sqrt(sum(float(v) ** 2 for v in keys[j]))
            fit = sum((float(a) - float(b)) ** 2 for a, b in zip(q, z, strict=True))
            expected = 0.7 * fit + 0.3 * float(complexity[j])
            assert float(score[i, j]) == pytest.approx(expected, rel=1e-10)


def test_ends_of_the_trade_off() -> None:
    """λ = 0 is the nearest neighbour, λ = 1 the simplest image for everybody."""
    queries, keys, complexity = rand(6, 8) - 0.5, rand(9, 8, seed=1) - 0.5, rand(9, seed=2)
    nearest = torch.cosine_similarity(queries[:, None], keys[None], dim=2).argmax(1)
    assert torch.equal(fit_complexity_score(queries, keys, complexity, 0.0).argmin(1), nearest)
    simplest = fit_complexity_score(queries, keys, complexity, 1.0).argmin(1)
    assert simplest.tolist() == [int(complexity.argmin())] * 6


def test_scales_of_complexity() -> None:
    """Every scale against its definition, in any order of the pool."""
    raw = torch.tensor([3e-4, 1e-4, 8e-4, 2e-4], dtype=torch.float64)
    assert torch.equal(scale_complexity(raw, "raw"), raw)
    expected = torch.tensor([2 / 7, 0, 1, 1 / 7], dtype=torch.float64)
    torch.testing.assert_close(scale_complexity(raw, "minmax"), expected)
    expected = torch.tensor([2 / 3, 0, 1, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(scale_complexity(raw, "rank"), expected)
    score = scale_complexity(raw, "zscore").numpy()
    np.testing.assert_allclose(score, (raw.numpy() - raw.numpy().mean()) / raw.numpy().std())


@pytest.mark.parametrize("scale", ["raw", "minmax", "rank", "zscore"])
@pytest.mark.parametrize("count", [1, 3])
def test_equally_complex_images_stay_finite(scale: str, count: int) -> None:
    """A class of one image, or of identical ones, has no spread to divide by."""
    scaled = scale_complexity(torch.full((count,), 2e-4, dtype=torch.float64), scale)
    assert torch.isfinite(scaled).all()
    assert scaled.abs().max() <= 1


def features_near(pool: Pool, count: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(pool.labels), (count,), generator=generator)
    noise = torch.randn(count, pool.features.shape[1], generator=generator)
    return pool.features[picked] + 0.1 * pool.features.std() * noise


def brute_force_cost(
    pool: Pool, label: int, queries: torch.Tensor, trade_off: float, size: int
) -> tuple[list[int], np.ndarray]:
    members = [index for index, own in enumerate(pool.labels.tolist()) if own == label]
    patches = resample(pool.images.pixels(torch.tensor(members)).double() / 255, size).numpy()
    c = np.array([complexity_by_scipy(patch, 1.0) for patch in patches])
    c = (c - c.min()) / (c.max() - c.min())
    q, z = queries.double().numpy(), pool.features[members].double().numpy()
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    fit = ((q[:, None] - z[None]) ** 2).sum(2)
    return members, (1 - trade_off) * fit + trade_off * c


@pytest.mark.parametrize("trade_off", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("size", [16, 11])
def test_the_anchor_is_the_best_of_its_class(pool: Pool, trade_off: float, size: int) -> None:
    """An index within the class taken for one within the pool; complexity at another size."""
    queries = features_near(pool, 5)
    for label in range(4):
        members, cost = brute_force_cost(pool, label, queries, trade_off, size)
        chosen = RetrievedAnchor(trade_off=trade_off).choose(
            Query(pool, label, queries, None, size)
        )
        assert chosen.tolist() == [members[best] for best in cost.argmin(1)]
        assert (pool.labels[chosen] == label).all()


def test_distinct_anchors_have_the_least_total_cost(pool: Pool) -> None:
    """A greedy assignment, or anchors given back in another order than the queries."""
    queries = features_near(pool, 4)
    queries[1] = queries[0]  # argmin would give both the same anchor
    members, cost = brute_force_cost(pool, 2, queries, 0.1, 16)
    best = min(
        permutations(range(len(members)), 4),
        key=lambda columns: sum(cost[row, column] for row, column in enumerate(columns)),
    )
    chosen = RetrievedAnchor(anchors="distinct").choose(Query(pool, 2, queries, None, 16))
    total = sum(cost[row, members.index(index)] for row, index in enumerate(chosen.tolist()))
    assert len(set(chosen.tolist())) == 4
    assert total == pytest.approx(sum(cost[row, column] for row, column in enumerate(best)))
    assert len(set(RetrievedAnchor().choose(Query(pool, 2, queries, None, 16))[:2].tolist())) == 1


def test_anchors_of_cells_are_the_best_of_those_nearest_to_each_start(pool: Pool) -> None:
    """Cells of the current anchors instead of the first, of the queries, or of Euclidean space."""
    queries = features_near(pool, 4)
    members, cost = brute_force_cost(pool, 2, queries, 0.1, 16)
    starts = [members[place] for place in (0, 2, 4, 6)]
    used = torch.tensor([starts, [members[1]] * 4])
    z = pool.features.double().numpy()
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    owner = [max(range(4), key=lambda column: z[index] @ z[starts[column]]) for index in members]
    assert len(set(owner)) == 4
    expected = []
    for row in range(4):
        own = [place for place in range(len(members)) if owner[place] == row]
        expected.append(members[min(own, key=lambda place: cost[row, place])])
    apart = RetrievedAnchor(anchors="cells")
    assert apart.choose(Query(pool, 2, queries, used, 16)).tolist() == expected
    best = RetrievedAnchor().choose(Query(pool, 2, queries, used, 16))
    assert best.tolist() != expected, "or the cells decide nothing here"
    assert torch.equal(apart.choose(Query(pool, 2, queries, None, 16)), best), "no start, no cells"


def test_a_single_image_has_the_whole_class_for_its_cell(pool: Pool) -> None:
    """A cell that leaves an image out: at one per class, cells are the paper's own retrieval."""
    for label in range(4):
        for start in pool.members(label):
            query = Query(pool, label, features_near(pool, 1), start[None, None], 16)
            one, other = (RetrievedAnchor(anchors=a).choose(query) for a in ("argmin", "cells"))
            assert torch.equal(one, other)


def test_equal_starts_share_a_cell(pool: Pool) -> None:
    """All images of a cell given to the first of two equal starts, and none left to the second."""
    queries = features_near(pool, 3)
    queries[1] = queries[0]
    first, second = pool.members(1)[[2, 7]].tolist()
    used = torch.tensor([[first, first, second]])
    chosen = RetrievedAnchor(anchors="cells").choose(Query(pool, 1, queries, used, 16))
    assert chosen[0] == chosen[1] != chosen[2]


def test_fewer_images_than_queries_fall_back_to_the_best(pool: Pool) -> None:
    """An assignment needs as many images as queries; a partial one would leave some without."""
    queries = features_near(pool, 12)
    distinct = RetrievedAnchor(anchors="distinct").choose(Query(pool, 0, queries, None, 16))
    assert torch.equal(distinct, RetrievedAnchor().choose(Query(pool, 0, queries, None, 16)))
    assert len(distinct) == 12


def test_the_current_anchor_does_not_matter(pool: Pool) -> None:
    """Retrieval is by score alone; a memory would make runs depend on history."""
    queries = features_near(pool, 4)
    fresh = RetrievedAnchor().choose(Query(pool, 0, queries, None, 16))
    current = pool.members(0)[:4]
    assert torch.equal(RetrievedAnchor().choose(Query(pool, 0, queries, current[None], 16)), fresh)


def test_a_fresh_anchor_was_never_used_by_the_same_image(pool: Pool) -> None:
    """Only the last anchors ruled out, or those of another image of the class too."""
    queries = features_near(pool, 3)
    members, cost = brute_force_cost(pool, 1, queries, 0.1, 16)
    used: list[torch.Tensor] = []
    for _ in range(PER_CLASS):
        history = torch.stack(used) if used else None
        used.append(RetrievedAnchor(fresh=True).choose(Query(pool, 1, queries, history, 16)))
    for column in range(3):
        order = [members[place] for place in cost[column].argsort(kind="stable")]
        assert [int(row[column]) for row in used] == order
    again = RetrievedAnchor(fresh=True).choose(Query(pool, 1, queries, torch.stack(used), 16))
    assert torch.equal(again, used[0]), "when none is left the best comes again"


def test_a_class_of_few_images_keeps_its_anchors(pool: Pool) -> None:
    """Counting images of all classes, or those that candidates rules out; no start to keep."""
    count = len(pool.members(2))
    queries = torch.randn(3, pool.features.shape[1], generator=torch.Generator().manual_seed(5))
    used = pool.members(2)[:3][None]
    best = RetrievedAnchor().choose(Query(pool, 2, queries, used, 16))
    assert not torch.equal(best, used[0])
    enough, few = RetrievedAnchor(least=count), RetrievedAnchor(least=count + 1)
    assert torch.equal(enough.choose(Query(pool, 2, queries, used, 16)), best)
    assert torch.equal(few.choose(Query(pool, 2, queries, used, 16)), used[0])
    assert torch.equal(few.choose(Query(pool, 2, queries, None, 16)), best), "no start to keep"
    fewer = RetrievedAnchor(least=count, candidates=count - 1)
    assert torch.equal(fewer.choose(Query(pool, 2, queries, used, 16)), used[0])


def test_knowledge_is_the_information_that_the_teacher_has(pool: Pool) -> None:
    """Another base of the logarithm, a mean of probabilities, or less than a guess."""
    surely = replace(pool, confidence=torch.ones(len(pool.labels)))
    assert surely.knowledge == 1
    classes = len(pool.images.classes)
    guess = torch.full((len(pool.labels),), 1 / classes)
    assert replace(pool, confidence=guess).knowledge == pytest.approx(0, abs=1e-6)
    assert replace(pool, confidence=guess / 2).knowledge == 0, "worse than a guess is no knowledge"
    assert replace(pool, confidence=0 * guess).knowledge == 0, "and no infinity"
    half = guess.clone()
    half[::2] = 1
    share = float((half == 1).double().mean())
    assert replace(pool, confidence=half).knowledge == pytest.approx(share, abs=1e-6)
    other = sklearn.metrics.log_loss(
        np.ones(len(half)), np.stack([1 - half, half], 1).astype(float), labels=[0, 1]
    ) / math.log(classes)
    assert replace(pool, confidence=half).knowledge == pytest.approx(1 - other, abs=1e-6)


def test_anchors_are_kept_where_the_teacher_knows_too_little(pool: Pool) -> None:
    """The gate the wrong way round, or keeping anchors where there are none."""
    queries = torch.randn(3, pool.features.shape[1], generator=torch.Generator().manual_seed(5))
    used = pool.members(2)[:3][None]
    best = RetrievedAnchor().choose(Query(pool, 2, queries, used, 16))
    below = RetrievedAnchor(known=pool.knowledge * 0.99)
    above = RetrievedAnchor(known=pool.knowledge * 0.99 + 0.01)
    assert torch.equal(below.choose(Query(pool, 2, queries, used, 16)), best)
    assert torch.equal(above.choose(Query(pool, 2, queries, used, 16)), used[0])
    assert torch.equal(above.choose(Query(pool, 2, queries, None, 16)), best), "no start to keep"


def test_a_class_of_many_images_keeps_its_anchors(pool: Pool) -> None:
    """Images of all classes counted, or real ones; the bound itself left out; no start to keep."""
    queries = torch.randn(3, pool.features.shape[1], generator=torch.Generator().manual_seed(5))
    used = pool.members(2)[:3][None]
    best = RetrievedAnchor().choose(Query(pool, 2, queries, used, 16))
    assert not torch.equal(best, used[0])
    assert torch.equal(RetrievedAnchor(most=3).choose(Query(pool, 2, queries, used, 16)), best)
    few = RetrievedAnchor(most=2)
    assert torch.equal(few.choose(Query(pool, 2, queries, used, 16)), used[0])
    assert torch.equal(few.choose(Query(pool, 2, queries[:2], used[:, :2], 16)), best[:2])
    assert torch.equal(few.choose(Query(pool, 2, queries, None, 16)), best), "no start to keep"


def test_kept_anchors_are_explained(pool: Pool) -> None:
    """Silence where a gate is closed, a word where it is open, or the wrong gate blamed."""
    count = int(pool.labels.bincount().max())
    assert RetrievedAnchor().caution(pool, 2) is None
    assert RetrievedAnchor(least=1, known=pool.knowledge).caution(pool, 2) is None
    unknown = RetrievedAnchor(known=min(1.0, pool.knowledge + 0.01)).caution(pool, 2) or ""
    assert f"knows {pool.knowledge:.2f}" in unknown
    assert "connection.known" in unknown
    few = RetrievedAnchor(least=count + 1).caution(pool, 2) or ""
    classes = len(pool.labels.unique())
    assert few.startswith(f"{classes} of {classes} classes")
    assert f"fewer than {count + 1} images" in few
    assert RetrievedAnchor(least=count, candidates=count - 1).caution(pool, 2)
    assert RetrievedAnchor(most=2).caution(pool, 2) is None
    assert "3 of each class" in (RetrievedAnchor(most=2).caution(pool, 3) or "")


def test_a_margin_keeps_the_current_anchor_while_it_is_nearly_as_good(pool: Pool) -> None:
    """The margin on the wrong side, or measured against the first anchor instead of the last."""
    queries = features_near(pool, 4)
    members, cost = brute_force_cost(pool, 2, queries, 0.1, 16)
    second = cost.argsort(axis=1)[:, 1]
    used = torch.tensor([[members[place] for place in second]])
    gaps = cost[np.arange(4), second] - cost.min(axis=1)
    best = RetrievedAnchor().choose(Query(pool, 2, queries, used, 16))
    for row, gap in enumerate(gaps):
        narrow = RetrievedAnchor(margin=float(gap) * 0.99)
        wide = RetrievedAnchor(margin=float(gap) * 1.01)
        assert narrow.choose(Query(pool, 2, queries, used, 16))[row] == best[row]
        assert wide.choose(Query(pool, 2, queries, used, 16))[row] == used[0, row]
        earlier = torch.cat([used, best[None]])
        assert wide.choose(Query(pool, 2, queries, earlier, 16))[row] == best[row]


def test_the_first_connection_may_keep_the_start(pool: Pool) -> None:
    """The start kept for ever, or retrieved although it was to be kept."""
    queries = features_near(pool, 4)
    start = pool.members(2)[[5, 6, 7, 8]]
    patient = RetrievedAnchor(first="start")
    assert torch.equal(patient.choose(Query(pool, 2, queries, start[None], 16)), start)
    later = torch.stack([start, start])
    best = RetrievedAnchor().choose(Query(pool, 2, queries, later, 16))
    assert not torch.equal(best, start)
    assert torch.equal(patient.choose(Query(pool, 2, queries, later, 16)), best)
    assert torch.equal(patient.choose(Query(pool, 2, queries, None, 16)), best), "no start to keep"


def test_few_candidates_are_those_of_medium_difficulty(pool: Pool) -> None:
    """Other images than the nearest to the median; a current anchor lost in spite of a margin."""
    queries = features_near(pool, 4)
    confidence = pool.confidence[pool.members(0)]
    near = (confidence - confidence.median()).abs().argsort(stable=True)
    allowed = set(pool.members(0)[near[:3]].tolist())
    chosen = RetrievedAnchor(candidates=3, trade_off=0.0).choose(Query(pool, 0, queries, None, 16))
    assert set(chosen.tolist()) <= allowed
    members, cost = brute_force_cost(pool, 0, queries, 0.0, 16)
    columns = [place for place, index in enumerate(members) if index in allowed]
    expected = [members[columns[best]] for best in cost[:, columns].argmin(1)]
    assert chosen.tolist() == expected
    outside = torch.tensor([[next(index for index in members if index not in allowed)] * 4])
    kept = RetrievedAnchor(candidates=3, margin=9.0).choose(Query(pool, 0, queries, outside, 16))
    assert torch.equal(kept, outside[0])


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.5},
        {"trade_off": -0.1},
        {"trade_off": 1.1},
        {"anchors": "none"},
        {"complexity_scale": "log"},
        {"candidates": 0},
        {"margin": -1.0},
        {"least": -1},
        {"most": 0},
        {"known": 1.5},
        {"fresh": True, "margin": 0.1},
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object]) -> None:
    """A misspelt word must not quietly mean the default."""
    with pytest.raises(UsageError):
        RetrievedAnchor(**options)


def test_complexity_is_computed_once_for_each_resolution(pool: Pool) -> None:
    """A cache keyed without the size or the smoothing would reuse the wrong numbers."""
    assert class_complexity(pool, 1, 16, 1.0) is class_complexity(pool, 1, 16, 1.0)
    values = [
        class_complexity(pool, 1, 16, 1.0),
        class_complexity(pool, 1, 11, 1.0),
        class_complexity(pool, 1, 16, 2.0),
    ]
    assert not torch.allclose(values[0], values[1])
    assert not torch.allclose(values[0], values[2])
    assert not torch.allclose(values[0], class_complexity(pool, 2, 16, 1.0))


def test_a_changed_pool_does_not_remember_the_old_one(pool: Pool) -> None:
    """Caches shared by `replace` would give the complexities of images that are gone."""
    before = class_complexity(pool, 0, 16, 1.0)
    every = pool.images.pixels(torch.arange(len(pool.labels)))
    flat = replace(pool, images=DecodedImages(every * 0, pool.labels, pool.images.classes))
    assert class_complexity(flat, 0, 16, 1.0).max() == 0
    assert before.min() > 0
    labels = 1 - pool.labels.clamp(max=1)
    moved = replace(pool, images=DecodedImages(every, labels, pool.images.classes))
    assert len(moved.members(0)) == 27
