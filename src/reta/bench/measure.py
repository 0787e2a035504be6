"""How a row is measured: paths that take turns, medians, bytes kept, the limits of the machine."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from reta import __version__
from reta.runtime import hardware

Work = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """How large a suite's workloads are.

    Attributes:
        committee: teachers of the recover and relabel rows.
        side: of the images, in pixels.
        classes: in the recover rows.
        ipc: images per class in the recover rows.
        batch: images of a single step.
        rounds: turns that each of several paths takes.
        pool: real images of a class.
        points: sizes of the point clouds.
        cold: whether rows that start processes or run a whole pipeline are measured.
    """

    committee: tuple[str, ...]
    side: int
    classes: int
    ipc: int
    batch: int
    rounds: int
    pool: int
    points: tuple[int, ...]
    cold: bool = True


PAPER = ("resnet18", "densenet121", "shufflenet_v2_x0_5", "mobilenet_v2")
LARGE = ("resnet18", "densenet121", "shufflenet_v2_x1_0", "mobilenet_v2")
SIZES = {
    "cpu": Size(PAPER, 32, 10, 10, 32, 5, 1300, (20, 50, 100, 200)),
    "gpu": Size(LARGE, 224, 100, 10, 100, 7, 1300, (20, 50, 100, 200)),
    "smoke": Size(("convnet3", "resnet18"), 16, 2, 3, 4, 1, 60, (10, 20), cold=False),
}


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        id: of the benchmark plan, see docs/performance.md.
        metric: what was measured.
        value: the median.
        unit: ratio, ms, s …
        target: what it should reach; None if it is only to be known.
        at_least: whether the target is a lower bound.
        iqr: first and third quartile over the rounds, where there are rounds.
        note: how to read it.
    """

    id: str
    metric: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False
    iqr: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def facts(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return asdict(self) | {"met": self.met}


def wait(device: torch.device) -> None:
    """Wait for queued GPU work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def turns(device: torch.device, rounds: int, *works: Work) -> list[list[float]]:
    """Return the seconds of each work in each round; the works take turns, after a warm-up."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, own in zip(works, times, strict=True):
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
            own.append(time.perf_counter() - start)
    return times


def spread(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the first and the third quartile."""
    if len(values) < 2:
        return None
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def ratio(
    id: str,
    metric: str,
    times: Sequence[Sequence[float]],
    target: float | None = None,
    *,
    at_least: bool = False,
    note: str = "",
) -> Row:
    """Return the row of first over second; rounds are paired, so that other load hits both."""
    pairs = [a / b for a, b in zip(times[0], times[1], strict=True)]
    unit = f"{1e3 * median(times[0]):.1f} / {1e3 * median(times[1]):.1f} ms"
    return Row(
        id, metric, median(pairs), "ratio", target, at_least, spread(pairs), "; ".join(
            part for part in (unit, note) if part
        )
    )  # fmt: skip


def kept_bytes(forward: Callable[[], Any], weights: torch.nn.Module) -> int:
    """Return the bytes that autograd keeps after a forward pass, weights aside."""
    own = {value.untyped_storage().data_ptr() for value in weights.state_dict().values()}
    kept: dict[int, int] = {}
    held = []  # or an address could be used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(kept.values())


def peak_bytes(work: Work, device: torch.device) -> int:
    """Return how many bytes of tensors a work holds at its peak, beyond those held before."""
    work()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    held = peak = 0
    # torch's only record of the CPU allocator.
    events = trace.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def flops(work: Work) -> int:
    """Return the floating point operations of a work's products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the numbers must be read with, and the two rates that bound them."""
    side = 1024 if device.type == "cpu" else 8192
    a, b = torch.rand(2, side, side, device=device)
    if device.type == "cuda":
        a, b = a.half(), b.half()
    block = torch.rand(2**24 if device.type == "cpu" else 2**29, device=device)
    target = torch.empty_like(block)
    product, copy = turns(device, 5, lambda: a @ b, lambda: target.copy_(block))
    return hardware() | {
        "reta": __version__,
        "device": str(device),
        "matmul_tflops": 2 * side**3 / min(product) / 1e12,
        "matmul_dtype": str(a.dtype).removeprefix("torch."),
        "copy_gb_per_second": 2 * block.numel() * 4 / min(copy) / 1e9,
    }


def commit() -> str | None:
    """Return the commit of a source checkout, or None for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def table(result: dict[str, Any]) -> str:
    """Return the rows of a result as a Markdown table, with where they come from."""
    lines = ["| | what | measured | target | met |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        value = f"{row['value']:.3g} {'' if row['unit'] == 'ratio' else row['unit']}".strip()
        if row["iqr"]:
            value += f" [{row['iqr'][0]:.3g}, {row['iqr'][1]:.3g}]"
        target = "–"
        if row["target"] is not None:
            target = f"{'≥' if row['at_least'] else '≤'} {row['target']:g}"
        met = {True: "yes", False: "**no**", None: "–"}[row["met"]]
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"| {row['id']} | {row['metric']}{note} | {value} | {target} | {met} |")
    facts = result["machine"]
    where = (
        f"`reta bench --suite {result['suite']}`, commit {result['commit']}, "
        f"{facts['gpu'] or facts['cpu']}, {facts['threads']} thread(s), torch {facts['torch']}; "
        f"{facts['matmul_dtype']} products at {1e3 * facts['matmul_tflops']:.0f} GFLOP/s, "
        f"copies at {facts['copy_gb_per_second']:.1f} GB/s; [quartiles over the rounds]"
    )
    return "\n".join([*lines, "", where])
