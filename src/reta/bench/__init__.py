"""`reta bench`: what each part costs, against a plain version of it and against the machine.

No data is needed: weights are random and images are noise. Rows are named as in
docs/performance.md. Ratios come from paths that took turns in one process, so that other load on
the machine hits both alike; read absolute times with the machine they were measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from reta.bench import recovering, selecting, training, whole
from reta.bench.measure import SIZES, Row, Size, commit, machine, table
from reta.errors import UsageError
from reta.progress import log
from reta.runtime import choose_device

__all__ = ["run", "table"]

# What the suites ask for. The paper pays 1.20 for RETA over FADRM+ in time and 1.22 in memory.
_TARGETS = {
    "cpu": {
        "R1": 1.5, "R3": 1.05, "R4": 1.05, "R5": 1.10, "R6": 0.55, "P2": 0.03, "D1": 0.6,
        "P1-20": 0.5, "P1-50": 1.5, "P1-100": 3.0, "P1-200": 8.0, "T2": 2.0, "T3": 2.0,
    },
    "gpu": {
        "R1": 3.0, "R3": 1.05, "R4": 1.05, "R5": 1.25, "R6": 0.35, "P2": 0.03, "D1": 0.01,
        "P1-20": 0.5, "P1-50": 1.5, "P1-100": 3.0, "P1-200": 8.0, "T2": 5.0, "T3": 4.0, "T3-4": 1.5,
    },
}  # fmt: skip


def run(suite: str = "cpu", smoke: bool = False) -> dict[str, Any]:
    """Measure a suite.

    Args:
        suite: cpu or gpu.
        smoke: tiny sizes and one round, to see that everything runs; no figure means anything.

    Returns:
        ``rows``, ``machine`` and ``commit``, ready for JSON.

    Raises:
        UsageError: if there is no such suite, or no GPU for it.
    """
    if suite not in _TARGETS:
        raise UsageError(f"there is no suite {suite!r}; choose cpu or gpu")
    device = choose_device("cuda" if suite == "gpu" and not smoke else "cpu").torch
    size = SIZES["smoke" if smoke else suite]
    torch.manual_seed(0)
    facts = machine(device)
    target = dict(_TARGETS[suite]) | {"flops": facts["matmul_tflops"] * 1e12}
    rows = []
    for row in _all_rows(size, device, target):
        log.info("%-3s %-78s %10.4g %s", row.id, row.metric, row.value, row.unit)
        rows.append(row)
    return {
        "suite": "smoke" if smoke else suite,
        "rows": [row.facts() for row in sorted(rows, key=lambda row: _ORDER.index(row.id[0]))],
        "machine": facts,
        "commit": commit(),
    }


_ORDER = "RDPTSE"


def _all_rows(size: Size, device: torch.device, target: dict[str, float]) -> Iterator[Row]:
    parts: list[Callable[[], Iterator[Row]]] = [
        lambda: recovering.rows(size, device, target),
        lambda: selecting.rows(size, device, target),
        lambda: training.rows(size, device, target),
        lambda: whole.rows(size, device),
    ]
    for part in parts:
        yield from part()
