"""How soft labels are stored: each format turns rows of logits into small tensors and back.

A format knows nothing of views, epochs or files, so a new one is a class with four short methods.
Rows are decoded a slice at a time, so labels take no more memory than they take on the disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from reta.errors import unknown

TEMPERATURE = 20.0
"""T at which students read the labels (FADRM's), and at which formats keep what matters."""

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class LabelFormat(Protocol):
    """How rows of logits are stored."""

    @property
    def name(self) -> str:
        """The word for it in settings and in the facts of a file."""

    def layout(self, classes: int) -> Layout:
        """Return the type and the shape of what a row becomes, by tensor."""

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits ``(..., classes)`` as tensors ``(..., *shape of the layout)``."""

    def decode(self, stored: Mapping[str, torch.Tensor], classes: int) -> torch.Tensor:
        """Return logits ``(..., classes)`` float32 from any slice of what `encode` returned."""


@dataclass(frozen=True)
class Halves:
    """Half precision: 2 bytes a class."""

    name: ClassVar[str] = "float16"

    def layout(self, classes: int) -> Layout:
        """One number per class."""
        return {"logits": (torch.float16, (classes,))}

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Round to half precision."""
        return {"logits": logits.half()}

    def decode(self, stored: Mapping[str, torch.Tensor], classes: int) -> torch.Tensor:
        """Widen again."""
        return stored["logits"].float()


def quantize(
    logits: torch.Tensor, levels: int = 256
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return each row of logits ``(..., classes)`` on an even grid from its least to its largest.

    Returns:
        codes uint8 ``(..., classes)``, and low end and step, float16 ``(...)``: a row is
        ``low + step · codes``.
    """
    low = logits.amin(dim=-1).half()
    step = ((logits.amax(dim=-1) - low.float()) / (levels - 1)).half()
    # A step rounded down to zero (equal logits) would divide by zero.
    scale = step.float().clamp(min=1e-7).unsqueeze(-1)
    codes = ((logits - low.float().unsqueeze(-1)) / scale).round().clamp(0, levels - 1)
    return codes.to(torch.uint8), low, step


def dequantize(codes: torch.Tensor, low: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Return logits ``(..., classes)`` float32 from `quantize`."""
    return low.float().unsqueeze(-1) + step.float().unsqueeze(-1) * codes.float()


@dataclass(frozen=True)
class Bytes:
    """8 bits a class on a grid per row: 1 byte a class and 4 a row."""

    name: ClassVar[str] = "int8"

    def layout(self, classes: int) -> Layout:
        """A code per class; the low end and the step of the row."""
        return {
            "codes": (torch.uint8, (classes,)),
            "low": (torch.float16, ()),
            "step": (torch.float16, ()),
        }

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Round to the nearest of 256 levels."""
        codes, low, step = quantize(logits)
        return {"codes": codes, "low": low, "step": step}

    def decode(self, stored: Mapping[str, torch.Tensor], classes: int) -> torch.Tensor:
        """Read the levels back."""
        return dequantize(stored["codes"], stored["low"], stored["step"])


@dataclass(frozen=True)
class Nibbles:
    """4 bits a class on a grid per row, two classes to a byte, the first in the low half."""

    name: ClassVar[str] = "int4"

    def layout(self, classes: int) -> Layout:
        """A byte per two classes; the low end and the step of the row."""
        return {
            "codes": (torch.uint8, ((classes + 1) // 2,)),
            "low": (torch.float16, ()),
            "step": (torch.float16, ()),
        }

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Round to the nearest of 16 levels."""
        codes, low, step = quantize(logits, 16)
        even = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2))
        return {"codes": even[..., 0::2] | even[..., 1::2] << 4, "low": low, "step": step}

    def decode(self, stored: Mapping[str, torch.Tensor], classes: int) -> torch.Tensor:
        """Read the levels back."""
        packed = stored["codes"]
        codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., :classes]
        return dequantize(codes, stored["low"], stored["step"])


@dataclass(frozen=True)
class Top:
    """The largest logits of each row with their classes, and one logit that all others share.

    The shared logit is the one that leaves the others their joint probability at T = 20, which is
    the constant of least KL divergence: T · log mean exp(z / T). Which class is likelier among
    them is lost, and at T = 20 that is most of what a label says: see docs/labels.md before
    choosing this format.

    Attributes:
        count: logits kept, at most all.
    """

    count: int
    name: ClassVar[str] = "topk"

    def layout(self, classes: int) -> Layout:
        """Values and classes of the largest, and the logit of the rest."""
        kept = min(self.count, classes)
        index = torch.int16 if classes <= 2**15 else torch.int32
        return {
            "values": (torch.float16, (kept,)),
            "indices": (index, (kept,)),
            "rest": (torch.float16, ()),
        }

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Keep the largest."""
        classes = logits.shape[-1]
        values, indices = logits.topk(min(self.count, classes))
        others = logits.scatter(-1, indices, -math.inf) / TEMPERATURE
        left = max(1, classes - values.shape[-1])
        rest = TEMPERATURE * (others.logsumexp(dim=-1) - math.log(left))
        index_type, _ = self.layout(classes)["indices"]
        return {
            "values": values.half(),
            "indices": indices.to(index_type),
            "rest": rest.where(rest.isfinite(), 0).half(),  # nothing is left when all are kept
        }

    def decode(self, stored: Mapping[str, torch.Tensor], classes: int) -> torch.Tensor:
        """Put the values in their places."""
        row = stored["rest"].float().unsqueeze(-1).repeat_interleave(classes, dim=-1)
        return row.scatter(-1, stored["indices"].long(), stored["values"].float())


ONLINE = "online"
"""No logits are stored: the teachers travel with the set and answer while students train."""

FORMATS = (ONLINE, Halves.name, Bytes.name, Nibbles.name, Top.name)


def label_format(name: str, top: int) -> LabelFormat | None:
    """Return a format by name; None stands for `ONLINE`.

    Args:
        name: one of `FORMATS`.
        top: logits kept by ``topk``.
    """
    if name not in FORMATS:
        raise unknown("label format", name, FORMATS)
    stored: dict[str, LabelFormat] = {
        form.name: form for form in (Halves(), Bytes(), Nibbles(), Top(top))
    }
    return stored.get(name)


def bytes_per_row(form: LabelFormat, classes: int) -> int:
    """Return how many bytes the logits of one view take."""
    return sum(math.prod(shape) * kind.itemsize for kind, shape in form.layout(classes).values())


def information_lost(
    exact: torch.Tensor, decoded: torch.Tensor, temperature: float = TEMPERATURE
) -> float:
    """Return the share of what labels say that storing them lost: 0 is nothing, 1 is all.

    With p and q the softmax at T of exact and of decoded logits and u the uniform distribution,
    it is Σ KL(p ‖ q) / Σ KL(p ‖ u), summed over rows: what the student's loss would cost if the
    student were perfect, over what a label says beyond "any class alike". It may exceed 1 for
    labels worse than none.

    Args:
        exact: logits ``(..., classes)``.
        decoded: logits of the same shape.
        temperature: T.
    """
    log_p = (exact.double() / temperature).log_softmax(dim=-1)
    log_q = (decoded.double() / temperature).log_softmax(dim=-1)
    lost = (log_p.exp() * (log_p - log_q)).sum()
    said = (log_p.exp() * (log_p + math.log(exact.shape[-1]))).sum()
    return float(lost / said)
