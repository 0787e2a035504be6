"""Rows R1 to R7 and P2: the recover step, against the plain one and against itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import torch
import torch.nn.functional as F

from reta.bench.measure import Row, Size, flops, kept_bytes, peak_bytes, ratio, spread, turns
from reta.bench.reference import CopyingHook, ReferenceRecover, hooked_loss
from reta.data.images import DecodedImages
from reta.methods import METHODS
from reta.models import Classifier, build, freeze, preferred_layout
from reta.runtime import full_precision, half_precision
from reta.synthesis.alignment import Aligner
from reta.synthesis.loop import Recovery, Settings
from reta.synthesis.matching import decoupled_objective
from reta.synthesis.pool import Pool
from reta.synthesis.probes import BatchNormProbe, Probe, probe
from reta.synthesis.schedule import Schedule

STEPS = 2000  # of the paper, over which what happens rarely is spread


def committee_of(size: Size, device: torch.device) -> list[Classifier]:
    """Return frozen teachers with random weights."""
    teachers = [build(name, size.classes, size.side) for name in size.committee]
    return [
        freeze(teacher.to(device).to(memory_format=preferred_layout(teacher)))
        for teacher in teachers
    ]


def noise_pool(size: Size, per_class: int, teacher: Classifier) -> Pool:
    """Return a pool of noise images with random features."""
    count = per_class * size.classes
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size.side, size.side)
    images = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    labels = torch.arange(size.classes).repeat_interleave(per_class)
    names = tuple(f"class{index}" for index in range(size.classes))
    features = torch.randn(count, teacher.feature_dim, generator=generator)
    confidence = torch.rand(count, generator=generator)
    return Pool(DecodedImages(images, labels, names), features, confidence, grey=False)


def recovery(
    method: str, committee: list[Classifier], pool: Pool, size: Size, steps: int
) -> Recovery:
    """Return a recovery of all classes without connections between its steps."""
    recipe = replace(METHODS[method], schedule=Schedule(steps, connections=0))
    return Recovery(recipe, committee, pool, range(size.classes), Settings(size.ipc))


def again(made: Recovery) -> Callable[[], object]:
    """Return what takes a recovery's steps once more."""

    def run() -> None:
        made.block = made.step = 0
        made.run()

    return run


def rows(size: Size, device: torch.device, target: dict[str, float]) -> Iterator[Row]:
    """Measure; ``target`` holds what a suite asks for."""
    committee = committee_of(size, device)
    pool = noise_pool(size, 2 * size.ipc, committee[0])
    yield from _against_the_reference(size, device, committee, pool, target)
    yield from _against_fadrm(size, device, committee, pool, target)
    for teacher in committee:
        yield from _of_one_teacher(teacher, size, device, target)


def _against_the_reference(
    size: Size,
    device: torch.device,
    committee: list[Classifier],
    pool: Pool,
    target: dict[str, float],
) -> Iterator[Row]:
    few = replace(size, ipc=min(3, size.ipc))
    count = len(committee)
    made = recovery("fadrm+", committee, pool, few, count)
    plain_committee = copy.deepcopy(committee)
    for teacher in plain_committee:
        teacher.to(memory_format=torch.contiguous_format)  # as it is published
    plain = ReferenceRecover(plain_committee, made.canvas.pixels.detach(), size.side)
    times = turns(device, size.rounds, lambda: plain.steps(count), again(made))
    plain.close()
    yield ratio(
        "R1",
        f"plain step / ours, {count} teachers, {few.classes * few.ipc} images of {size.side} px",
        times,
        target["R1"],
        at_least=True,
    )
    images = few.classes * few.ipc
    per_image = [value / count / images * STEPS for value in times[1]]
    floor = flops(again(made)) / count / images * STEPS / target["flops"]
    yield Row(
        "R2",
        f"s/image of {STEPS} steps of FADRM+, {size.side} px",
        median(per_image),
        "s",
        iqr=spread(per_image),
        note=f"matmul floor {floor:.3f} s: {floor / median(per_image):.0%} of it reached",
    )


def _against_fadrm(
    size: Size,
    device: torch.device,
    committee: list[Classifier],
    pool: Pool,
    target: dict[str, float],
) -> Iterator[Row]:
    count = len(committee)
    if device.type == "cpu":
        size = replace(size, classes=min(3, size.classes))  # a hundred images take too long
    fadrm, made = (recovery(m, committee, pool, size, count) for m in ("fadrm+", "reta-paper"))
    assert made.aligner
    aligner, retrieved = made.aligner, copy.copy(made)
    retrieved.canvas = copy.copy(made.canvas)
    retrieved.connections, retrieved.used = [], list(made.used)

    def pull() -> object:
        return aligner.gradient(made.used[-1])

    steps, align, fixed, drc = turns(
        device,
        size.rounds,
        again(fadrm),
        pull,
        lambda: fadrm._connect(size.side, 0),
        lambda: retrieved._connect(size.side, 0),
    )
    interval = aligner.topology.interval
    refreshes = STEPS / interval + 4  # and at the end of each block
    base = [STEPS * a / count + 3 * b for a, b in zip(steps, fixed, strict=True)]
    ours = [
        STEPS * a / count + 3 * c + refreshes * p for a, c, p in zip(steps, drc, align, strict=True)
    ]
    note = f"composed for {STEPS} steps, T = {interval}, from the parts measured in turns"
    yield replace(
        ratio("R3", f"RETA / FADRM+ time, ipc {size.ipc}", [ours, base], target["R3"]), note=note
    )
    share = [refreshes * p / whole for p, whole in zip(align, ours, strict=True)]
    yield Row(
        "P2", "share of PTA in a run, its forward and backward pass included", median(share),
        "ratio", iqr=spread(share), note=f"{1e3 * median(align):.1f} ms a refresh",
    )  # fmt: skip
    found = _homology(aligner, size.rounds)
    homology = [refreshes * value / whole for value, whole in zip(found, ours, strict=True)]
    yield Row(
        "P2", "share of graph, homology and images in a run", median(homology), "ratio",
        target["P2"], iqr=spread(homology),
    )  # fmt: skip

    def both() -> None:
        again(made)()
        pull()

    peaks = [peak_bytes(work, device) for work in (both, again(fadrm))]
    yield Row(
        "R4", f"RETA / FADRM+ peak memory, ipc {size.ipc}", peaks[0] / peaks[1], "ratio",
        target["R4"], note=f"{peaks[0] / 1e6:.0f} / {peaks[1] / 1e6:.0f} MB",
    )  # fmt: skip


def _homology(aligner: Aligner, rounds: int) -> list[float]:
    features = aligner.canvas.features()
    (((_, count), target),) = aligner._targets.items()
    gradient = aligner.topology.gradient
    return turns(features.device, rounds, lambda: gradient(features[:, :count], target))[0]


def _forward(read: Probe, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = images.clone().requires_grad_()
    labels = torch.arange(len(images), device=images.device) % read.teacher.classes
    logits, gap = read(leaf[None], 10.0)
    return leaf, decoupled_objective(logits, labels, gap, 0.01).sum()


def _backward(leaf: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, leaf)[0]


def _of_one_teacher(
    teacher: Classifier, size: Size, device: torch.device, target: dict[str, float]
) -> Iterator[Row]:
    # The targets are for ResNet-18 on a CPU, where the others are cut to its time, and shown.
    first = teacher.name == "resnet18"
    asked = first or device.type == "cuda"
    batch = size.batch if asked else max(2, size.batch // 4)
    images = torch.rand(batch, 3, size.side, size.side, device=device)
    labels = torch.arange(batch, device=device) % teacher.classes
    fast = probe(teacher)

    def without() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = images.clone().requires_grad_()
        return leaf, F.cross_entropy(fast.teacher(leaf), labels)

    what = f"{teacher.name}, {batch} images of {size.side} px"
    times = turns(
        device,
        size.rounds,
        lambda: _backward(*_forward(fast, images)),
        lambda: _backward(*without()),
    )
    yield ratio(
        "R5", f"step with BN matching / without, {what}", times, target["R5"] if asked else None
    )
    kept = kept_bytes(lambda: _forward(fast, images), fast.teacher)
    plain = copy.deepcopy(teacher)
    hooks = [CopyingHook(layer) for layer in plain.batch_norms()]

    def hooked() -> torch.Tensor:
        return hooked_loss(plain, hooks, images.clone().requires_grad_(), labels)

    published = kept_bytes(hooked, plain)
    measured = first if device.type == "cpu" else teacher.name == "densenet121"
    yield Row(
        "R6", f"kept activations / FADRM's hook, {what}", kept / published, "ratio",
        target["R6"] if measured else None, note=f"{kept / 1e6:.0f} / {published / 1e6:.0f} MB",
    )  # fmt: skip
    yield _equality(teacher, size, device)
    short, _ = half_precision(device)
    if short is not None:
        yield from _in_short_numbers(teacher, images, size, short, first)


def _equality(teacher: Classifier, size: Size, device: torch.device) -> Row:
    """Return the error of the gradient; the median of draws, because rounding may cross a ReLU."""
    exact, fast = copy.deepcopy(teacher).double(), probe(teacher)
    errors = []
    for draw in range(3):
        generator = torch.Generator().manual_seed(draw)
        images = torch.rand(4, 3, size.side, size.side, generator=generator).to(device)
        truth = _backward(*_forward(BatchNormProbe(exact), images.double()))
        with full_precision():
            own = _backward(*_forward(fast, images))
        errors.append(float((own - truth).norm() / truth.norm()))
    return Row(
        "R7", f"error of the pixel gradient against float64, {teacher.name}", median(errors),
        "relative", 1e-5, note="median of 3 draws",
    )  # fmt: skip


def _in_short_numbers(
    teacher: Classifier, images: torch.Tensor, size: Size, short: torch.dtype, timed: bool
) -> Iterator[Row]:
    """Recovery as ``RETA_PRECISION=half`` does it: not the default, so nothing is asked of it."""
    full, half = probe(teacher), probe(teacher, short)
    with full_precision():
        exact = _backward(*_forward(full, images)).flatten()
    own = _backward(*_forward(half, images)).flatten()
    name = str(short).removeprefix("torch.")
    yield Row(
        "R7", f"cosine of the pixel gradient in {name} to float32's, {teacher.name}",
        float(F.cosine_similarity(exact, own, dim=0)), "cosine",
        note="random weights, noise; by RETA_PRECISION=half only",
    )  # fmt: skip
    if timed:
        works = [lambda read=read: _backward(*_forward(read, images)) for read in (full, half)]
        yield ratio(
            "R1", f"step in float32 / in {name}, {teacher.name}",
            turns(images.device, size.rounds, *works),
        )  # fmt: skip
