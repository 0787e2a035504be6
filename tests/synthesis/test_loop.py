"""The loop against a plain re-implementation of FADRM, and the promises it makes about bytes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv

from reta.config import with_options
from reta.data.augment import Views
from reta.data.images import DecodedImages
from reta.errors import DivergedError
from reta.methods import METHODS
from reta.models import Classifier
from reta.synthesis.alignment import TopologyAlignment
from reta.synthesis.connection import FixedAnchor
from reta.synthesis.loop import Recovered, Recovery, Settings, jitter, recover
from reta.synthesis.pool import Pool, build_pool
from reta.synthesis.recipe import Recipe
from reta.synthesis.retrieval import RetrievedAnchor, class_complexity
from reta.synthesis.schedule import Schedule
from reta.synthesis.start import Noise
from small_world import CLASSES, PER_CLASS, SIZE, make_images, make_teacher


def short(method: str, steps: int = 6, connections: int = 1, **schedule: float) -> Recipe:
    return replace(METHODS[method], schedule=Schedule(steps, connections, **schedule))


# --- FADRM+ once more, as plainly as possible: one group at a time, normalised pixels ------------


def statistics_and_logits(
    teacher: Classifier, images: torch.Tensor
) -> tuple[list[tuple[torch.Tensor, torch.Tensor, torch.nn.Module]], torch.Tensor]:
    """Walk through a ConvNet by hand: what enters each norm, then the logits."""
    statistics, hidden = [], images
    for block in list(teacher.trunk)[:3]:
        hidden = block[0](hidden)
        mean = hidden.mean(dim=(0, 2, 3))
        variance = (hidden - mean[:, None, None]).square().mean(dim=(0, 2, 3))
        statistics.append((mean, variance, block[1]))
        normal = (hidden - block[1].running_mean[:, None, None]) / torch.sqrt(
            block[1].running_var[:, None, None] + block[1].eps
        )
        hidden = normal * block[1].weight[:, None, None] + block[1].bias[:, None, None]
        hidden = F.avg_pool2d(hidden.clamp(min=0), 2)
    return statistics, hidden.mean(dim=(2, 3)) @ teacher.head.weight.T + teacher.head.bias


def loss_of(teacher: Classifier, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    statistics, logits = statistics_and_logits(teacher, images)
    gap = sum(
        (10 if index == 0 else 1)
        * ((mean - norm.running_mean).norm() + (variance - norm.running_var).norm())
        for index, (mean, variance, norm) in enumerate(statistics)
    )
    return F.cross_entropy(logits, labels) + 0.01 * gap


def augmented(images: torch.Tensor, views: Views, group: int, size: int) -> torch.Tensor:
    cut = tv.resized_crop(images, *views.boxes[group].tolist(), [size, size], antialias=True)
    cut = cut.flip(-1) if views.flips[group] else cut
    return torch.roll(cut, views.shifts[group].tolist(), (-2, -1))


def plain_fadrm(
    teachers: list[Classifier],
    anchors: torch.Tensor,
    labels: torch.Tensor,
    blocks: list[tuple[int, int]],
    views: list[list[Views]],
    group: int,
) -> torch.Tensor:
    """Return the pixels in [0, 1] of one group after all blocks of (steps, size)."""
    mean, std = teachers[0].mean, teachers[0].std
    total, done = sum(steps for steps, _ in blocks), 0
    low, high = -mean / std, (1 - mean) / std
    anchors = (anchors.double() / 255 - mean) / std
    x = anchors
    for index, (steps, size) in enumerate(blocks):
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        if index:
            real = F.interpolate(anchors, (size, size), mode="bilinear", align_corners=False)
            x = 0.5 * x + 0.5 * real
        x = x.detach().requires_grad_()
        adam = torch.optim.Adam([x], lr=0.25, betas=(0.5, 0.9), eps=1e-8)
        for step in range(steps):
            teacher = teachers[done % len(teachers)]
            adam.param_groups[0]["lr"] = 0.25 * 0.5 * (1 + math.cos(math.pi * done / total))
            adam.zero_grad()
            loss_of(teacher, augmented(x, views[index][step], group, size), labels).backward()
            adam.step()
            with torch.no_grad():
                x.copy_(torch.max(torch.min(x, high), low))
            done += 1
    return x.detach() * std + mean


@pytest.mark.parametrize(
    ("method", "size", "ipc", "blocks"),
    [
        ("fadrm+", 16, 3, [(3, 16), (3, 16), (4, 16)]),
        ("fadrm", 16, 2, [(4, 16), (4, 16)]),
        ("fadrm+", 66, 1, [(2, 59), (2, 66)]),
    ],
)
def test_a_plain_reimplementation_of_fadrm_agrees(
    method: str, size: int, ipc: int, blocks: list[tuple[int, int]]
) -> None:
    """Any step out of order, any constant, unit, index or resolution that is not FADRM's."""
    teachers = [make_teacher(seed, 3, size).double() for seed in (1, 2)]
    pool = build_pool(make_images(3, 5, size), teachers[0])
    recipe = short(method, sum(steps for steps, _ in blocks), len(blocks) - 1)
    labels = [2, 0, 1]
    made = Recovery(recipe, teachers, pool, labels, Settings(ipc, seed=3, images_per_pass=6))
    cut = recipe.schedule.blocks(size)
    assert [(block.steps, block.size) for block in cut] == blocks
    views = [made._draw_views(block, index) for index, block in enumerate(cut)]
    anchors = made.used[-1]
    result = made.run()
    used = teachers if method == "fadrm+" else teachers[:1]
    for group in range(ipc):
        start = pool.images.pixels(anchors[group])
        expected = plain_fadrm(used, start, torch.tensor(labels), blocks, views, group)
        final = made.canvas.pixels[group] * made.canvas.unit
        assert (expected - start / 255).abs().mean() > 0.02  # something happened
        torch.testing.assert_close(final, expected, rtol=0, atol=1e-4)  # the pool is float32
        exact = (expected.clamp(0, 1) * 255).round().byte()
        assert (result.images[:, group].int() - exact.int()).abs().max() <= 1


# --- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fadrm+", "reta-paper", "rded", "sre2l"])
def test_same_seed_same_bytes(method: str, committee: list[Classifier], pool: Pool) -> None:
    """Any draw from global state, or state left behind in the pool or the teachers."""
    recipe = METHODS[method]
    if recipe.schedule:
        recipe = short(method, connections=min(recipe.schedule.connections, 1))
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(runs))
        runs.append(recover(recipe, committee, pool, range(CLASSES), Settings(3, seed=seed)))
    assert torch.equal(runs[0].images, runs[1].images)
    assert runs[0].steps == runs[1].steps
    assert runs[0].connections == runs[1].connections
    assert not torch.equal(runs[0].images, runs[2].images)


@pytest.mark.parametrize("images_per_pass", [1, 8, 9, 100])
def test_packing_changes_no_gradient(
    images_per_pass: int, double_committee: list[Classifier], double_pool: Pool
) -> None:
    """Views, statistics or losses shared between the BN groups of one forward pass."""
    recipe = short("fadrm+")
    packed, single = (
        Recovery(recipe, double_committee, double_pool, range(CLASSES), Settings(5, 0, True, size))
        for size in (images_per_pass, 4)
    )
    views = single._draw_views(recipe.schedule.blocks(SIZE)[0], 0)[1]
    for turn in (0, 1):
        (gradient, row), (expected, expected_row) = (
            made._match(turn, views) for made in (packed, single)
        )
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
        assert row["loss"].item() == pytest.approx(expected_row["loss"].item(), rel=1e-10)
        assert row["bn_gap"].item() == pytest.approx(expected_row["bn_gap"].item(), rel=1e-10)


@pytest.mark.parametrize("method", ["fadrm+", "reta-paper"])
def test_packing_changes_no_byte(
    method: str, double_committee: list[Classifier], double_pool: Pool
) -> None:
    """In float64 rounding is too small to show in 8 bits, so any difference is a mistake."""
    runs = [
        recover(short(method), double_committee, double_pool, [0, 2, 3], Settings(4, 0, True, size))
        for size in (3, 7, 100)
    ]
    assert torch.equal(runs[0].images, runs[1].images)
    assert torch.equal(runs[0].images, runs[2].images)


def test_a_block_does_not_know_the_other_classes(committee: list[Classifier], pool: Pool) -> None:
    """Blocks are units of resume and of parallel work: nothing may leak from outside."""
    inside = torch.isin(pool.labels, torch.tensor([0, 2]))
    only = Pool(
        DecodedImages(pool.images.pixels(inside), pool.labels[inside], pool.images.classes),
        pool.features[inside],
        pool.confidence[inside],
        pool.grey,
    )
    recover(short("reta-paper"), committee, pool, [1, 3], Settings(3))  # another block first
    one = recover(short("reta"), committee, pool, [0, 2], Settings(3))
    other = recover(short("reta"), committee, only, [0, 2], Settings(3))
    assert torch.equal(one.images, other.images)


def test_an_image_does_not_depend_on_ipc(committee: list[Classifier], pool: Pool) -> None:
    """FADRM's groups are independent: asking for more images must not change the first ones."""
    few, many = (recover(short("fadrm+"), committee, pool, [0, 1], Settings(n)) for n in (2, 4))
    difference = few.images.int() - many.images[:, :2].int()
    assert difference.abs().max() <= 1  # float32, and another number of images per pass


# --- what comes out ------------------------------------------------------------------------------


def test_shapes_range_and_records(committee: list[Classifier], pool: Pool) -> None:
    """A frame, an anchor or a log row too many, too few or transposed."""
    result = recover(short("reta", 8, 3), committee, pool, [1, 3], Settings(3))
    assert result.images.shape == (2, 3, 3, SIZE, SIZE)
    assert result.images.dtype == torch.uint8
    assert len(result.frames) == 5
    assert all(frame.shape == result.images.shape for frame in result.frames)
    assert torch.equal(result.frames[-1], result.images)
    assert len(result.connections) == 3
    assert [row["step"] for row in result.connections] == [2, 4, 6]
    assert len(result.anchors) == 4
    assert all(anchors.shape == (2, 3) for anchors in result.anchors)
    for anchors in result.anchors:
        assert (pool.labels[anchors] == torch.tensor([[1], [3]])).all()
    assert torch.equal(result.frames[0], pool.images.pixels(result.anchors[0]))
    assert [row["step"] for row in result.steps] == list(range(8))
    assert [row["teacher"] for row in result.steps] == [0, 1] * 4
    assert all("topology" in row and "gradient_ratio" in row for row in result.steps)


def test_teachers_take_turns_across_blocks(committee: list[Classifier], pool: Pool) -> None:
    """A counter that restarts in each block would favour the first teacher."""
    steps = recover(short("fadrm+", 6, 1), committee, pool, [0], Settings(1)).steps  # blocks of 3
    assert [row["teacher"] for row in steps] == [0, 1, 0, 1, 0, 1]
    steps = recover(short("fadrm", 6, 1), committee, pool, [0], Settings(1)).steps
    assert [row["teacher"] for row in steps] == [0] * 6


def test_log_is_thinned(committee: list[Classifier], pool: Pool) -> None:
    """2,000 steps need not be 2,000 rows, but the end of each block must be among them."""
    recipe = short("fadrm", 250, 1)
    steps = [row["step"] for row in recover(recipe, committee, pool, [0], Settings(1)).steps]
    assert {0, 124, 249} <= set(steps)
    assert 100 <= len(steps) <= 130


def test_pixels_are_clipped_after_every_step(committee: list[Classifier], pool: Pool) -> None:
    """A huge rate drives pixels far outside; every frame must be a picture, not a wrap-around."""
    made = Recovery(short("fadrm+", 4, 1, learning_rate=50.0), committee, pool, [0, 1], Settings(2))
    result = made.run()
    pixels = made.canvas.pixels * made.canvas.unit
    assert pixels.min() >= 0
    assert pixels.max() <= 1 + 1e-6
    extreme = ((result.images == 0) | (result.images == 255)).float().mean()
    assert extreme > 0.5


def test_anchors_of_fadrm_are_fixed(committee: list[Classifier], pool: Pool) -> None:
    """FADRM connects the image it started from, each time."""
    result = recover(short("fadrm+", 8, 3), committee, pool, [0, 2], Settings(4))
    assert len(result.anchors) == 4
    assert all(torch.equal(anchors, result.anchors[0]) for anchors in result.anchors)
    assert [row["distinct_anchors"] for row in result.connections] == [4, 4, 4]
    assert [row["kept_anchors"] for row in result.connections] == [1, 1, 1]


@pytest.mark.parametrize("opens", [True, False])
def test_reta_is_what_its_rule_says(committee: list[Classifier], pool: Pool, opens: bool) -> None:
    """Anchors changed behind a closed gate, or an open one that is not retrieval from cells."""
    rule = METHODS["reta"].connection
    assert isinstance(rule, RetrievedAnchor)
    assert rule.least > len(pool.labels), "as it is, it keeps the anchors of this small world"
    open_gates = {"least": 1, "known": pool.knowledge, "most": 4}
    gates = {f"connection.{name}": value for name, value in open_gates.items()} if opens else {}
    recipe = with_options(short("reta", 8, 3), gates)
    cells = {"connection.anchors": "cells"} if opens else {}
    same = with_options(short("reta-paper" if opens else "reta-pta", 8, 3), cells)
    made, other = (recover(one, committee, pool, [0, 2], Settings(4)) for one in (recipe, same))
    assert torch.equal(made.images, other.images)
    kept = [row["kept_anchors"] for row in made.connections]
    assert min(kept) < 1 if opens else kept == [1, 1, 1]


def test_connections_are_measured(double_committee: list[Classifier], double_pool: Pool) -> None:
    """Fit gap, complexity, reuse and contraction against their definitions, at a connection."""
    made = Recovery(short("reta-drc"), double_committee, double_pool, [0, 2], Settings(4))
    made.block = 1
    noise = torch.rand(made.canvas.pixels.shape, generator=torch.Generator().manual_seed(0))
    before = made.canvas.pixels = noise.to(made.canvas.pixels) / made.canvas.unit
    made._connect(SIZE, 17)
    (row,) = made.connections
    real = double_pool.images.pixels(made.used[-1]).double() / 255
    blend = 0.5 * before * made.canvas.unit + 0.5 * real
    torch.testing.assert_close(made.canvas.pixels * made.canvas.unit, blend, rtol=0, atol=1e-7)
    gap = (before * made.canvas.unit - real).square().sum(dim=(2, 3, 4)).mean()
    assert row["step"] == 17
    assert row["fit_gap"] == pytest.approx(gap.item(), rel=1e-5)
    reuse = [len(set(made.used[-1][:, column].tolist())) for column in range(2)]
    assert row["distinct_anchors"] == sum(reuse) / 2
    before_and_after = zip(made.used[0].flatten(), made.used[1].flatten(), strict=True)
    assert row["kept_anchors"] == sum(bool(a == b) for a, b in before_and_after) / 8
    complexity = [
        class_complexity(double_pool, label, SIZE, 1.0)[
            double_pool.members(label).tolist().index(anchor)
        ]
        for column, label in enumerate((0, 2))
        for anchor in made.used[-1][:, column].tolist()
    ]
    assert row["complexity"] == pytest.approx(float(np.mean(complexity)), rel=1e-5)
    ratios = []
    for column in range(2):
        spreads = [
            torch.pdist(double_committee[0].features(images[:, column])).mean()
            for images in (blend, before * made.canvas.unit)
        ]
        ratios.append((spreads[0] / spreads[1]).item())
    assert row["contraction_ratio"] == pytest.approx(float(np.mean(ratios)), rel=1e-5)


def test_alpha_of_each_connection_is_its_own(
    double_committee: list[Classifier], double_pool: Pool
) -> None:
    """A schedule of α accepted and ignored, or counted from the wrong block."""
    connection = FixedAnchor(alpha=0.2, last_alpha=0.8)
    recipe = replace(short("fadrm+"), connection=connection, schedule=Schedule(8, 3))
    made = Recovery(recipe, double_committee, double_pool, [0, 2], Settings(4))
    noise = torch.rand(made.canvas.pixels.shape, generator=torch.Generator().manual_seed(0))
    real = double_pool.images.pixels(made.used[0]).double() / 255
    for index in range(3):
        before = made.canvas.pixels = noise.to(made.canvas.pixels) / made.canvas.unit
        made.block = index + 1
        made._connect(SIZE, 0)
        alpha = 0.2 + 0.3 * index
        blend = alpha * before * made.canvas.unit + (1 - alpha) * real
        torch.testing.assert_close(made.canvas.pixels * made.canvas.unit, blend, rtol=0, atol=1e-7)


def test_recipes_without_a_schedule_return_the_start(
    committee: list[Classifier], pool: Pool
) -> None:
    """Baselines are the real images themselves, not images that went through a float and back."""
    result = recover(METHODS["random"], committee, pool, [0, 3], Settings(4))
    assert torch.equal(result.images, pool.images.pixels(result.anchors[0]))
    assert len(result.frames) == len(result.anchors) == 1
    assert result.steps == result.connections == []


def test_no_mirror_images_where_mirroring_changes_the_meaning(
    committee: list[Classifier], pool: Pool
) -> None:
    """Digits and letters: `flip=False` must reach the views."""
    for flip in (True, False):
        made = Recovery(short("fadrm"), committee, pool, [0], Settings(20, 0, flip))
        block = made.recipe.schedule.blocks(SIZE)[0]
        drawn = torch.stack([views.flips for views in made._draw_views(block, 0)])
        assert bool(drawn.any()) is flip


def test_views_differ_between_steps_groups_and_blocks(
    committee: list[Classifier], pool: Pool
) -> None:
    """A key that forgets the image or the block shows the same crop again and again."""
    made = Recovery(short("fadrm", 12, 1), committee, pool, [0], Settings(3))
    blocks = made.recipe.schedule.blocks(SIZE)
    drawn = [made._draw_views(block, index) for index, block in enumerate(blocks)]
    boxes = torch.stack([views.boxes for block in drawn for views in block])  # (steps, ipc, 4)
    assert boxes.shape == (12, 3, 4)
    for one, other in ((boxes[:6], boxes[6:]), (boxes[:, 0], boxes[:, 1])):
        assert not torch.equal(one, other)
    assert len(boxes[:, 0].unique(dim=0)) > 6
    shifts = torch.stack([views.shifts for block in drawn for views in block])
    assert shifts.unique().tolist() == [0, 1, 2]  # up to `jitter` at 16 px


@pytest.mark.parametrize(("size", "shift"), [(16, 2), (32, 4), (64, 4), (128, 18), (224, 32)])
def test_jitter_is_that_of_fadrm(size: int, shift: int) -> None:
    """4 px at 32 and 64, 32 px at 224."""
    assert jitter(size) == shift


def test_grey_sets_stay_grey(double_committee: list[Classifier], double_pool: Pool) -> None:
    """One channel for three: the gradient is the sum of the channels', and no colour appears."""
    every = double_pool.images.pixels(torch.arange(len(double_pool.labels)))
    same = DecodedImages(
        every[:, :1].expand(-1, 3, -1, -1), double_pool.labels, double_pool.images.classes
    )
    grey, colour = replace(double_pool, images=same, grey=True), replace(double_pool, images=same)
    one, three = (
        Recovery(short("fadrm+"), double_committee, world, [0, 2], Settings(2))
        for world in (grey, colour)
    )
    assert (one.canvas.pixels.shape[2], three.canvas.pixels.shape[2]) == (1, 3)
    views = one._draw_views(one.recipe.schedule.blocks(SIZE)[0], 0)[1]
    (gradient, row), (by_channel, expected_row) = (made._match(0, views) for made in (one, three))
    expected = (by_channel / three.canvas.unit).sum(dim=2, keepdim=True) * one.canvas.unit
    torch.testing.assert_close(
        gradient, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item()
    )
    assert row["loss"].item() == pytest.approx(expected_row["loss"].item(), rel=1e-6)
    images = recover(short("reta"), double_committee, grey, [0, 2], Settings(3)).images
    assert (images == images[:, :, :1]).all()


# --- the edges -----------------------------------------------------------------------------------


def run_all(committee: list[Classifier], pool: Pool, labels: list[int], ipc: int) -> Recovered:
    recipe = replace(short("reta"), topology=TopologyAlignment(interval=2))
    result = recover(recipe, committee, pool, labels, Settings(ipc))
    values = [value for row in result.steps + result.connections for value in row.values()]
    assert np.isfinite(values).all()
    return result


def test_one_class_one_image(committee: list[Classifier], pool: Pool) -> None:
    """The smallest set there is."""
    assert run_all(committee, pool, [2], 1).images.shape == (1, 1, 3, SIZE, SIZE)


def test_fewer_images_than_ipc(committee: list[Classifier], pool: Pool) -> None:
    """Repeated starts and repeated anchors; the repeats must grow apart."""
    images = run_all(committee, pool, [1, 2], PER_CLASS + 2).images
    assert not torch.equal(images[0, 0], images[0, PER_CLASS])


def test_identical_images(committee: list[Classifier], image_set: object) -> None:
    """Zero distances, a zero diameter and equal complexities must not become NaN."""
    images = make_images(2, 1, SIZE)
    same = DecodedImages(
        images.images.repeat_interleave(5, 0), images.labels.repeat_interleave(5), images.classes
    )
    pool = build_pool(same, committee[0])
    assert run_all(committee, pool, [0, 1], 4).images.shape == (2, 4, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    "method",
    ["sre2l", "fadrm", "fadrm+", "reta-drc", "reta-pta", "reta", "cv-dd", "g-vbsm", "edc", "wmdd"],
)
@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_teacher_is_named(
    method: str, broken: int, committee: list[Classifier], pool: Pool
) -> None:
    """NaN weights must stop the run with a message, not paint black images."""
    teachers = [copy.deepcopy(teacher) for teacher in committee]
    teachers[broken].head.weight[0, 0] = torch.nan
    teachers[broken].trunk.block0[0].weight[0, 0] = torch.nan
    connections = 1 if METHODS[method].connection or method == "reta-pta" else 0
    run = short(method, 6, connections)
    if broken == 1 and run.committee == "first":
        recover(run, teachers, pool, [0, 1], Settings(2))  # never asked
        return
    with pytest.raises(DivergedError, match="convnet3"):
        recover(run, teachers, pool, [0, 1], Settings(2))


def test_noise_cannot_be_connected_to_itself(committee: list[Classifier], pool: Pool) -> None:
    """A fixed anchor needs a real start: an error at once would do, silence would not."""
    recipe = replace(short("fadrm"), start=Noise())
    with pytest.raises(Exception, match="real images"):
        recover(recipe, committee, pool, [0], Settings(1))


def test_retrieval_works_from_noise(committee: list[Classifier], pool: Pool) -> None:
    """DRC finds its anchors itself, so a start without any is fine."""
    recipe = replace(short("reta-drc"), start=Noise())
    result = recover(recipe, committee, pool, [0, 3], Settings(2))
    assert len(result.anchors) == 1
    assert (pool.labels[result.anchors[0]] == torch.tensor([[0], [3]])).all()
