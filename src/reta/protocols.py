"""How students are trained and measured: what a table of accuracies is a table of.

``default``: learning rate and η are the defaults of the settings; test images choose nothing.
benchmarks/protocol.py compares them with others on held-out training images (docs/labels.md).

``fadrm``: what FADRM and RETA publish. Four presets are trained, test accuracy is looked at
towards the end, and the best epoch of the best preset is the number. It is a best of four on test
images, and is called so wherever it is shown.

``own``: what the authors of a method do, such as EDC's MSE + 0.025·CE with a running mean of the
weights, as far as the recipe says (`OwnTraining`); else the default. A table under it compares
methods and trainings at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated

import tyro

from reta.config import Config, LabelKind, ProtocolName
from reta.errors import UsageError

if TYPE_CHECKING:
    from reta.training import Protocol

PRESETS = tuple(product((5e-4, 1e-3), (1.0, 2.0)))
"""Learning rate and η of FADRM's four presets."""

TITLES: dict[ProtocolName, str] = {
    "default": "default protocol",
    "fadrm": "fadrm protocol (best of four on test)",
    "own": "the method's own protocol",
}


_AS_SET = tyro.conf.arg(help_behavior_hint="(default: the run's setting)")


@dataclass(frozen=True)
class Regime:
    """What is asked of the training of students; None: as the run's settings say.

    Attributes:
        protocol: default; fadrm: the best of four presets on test images; own: as the method's
            authors do, default where they have no other way.
        labels: what students learn from: the committee's soft labels, or hard ones.
        learning_rate: of the students; not of protocol fadrm.
        stretch: η of their cosine; at 2 it ends at half the rate; not of protocol fadrm.
        epochs: of training; those of the labels come again if they are fewer.

    Raises:
        UsageError: if a number is out of range, or the protocol leaves no choice of it.
    """

    protocol: Annotated[ProtocolName | None, _AS_SET] = None
    labels: Annotated[LabelKind | None, _AS_SET] = None
    learning_rate: Annotated[float | None, _AS_SET] = None
    stretch: Annotated[float | None, _AS_SET] = None
    epochs: Annotated[int | None, _AS_SET] = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "stretch"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} is {value}; it must be above 0")
        if self.epochs is not None and self.epochs < 1:
            raise UsageError(f"epochs is {self.epochs}; it must be at least 1")

    @property
    def word(self) -> str:
        """What it adds to the name of a student; empty for the run's own settings."""
        parts = [
            self.protocol if self.protocol in ("fadrm", "own") else None,
            self.labels,
            f"lr{self.learning_rate:g}" if self.learning_rate is not None else None,
            f"eta{self.stretch:g}" if self.stretch is not None else None,
            f"{self.epochs}epochs" if self.epochs is not None else None,
        ]
        return "-".join(part for part in parts if part)

    def named(self, config: Config) -> ProtocolName:
        """Return the name of the protocol."""
        return self.protocol or config.protocol

    def presets(self, config: Config) -> list[Regime]:
        """Return what is trained under this regime: itself, or each of FADRM's four presets."""
        if self.named(config) != "fadrm":
            return [self]
        if self.learning_rate is not None or self.stretch is not None:
            raise UsageError(
                "protocol fadrm tries four presets of its own; leave out --learning-rate and "
                "--stretch, or use --protocol default"
            )
        return [
            replace(self, protocol="fadrm", learning_rate=rate, stretch=stretch)
            for rate, stretch in PRESETS
        ]

    def training(self, config: Config) -> Protocol:
        """Return how one student is trained, with everything left open taken from settings."""
        from reta.methods import METHODS  # bring torch, and `reta --help` reads this module
        from reta.training import Protocol

        own = METHODS[config.method].training if self.named(config) == "own" else None
        rate, stretch = (own or config).learning_rate, (own or config).stretch
        return Protocol(
            self.epochs or config.label_epochs or 1,
            self.learning_rate if self.learning_rate is not None else rate,
            stretch=self.stretch if self.stretch is not None else stretch,
            labels=self.labels or config.labels,
            loss=own.loss if own else "kl",
            hard_weight=own.hard_weight if own else 0.0,
            ema=own.ema if own else 0.0,
            checks="end" if self.protocol == "fadrm" else "fifths",
        )


AS_SET = Regime()
"""Students as the run's settings say."""
