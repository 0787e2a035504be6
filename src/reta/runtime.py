"""What every stage needs and no stage owns: randomness, device, clocks."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from reta.errors import UsageError


def random_generator(seed: int, *key: int | str) -> np.random.Generator:
    """Return the generator of one random decision, addressed by what the decision is for.

    Every draw in reta is keyed by ``(seed, stage, class, image, step …)`` instead of being taken
    from a running stream, so the bytes of a result do not depend on the number of workers, the
    packing of batches, the order of work or an interruption.

    Args:
        seed: the run's seed.
        key: integers and words that name the decision.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *words])))


def torch_seed(seed: int, *key: int | str) -> int:
    """Return a 63-bit seed for a ``torch.Generator``, addressed like `random_generator`."""
    return int(random_generator(seed, *key).integers(2**63 - 1))


@contextmanager
def seeded(seed: int, *key: int | str) -> Iterator[None]:
    """Run a block under a keyed global torch seed, for code that takes no generator.

    Weight initialisers and dropout read torch's global state; it is put back afterwards.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(torch_seed(seed, *key))
        yield


@dataclass(frozen=True)
class Device:
    """Where tensors live, and why that place was chosen (shown in the report)."""

    name: str
    reason: str

    @property
    def torch(self) -> torch.device:
        """The device as torch knows it."""
        return torch.device(self.name)


def choose_device(requested: str = "auto") -> Device:
    """Return the device for a run: the one asked for, or the best there is.

    Raises:
        UsageError: if a CUDA device is asked for on a machine without one.
    """
    # Convolutions that add up in no fixed order would give other bytes in each run.
    torch.backends.cudnn.deterministic = True
    keep_freed_memory()
    if precision_asked() not in ("", "full", "half"):
        raise UsageError(f"RETA_PRECISION is {precision_asked()!r}; it must be full, half or empty")
    if precision_asked() == "full":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if requested == "auto":
        if torch.cuda.is_available():
            return Device("cuda", f"found {torch.cuda.get_device_name()}")
        return Device("cpu", "no CUDA device found")
    if requested.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device; use --device cpu")
    try:
        return Device(str(torch.device(requested)), "asked for")
    except RuntimeError as error:
        raise UsageError(f"--device {requested}: not a torch device (cpu, cuda, cuda:0)") from error


_PRECISION: ContextVar[str] = ContextVar("precision", default="")


@contextmanager
def full_precision() -> Iterator[None]:
    """Run a block in float32 throughout.

    That is without `mixed_precision` and `half_precision`, and without TF32, which keeps only 10
    of float32's 23 bits on recent GPUs. ``RETA_PRECISION=full`` does the same for a whole process.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    token = _PRECISION.set("full")
    try:
        products.allow_tf32 = convolutions.allow_tf32 = False
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
        _PRECISION.reset(token)


@contextmanager
def short_numbers() -> Iterator[None]:
    """Run a block in 16 bits wherever a device computes in them, as ``RETA_PRECISION=half`` does.

    Recovery does not by default, nor do teachers on a CPU: it is not shown to be as good.
    """
    token = _PRECISION.set("half")
    try:
        yield
    finally:
        _PRECISION.reset(token)


def short_numbers_asked() -> bool:
    """Return whether short numbers are asked for, by `short_numbers` or the environment."""
    return precision_asked() == "half"


def keep_freed_memory() -> None:
    """Let the C library keep memory that was freed for the next tensor; a no-op outside glibc.

    Every step allocates the same activations. By default glibc hands large blocks back to the
    kernel, which clears each page again at its next use: a fifth to a quarter of a step.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 2**30)
    libc.mallopt(trim_threshold, 2**31 - 1)


def mixed_precision(device: torch.device) -> tuple[torch.dtype | None, str]:
    """Return the short number format for training students on a device, or None, and why.

    Only bfloat16 is used: it has float32's range, so losses need no scaling. Weights and the
    optimiser, heads and losses stay in float32.
    """
    if precision_asked() == "full":
        return None, _ASKED
    if device.type == "cpu":
        if "amx_bf16" not in _cpu_can():
            return None, "float32: this CPU gains little from shorter numbers"
        return torch.bfloat16, "bfloat16: this CPU multiplies in it"
    if device.type != "cuda":
        return None, f"float32: nothing shorter was tried on {device.type}"
    if torch.cuda.get_device_capability(device)[0] < 8:
        return None, "float32: this GPU has no bfloat16"
    return torch.bfloat16, "bfloat16: as wide a range as float32 at half the memory traffic"


def teacher_precision(device: torch.device) -> tuple[torch.dtype | None, str]:
    """Return the short number format for training teachers on a device, or None, and why.

    As `mixed_precision`, but on a CPU only if asked: that it costs teachers nothing is not shown.
    """
    if device.type == "cpu" and not short_numbers_asked():
        return None, "float32: bfloat16 only by RETA_PRECISION=half"
    return mixed_precision(device)


def half_precision(device: torch.device) -> tuple[torch.dtype | None, str]:
    """Return the short number format for networks that are not trained, or None, and why.

    Only float16 is used: of 16 bits, bfloat16 leaves 3 fewer to the digits, and the range it buys
    with them is needed by weights that move.
    """
    if precision_asked() == "full":
        return None, _ASKED
    if device.type == "cpu":
        if _cpu_can() & {"amx_fp16", "avx512_fp16"}:
            return torch.float16, "float16: this CPU computes with it"
        return None, "float32: this CPU does not compute with float16"
    if device.type != "cuda":
        return None, f"float32: nothing shorter was tried on {device.type}"
    if torch.cuda.get_device_capability(device)[0] < 7:
        return None, "float32: this GPU gains nothing from float16"
    return torch.float16, "float16: twice the rate at half the memory traffic"


_ASKED = "float32: asked for"


def autocast(device: torch.device, short: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return the block in which networks on a device compute in a short number format, if any."""
    return nullcontext() if short is None else torch.autocast(device.type, short)


def recovery_precision(device: torch.device) -> torch.dtype | None:
    """Return the short number format for recovery, or None, the default: float32, TF32 on GPUs.

    Float16, where it is asked for, is two to three times faster, at a gradient whose cosine to the
    exact one is between 0.99 and 0.9997.
    """
    return half_precision(device)[0] if short_numbers_asked() else None


def precision_asked() -> str:
    """Return the precision asked for, by a block or ``RETA_PRECISION``: full, half or nothing."""
    return _PRECISION.get() or os.environ.get("RETA_PRECISION", "")


@cache
def _cpu_can() -> frozenset[str]:
    """Return the instruction sets that bear on short numbers; none where torch cannot tell."""
    ask = getattr(torch.cpu, "get_capabilities", dict)
    return frozenset(name for name, there in ask().items() if there is True)


def images_per_pass(image_size: int, device: torch.device | None = None) -> int:
    """Return how many images share a forward pass without gradients: 512 up to 32 px, 10 at 224.

    Activations grow with the pixels; this keeps them to about a gigabyte.

    Args:
        image_size: in pixels.
        device: a GPU takes as many for every 8 GB it has, since its launches take as long for few.
    """
    share = 1
    if device is not None and device.type == "cuda":
        share = max(1, torch.cuda.get_device_properties(device).total_memory // 2**33)
    return max(1, min(512, 512 * 32**2 // image_size**2) * share)


def hardware() -> dict[str, Any]:
    """Return what a number must be read with: machine, versions, threads."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a kernel file
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory() -> int:
    """Return the peak memory in bytes: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed wall-clock seconds, after waiting for queued GPU work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self._start
