"""The same units on Ray: the same bytes, whichever worker does them and however often it dies."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from reta import parts
from reta.cluster import RETRIES, OnRay, _found, started
from reta.config import Config
from reta.errors import DataError, UnfinishedError, UsageError
from reta.pipeline import distill
from reta.storage import RunFolder
from reta.students import train

ray = pytest.importorskip("ray")

SOURCE, TESTS = Path(__file__).parents[1] / "src", Path(__file__).parent
TINY = Config(
    "digits",
    ipc=2,
    classes=3,
    per_class=20,
    block=1,
    teachers=("convnet3", "convnet4"),
    teacher_epochs=1,
    steps=8,
    label_epochs=4,
    student="convnet3",
    students=2,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two workers on this machine."""
    paths = os.pathsep.join([str(SOURCE), str(TESTS)])
    variables = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    started(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": variables},
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards of labels, so that there is something to do side by side."""
    monkeypatch.setattr(parts, "EPOCHS_PER_SHARD", 2)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of the run without a cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "EPOCHS_PER_SHARD", 2)
        folder = distill(TINY, tmp_path_factory.mktemp("serial") / "run")
        train(folder)
    return results(folder)


def results(folder: Path) -> dict[str, str]:
    """Return the hashes of everything but the unit records, which hold wall-clock times."""
    assert RunFolder(folder).verify() == []
    files = RunFolder(folder).manifest()["files"]
    return {
        name: digest
        for name, digest in files.items()
        if not name.startswith("units/") and name != "metrics.json"
    }


def test_a_cluster_gives_the_same_bytes(cluster, serial, tmp_path):
    """Breaks when a unit depends on the process that does it, or on what was done before."""
    executor = OnRay()
    folder = distill(TINY, tmp_path / "run", executor=executor)
    train(folder, executor=executor)
    assert results(folder) == serial


@dataclass(frozen=True)
class Share:
    folder: Path


def fails_on_three(share: Share, unit: int) -> None:
    if unit == 3:
        raise DataError("unit 3 cannot be read")
    (share.folder / str(unit)).write_text(str(os.getpid()))


def test_an_error_comes_back_as_itself(cluster, tmp_path):
    """Breaks when a worker's error loses its type, and with it its message and exit code."""
    with pytest.raises(DataError, match="unit 3 cannot be read"):
        OnRay().run("test", fails_on_three, Share(tmp_path), range(5))
    workers = {int(path.read_text()) for path in tmp_path.iterdir()}
    assert workers
    assert os.getpid() not in workers


def test_a_worker_of_other_versions_is_refused(cluster, tmp_path):
    """Breaks when two versions of torch share a run, and its bytes are nobody's."""
    executor = OnRay()
    executor._terms = replace(executor._terms, versions=("3.9", "1.0", "0.0"))
    with pytest.raises(UsageError, match=r"worker .* the driver Python 3.9, torch 1.0"):
        executor.run("test", fails_on_three, Share(tmp_path), [1])


def test_a_folder_that_workers_do_not_see_is_refused(cluster, tmp_path):
    """Breaks when every machine writes into a folder of its own, and hours are lost."""
    unseen = RunFolder(tmp_path / "here-only")
    with unseen.locked(), pytest.raises(UsageError, match=r"worker .* does not see .*here-only"):
        OnRay().run("test", fails_on_three, Share(tmp_path), [1])
    OnRay().run("test", fails_on_three, Share(tmp_path), [1])


def test_a_gpu_that_no_machine_has_is_refused(cluster):
    """Breaks when tasks wait forever for a GPU."""
    assert OnRay().device("auto").name == "cpu"
    with pytest.raises(UsageError, match="no GPU"):
        OnRay().device("cuda")


def test_a_cluster_that_was_killed_is_not_waited_for(tmp_path, monkeypatch):
    """Breaks when the note Ray keeps of a dead cluster costs a quarter of an hour."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert _found() is None  # as the variable says
    monkeypatch.delenv("RAY_ADDRESS")
    assert _found() is None  # no note
    note = tmp_path / "ray/ray_current_cluster"
    note.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as cluster:
        note.write_text(f"127.0.0.1:{cluster.getsockname()[1]}")
        assert _found() is None
    assert _found() == "local"
    note.write_text("what is this")
    assert _found() == "local"


@dataclass(frozen=True)
class Doomed:
    """A unit whose worker is killed so many times before it may be done."""

    work: Callable[[Any, Any], None]
    unit: Any
    graves: Path
    deaths: int

    def __str__(self) -> str:
        return str(self.unit)


def mortal(shared: Any, doomed: Doomed) -> None:
    """Do a unit in a process that is killed at a random moment, so many times."""
    name = "".join(c if c.isalnum() else "-" for c in f"{doomed.work.__name__}-{doomed}")
    lives = len(list(doomed.graves.glob(f"{name}.*")))
    if lives >= doomed.deaths:
        return doomed.work(shared, doomed.unit)
    (doomed.graves / f"{name}.{lives}").write_text(str(os.getpid()))
    if doomed.deaths > RETRIES:
        os.kill(os.getpid(), signal.SIGKILL)
    delay = random.Random(f"{name}{lives}").uniform(0, 1)
    killer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
    killer.start()
    doomed.work(shared, doomed.unit)
    killer.join()
    raise AssertionError("killed before this")


class Deadly(OnRay):
    """A cluster whose workers die: each unit ``deaths`` times, the doomed ones for ever."""

    def __init__(self, graves: Path, deaths: int, doomed: str = "") -> None:
        super().__init__()
        self.graves, self.deaths, self.doomed = graves, deaths, doomed
        graves.mkdir()

    def run(self, stage: str, work: Any, shared: Any, units: Sequence[Any]) -> list[Any]:
        def deaths(unit: Any) -> int:
            return 99 if self.doomed and self.doomed in f"{stage} {unit}" else self.deaths

        dying = [Doomed(work, unit, self.graves, deaths(unit)) for unit in units]
        return [doomed.unit for doomed in super().run(stage, mortal, shared, dying)]


@pytest.mark.slow
def test_three_deaths_of_every_unit_change_no_byte(cluster, serial, tmp_path, count):
    """Breaks when a unit that was killed leaves something behind, or goes on differently."""
    executor = Deadly(tmp_path / "graves", RETRIES)
    folder = distill(TINY, tmp_path / "run", executor=executor)
    train(folder, executor=executor)
    assert results(folder) == serial
    units = 2 + 1 + 3 + 2 + 1 + 2  # teachers, pool, blocks, shards, geometry, students
    pids = [path.read_text() for path in (tmp_path / "graves").iterdir()]
    assert len(pids) == RETRIES * units
    assert len(set(pids)) == len(pids)
    count("SIGKILL of Ray workers, three in each unit", len(pids), "identical bytes")


@pytest.mark.slow
def test_the_fourth_death_gives_a_unit_up(cluster, serial, tmp_path, count):
    """Breaks when one deadly unit costs the others, is not reported, or cannot be done later."""
    executor = Deadly(tmp_path / "graves", 0, doomed="recover run, 1 to 1")
    with pytest.raises(UnfinishedError, match=r"recover .*run, 1 to 1.*died 4 times") as raised:
        distill(TINY, tmp_path / "run", executor=executor)
    assert raised.value.exit_code == 6
    assert len(list((tmp_path / "graves").iterdir())) == RETRIES + 1
    units = set(RunFolder(tmp_path / "run").records())
    assert {"recover-000", "recover-002"} < units
    assert "recover-001" not in units
    folder = distill(TINY, tmp_path / "run", executor=OnRay())
    train(folder, executor=OnRay())
    assert results(folder) == serial
    count("fourth death of a unit", RETRIES + 1, "given up, exit 6, done the next time")


@pytest.mark.slow
def test_a_driver_that_is_asked_to_stop_does_so(tmp_path):
    """Breaks when Ray's handler of SIGTERM takes the place of ours: abort, and no exit code."""
    import subprocess

    options = (
        "distill digits --classes 2 --per-class 20 --block 1 --ipc 2 --steps 100000 "
        "--teachers convnet3 --teacher-epochs 1 --label-epochs 2 --cluster auto --out run"
    )
    command = [sys.executable, "-m", "reta", *options.split()]
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    while process.poll() is None and not (tmp_path / "run/units/pool-000.json").exists():
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 143
    assert "continues where it stopped" in (tmp_path / "log").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_the_address_of_a_cluster_elsewhere(serial, tmp_path):
    """Breaks when --cluster ray://HOST:PORT needs more than `pip install 'reta[ray]'`."""
    import subprocess

    pytest.importorskip("grpc")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCE), str(TESTS)])}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}  # both ends have it
    port, client = free_port(), free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts"]
    options = f"start --head --block --port {port} --ray-client-server-port {client} --num-cpus 2"
    head = subprocess.Popen(
        [*command, *options.split(), "--include-dashboard=false"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    code = (
        "import sys, test_cluster as t; t.parts.EPOCHS_PER_SHARD = 2; "
        "one = t.OnRay(sys.argv[2]); folder = t.distill(t.TINY, sys.argv[1], executor=one); "
        "t.train(folder, executor=one)"
    )
    arguments = [str(tmp_path / "run"), f"ray://127.0.0.1:{client}"]
    try:
        until = time.monotonic() + 600  # for a busy machine
        while head.poll() is None and time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", client)) == 0:
                    break
            time.sleep(0.2)
        subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True)
    finally:
        head.terminate()
        head.wait()
    assert results(tmp_path / "run") == serial


@pytest.mark.slow
def test_the_driver_may_be_killed_too(serial, tmp_path):
    """Breaks when the workers of a killed driver keep the next one from finishing their units."""
    import subprocess

    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_cluster as t; "
        "t.parts.EPOCHS_PER_SHARD = 2; "
        "t.ray.init('local', num_cpus=2, include_dashboard=False); "
        "t.distill(t.TINY, sys.argv[1], executor=t.OnRay())"
    )
    folder = tmp_path / "run"
    command = [sys.executable, "-c", code, str(folder), str(TESTS)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (folder / "units/recover-000.json").exists():
        time.sleep(0.05)
    process.kill()
    process.wait()
    distill(TINY, folder)
    train(folder)
    assert results(folder) == serial
