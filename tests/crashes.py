"""A small finished run, and children that work on copies of it until they are killed.

Starting Python with torch takes seconds; a fork of this process takes milliseconds, so hundreds of
kills are affordable.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from reta.checkpoint import Checkpoint
from reta.config import Config
from reta.executor import Serial
from reta.interruption import stopping_on_signals
from reta.parts import Job, class_blocks, label_shards
from reta.pipeline import distill
from reta.preparation import Prepared, open_data, prepare
from reta.runtime import choose_device
from reta.stages import label_shard, recover_block
from reta.storage import DERIVED, RunFolder
from reta.students import Training, train, train_runs

CONFIG = Config(
    "digits",
    ipc=3,
    classes=4,
    per_class=12,
    block=2,
    image_size=8,
    teachers=("convnet3",),
    teacher_epochs=1,
    steps=6,
    label_epochs=52,
    student="convnet3",
    students=1,
    images_per_pass=2,
)
STAGES = ("pool", "recover", "relabel", "train")

# What a stage makes; everything that is computed from it is removed as well, and made again.
_MADE = {
    "pool": ("pool", "recover", "labels", "geometry", "student", "metrics"),
    "recover": ("recover", "labels", "geometry", "student", "metrics"),
    "relabel": ("labels", "student", "metrics"),
    "train": ("student", "metrics"),
}


@dataclass(frozen=True)
class World:
    """A finished run and what is needed to make its parts again.

    Attributes:
        folder: of the finished run.
        prepared: data, teacher and pool.
        hashes: of every file that is not a record with wall-clock times in it.
    """

    folder: Path
    prepared: Prepared
    hashes: dict[str, str]

    def before(self, stage: str, folder: Path) -> Path:
        """Copy the run as it was before a stage."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        run = RunFolder(folder)
        for name, record in run.records().items():
            if name.startswith(_MADE[stage]):
                for file in record["files"]:
                    (folder / file).unlink()
                run.record_path(name).unlink()
        if stage != "train":
            (folder / "manifest.json").unlink()
        return folder

    def work(self, stage: str, folder: Path) -> None:
        """Do one stage, as the pipeline does it."""
        run, shared = RunFolder(folder), self.prepared
        if stage == "train":
            training = Training(CONFIG, shared.source, shared.device)
            train_runs([folder], "convnet3", 1, training, Serial())
            return
        with run.locked():
            if stage == "pool":
                prepare(CONFIG, shared.source, run, shared.device, Serial())
            job = Job(folder, shared.config)
            if stage == "recover":
                for part in class_blocks(job, shared.source):
                    recover_block(shared, part)
            if stage == "relabel":
                for part in label_shards(job, shared.source):
                    label_shard(shared, part)

    def finish(self, folder: Path) -> None:
        """Run the same commands again to the end."""
        distill(CONFIG, folder)
        train(folder, source=self.prepared.source)


def make_world(folder: Path) -> World:
    """Return a finished run."""
    torch.set_num_threads(1)
    source = open_data(CONFIG)
    distill(CONFIG, folder)
    train(folder, source=source)
    place = choose_device("cpu")
    prepared = prepare(CONFIG, source, RunFolder(folder), place, Serial())
    return World(folder, prepared, hashes(folder))


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a finished run but those that hold wall-clock times."""
    files = RunFolder(folder).manifest()["files"]
    timed = ("units/", "metrics.json")
    return {name: digest for name, digest in files.items() if not name.startswith(timed)}


def leftovers(folder: Path) -> list[str]:
    """Return the files that no finished run has."""
    return [p.name for p in folder.rglob("*") if p.suffix in (".tmp", ".state") or p.name[0] == "."]


def start(work: Callable[[], None], *, often: bool = False, signals: bool = False) -> int:
    """Do some work in a forked child; return its process once it has begun.

    Args:
        work: what to do.
        often: keep the state of units at every step instead of every 30 seconds.
        signals: stop on SIGTERM as the command line does.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of this process are not used
        child = os.fork()
    if child:
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        return child
    code = 1
    try:
        if often:
            Checkpoint.every, Checkpoint.share = 0.0, 1e9
        if signals:
            with stopping_on_signals():
                os.write(writing, b"!")
                work()
        else:
            os.write(writing, b"!")
            work()
        code = 0
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        if code == 1:
            traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Return how a child ended: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ended(child: int) -> bool:
    """Return whether a child has ended; `wait` says how."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def duration(work: Callable[[], None]) -> float:
    """Return the seconds some work takes in a child that nobody disturbs."""
    child, started = start(work), time.monotonic()
    assert wait(child) == 0
    return time.monotonic() - started


@dataclass
class Outcome:
    """What came of disturbing a stage.

    Attributes:
        hits: how many children were still at work when the signal came.
        codes: how they ended.
        seconds: from the signal to the end.
        finished: how many runs were then finished, compared and found identical.
    """

    hits: int
    codes: list[int]
    seconds: list[float]
    finished: int


def disturb(
    world: World,
    stage: str,
    folder: Path,
    wanted: int,
    number: signal.Signals = signal.SIGKILL,
    per_run: int = 10,
) -> Outcome:
    """Signal a stage at random moments until so many children were hit, and finish every run.

    Raises:
        AssertionError: if a finished run differs from one that was never disturbed.
    """
    rng = random.Random(f"{stage} {number}")
    world.before(stage, folder)
    span = duration(lambda: world.work(stage, folder))
    outcome, tries = Outcome(0, [], [], 0), 0
    while outcome.hits < wanted:
        tries += 1
        assert tries < 6 * wanted, "the children are done before they are hit"
        if (tries - 1) % per_run == 0:
            world.before(stage, folder)
        often = bool(tries % 2)
        child = start(
            lambda: world.work(stage, folder), often=often, signals=number != signal.SIGKILL
        )
        code, seconds = _hit(child, rng.uniform(0, span), number)
        span *= 0.7 if code == 0 else 1.1  # how busy the machine is changes
        if code != 0:
            outcome.hits += 1
            outcome.codes.append(code)
            outcome.seconds.append(seconds)
        if tries % per_run == 0 or outcome.hits == wanted:
            _compare(world, folder)
            outcome.finished += 1
        elif code == 0:
            world.before(stage, folder)
    return outcome


def _hit(child: int, delay: float, number: signal.Signals) -> tuple[int, float]:
    """Signal a child after some seconds, if it is not done; return how it ended, and how soon."""
    until = time.monotonic() + delay
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), 0.0
        time.sleep(0.002)
    sent = time.monotonic()
    os.kill(child, number)
    return wait(child), time.monotonic() - sent


def _compare(world: World, folder: Path) -> None:
    child = start(lambda: world.finish(folder))
    assert wait(child) == 0
    assert hashes(folder) == world.hashes
    assert leftovers(folder) == []
    assert RunFolder(folder).verify() == []


def artefacts(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a finished run by kind."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name in DERIVED:
            continue  # rebuilt from the others at will
        kinds.setdefault(f"{path.parent.relative_to(folder).parts[:1]}{path.suffix}", []).append(
            path
        )
    return kinds
