"""How a run is cut: jobs, their parts, and what the units of work are called.

A part is done apart from the others, in any order and on any machine, and kept as a unit of its
job's run folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from reta.config import Config
from reta.data.sources import Source
from reta.preparation import recipe_of
from reta.storage import RunFolder

EPOCHS_PER_SHARD = 50
_SHARD = 2**30  # logits in a shard of labels, at most: a gigabyte at 8 bits each


@dataclass(frozen=True)
class Job:
    """A method with its settings, and the folder its distilled set goes to."""

    path: Path
    config: Config

    def __str__(self) -> str:
        return self.path.name

    @property
    def folder(self) -> RunFolder:
        """The run folder; every unit opens it anew, wherever it is done."""
        return RunFolder(self.path)


@dataclass(frozen=True)
class Part:
    """One unit of work of a job: some classes, or some epochs of labels.

    Attributes:
        job: what it belongs to.
        index: which of the parts it is.
        span: the classes or epochs.
    """

    job: Job
    index: int
    span: range

    def __str__(self) -> str:
        return f"{self.job}, {self.span.start} to {self.span.stop - 1}"


def balanced(count: int, most: int) -> list[range]:
    """Return consecutive blocks of at most ``most``, as equal as can be.

    A class block is also a BN group, so 101 become 51 and 50 and not 100 and a lonely one.
    """
    blocks = -(-count // most)
    bounds = [index * count // blocks for index in range(blocks + 1)]
    return [range(begin, end) for begin, end in pairwise(bounds)]


def class_blocks(job: Job, source: Source) -> list[Part]:
    """Return the blocks of classes that are optimised together."""
    engine = recipe_of(job.config).engine
    together = engine is not None and engine.together
    most = len(source.classes) if together else job.config.block
    return _parts(job, balanced(len(source.classes), most))


def groundwork(job: Job, source: Source) -> list[Part]:
    """Return the parts of what an engine does once before the first block; for most methods none.

    Each is about all classes.
    """
    engine = recipe_of(job.config).engine
    count = engine.groundwork if engine else 0
    return [Part(job, index, range(len(source.classes))) for index in range(count)]


def label_shards(job: Job, source: Source) -> list[Part]:
    """Return the shards of epochs that labels are written in: 50, or as many as make a gigabyte.

    Views are drawn alike for every epoch, so keeping some epochs at random (LPLD's pruning) is to
    make the first ones only; students go round them.
    """
    epochs = range(max(1, round((job.config.label_epochs or 1) * job.config.label_keep)))
    per_epoch = len(source.classes) ** 2 * job.config.ipc
    step = max(1, min(EPOCHS_PER_SHARD, _SHARD // per_epoch))
    return _parts(job, [epochs[start : start + step] for start in epochs[::step]])


def _parts(job: Job, spans: Sequence[range]) -> list[Part]:
    return [Part(job, index, span) for index, span in enumerate(spans)]


def whole_set(job: Job, source: Source) -> list[Part]:
    """Return one part: all classes."""
    return [Part(job, 0, range(len(source.classes)))]


def block_name(index: int) -> str:
    """Return the name of the unit of a class block."""
    return f"recover-{index:03d}"


def ground_name(index: int) -> str:
    """Return the name of the unit of a part of an engine's groundwork."""
    return f"groundwork-{index:03d}"


def ground_file(index: int) -> str:
    """Return where in a run folder such a part lies."""
    return f"groundwork/{index:03d}.safetensors"


def shard_name(index: int) -> str:
    """Return the name of the unit of a shard of labels."""
    return f"labels-{index:03d}"


def class_folders(classes: Sequence[str]) -> list[str]:
    """Return a folder name for each class, safe on any system, that sorts in class order."""
    safe = [re.sub(r"[^\w.+-]+", "_", name).strip(".") or "class" for name in classes]
    if safe == list(classes) and safe == sorted(safe) and len(set(safe)) == len(safe):
        return safe
    width = len(str(len(classes) - 1))
    return [f"{index:0{width}d}_{name}"[:100] for index, name in enumerate(safe)]
