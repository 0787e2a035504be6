"""kill -9, SIGTERM and damage at random moments: the counts are the claim.

The fast tests do a few of each; the slow ones, run by `make test-all`, as many as
docs/reliability.md states.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import reta
from crashes import STAGES, World, artefacts, disturb, hashes, make_world, start, wait
from reta import files
from reta.checkpoint import Checkpoint
from reta.parts import Job, class_blocks, label_shards
from reta.stages import label_shard, recover_block
from reta.storage import RunFolder
from reta.tensors import tensor_bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("world") / "run")


def killed(world: World, stage: str, folder: Path, wanted: int, count) -> None:
    outcome = disturb(world, stage, folder, wanted)
    assert set(outcome.codes) == {-signal.SIGKILL}
    said = f"{outcome.finished} runs finished, all hashes identical, nothing torn or left over"
    count(f"kill -9 at random moments of {stage}", outcome.hits, said)


@pytest.mark.parametrize("stage", STAGES)
def test_a_few_kills(stage, world, tmp_path, count):
    """Breaks when kill -9 leaves something that the next start trips over."""
    killed(world, stage, tmp_path / "run", 3, count)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_fifty_kills(stage, world, tmp_path, count):
    """Breaks when any moment of a stage is not safe against kill -9."""
    killed(world, stage, tmp_path / "run", 50, count)


def terminated(world: World, folder: Path, wanted: int, count) -> None:
    stages, seconds = ("recover", "relabel", "train"), []
    for number, stage in enumerate(stages):
        own = wanted // 3 + (number < wanted % 3)
        outcome = disturb(world, stage, folder, own, signal.SIGTERM)
        assert set(outcome.codes) == {143}
        seconds += outcome.seconds
    count("SIGTERM at random moments", len(seconds), f"exit 143 after {max(seconds):.1f} s at most")


def test_a_few_signals(world, tmp_path, count):
    """Breaks when SIGTERM loses work, is not heard, or ends with another code."""
    terminated(world, tmp_path / "run", 3, count)


@pytest.mark.slow
def test_twenty_signals(world, tmp_path, count):
    """Breaks when SIGTERM loses work, is not heard, or ends with another code."""
    terminated(world, tmp_path / "run", 20, count)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(number, code, world, tmp_path, count):
    """Breaks when a person who insists has to wait, or loses what was finished."""
    folder, stopping = world.before("train", tmp_path / "run"), tmp_path / "stopping"

    def no_answer(*_: object) -> None:
        stopping.touch()
        time.sleep(600)  # a disk that does not answer

    def slow_to_stop() -> None:
        Checkpoint.save = no_answer
        world.work("train", folder)

    child = start(slow_to_stop, signals=True)
    os.kill(child, number)
    until = time.monotonic() + 300
    while not stopping.exists() and time.monotonic() < until:
        time.sleep(0.01)
    second = time.monotonic()
    os.kill(child, number)
    assert wait(child) == code
    waited = time.monotonic() - second
    assert waited < 60  # of the sleep's 600: this machine may be busy
    done = {name: digest for name, digest in world.hashes.items() if "student" not in name}
    for name, digest in done.items():
        assert files.sha256_file(folder / name) == digest
    count("second signal", 1, f"ended with {code} after {waited:.2f} s")


def damaged(world: World, flips: int, cuts: int, count) -> None:
    rng, run = random.Random(0), RunFolder(world.folder)
    kinds = artefacts(world.folder)
    assert len(kinds) >= 9
    for total, what in ((flips, "bit flips"), (cuts, "truncations")):
        found = 0
        for index in range(total):
            path = rng.choice(sorted(kinds.values())[index % len(kinds)])
            whole = path.read_bytes()
            place = rng.randrange(len(whole))
            if what == "bit flips":
                broken = bytearray(whole)
                broken[place] ^= 1 << rng.randrange(8)
            else:
                broken = whole[:place]
            path.write_bytes(broken)
            problems = run.verify()
            found += bool(problems)
            path.write_bytes(whole)
            assert problems, path
        assert found == total
        count(f"{what} in {len(kinds)} kinds of files", total, f"{found} found by verify")
    assert run.verify() == []


def test_a_few_flips(world, count):
    """Breaks when one bit of any artefact can change unnoticed."""
    damaged(world, 22, 11, count)


@pytest.mark.slow
def test_two_hundred_flips(world, count):
    """Breaks when one bit of any artefact can change unnoticed."""
    damaged(world, 200, 50, count)


@pytest.mark.slow
def test_five_hundred_units_in_flat_memory(tmp_path, count):
    """Breaks when a unit leaves memory, a thread or an open file behind."""
    run = RunFolder(tmp_path / "run")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with run.locked():
        for number in range(550):
            if number == 50:
                memory, handles = resident(), opened()
            unit = run.unit(f"u-{number}", {"n": number})
            unit.keep(bytes(200_000))
            unit.write(f"data/{number}.bin", bytes(200_000))
            unit.finish({"n": number})
    growth = (resident() - memory) / 500
    assert opened() <= handles
    assert growth < 10_000
    count("units in one process", 500, f"{growth / 1000:.1f} kB each, no file left open")


def test_units_in_any_order_give_the_same_bytes(world, tmp_path):
    """Breaks when a unit depends on another one that was done before it."""
    folder = world.before("recover", tmp_path / "run")
    job = Job(folder, world.prepared.config)
    for part in reversed(class_blocks(job, world.prepared.source)):
        recover_block(world.prepared, part)
    for part in reversed(label_shards(job, world.prepared.source)):
        label_shard(world.prepared, part)
    world.finish(folder)
    assert hashes(folder) == world.hashes


def forged(world: World, folder: Path, change: Callable[[Path, dict[str, Any]], None]) -> list[str]:
    """Return what verify says of a run that was changed and then sealed as if by reta."""
    shutil.copytree(world.folder, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(folder, manifest)
    manifest.pop("seal")
    for name in manifest["files"]:
        manifest["files"][name] = files.sha256_file(folder / name)
    manifest["seal"] = files.fingerprint(manifest)
    path.write_text(json.dumps(manifest))
    return reta.verify(folder)


def shrink(folder: Path, manifest: dict[str, Any]) -> None:
    name = next(name for name in manifest["files"] if name.startswith("images/"))
    Image.new("RGB", (12, 8)).save(folder / name)


def lose(folder: Path, manifest: dict[str, Any]) -> None:
    name = next(name for name in manifest["files"] if name.startswith("images/"))
    (folder / name).unlink()
    del manifest["files"][name]


def empty(folder: Path, manifest: dict[str, Any]) -> None:
    name = next(name for name in manifest["files"] if name.startswith("labels/"))
    (folder / name).write_bytes(tensor_bytes({}, {"classes": manifest["classes"]}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shrink, "12x8 px, not 8x8"),
        (lose, "missing or too much"),
        (lambda _, manifest: manifest.update(ipc=2), "missing or too much"),
        (lambda _, manifest: manifest["classes"].reverse(), "labels are for"),
        (lambda _, manifest: manifest["folders"].pop(), "3 folders for 4 classes"),
        (lambda _, manifest: manifest.pop("ipc"), "not a manifest"),
        (empty, "labels/views"),
    ],
)
def test_parts_that_do_not_belong_together_are_found(change, said, world, tmp_path):
    """Breaks when a set whose hashes are right, but which is not what it says, counts as intact."""
    assert reta.verify(world.folder) == []
    problems = forged(world, tmp_path / "run", change)
    assert said in " ".join(problems)


def test_the_world_is_what_it_seems(world):
    """Breaks when the harness compares a run with itself."""
    assert hashes(world.folder) == world.hashes
    assert len(world.hashes) > 20
