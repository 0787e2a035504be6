"""One run per folder: who gets it, who is refused, and what happens when the holder dies."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reta import interruption, lease
from reta.errors import Interrupted, UsageError
from reta.lease import HOLDER, LOCK, unlock
from reta.storage import RunFolder

# flock does nothing, as on a network drive without a lock daemon.
CONTENDER = """
import fcntl, sys
fcntl.flock = fcntl.lockf = lambda *_: None
from reta.errors import UsageError
from reta.storage import RunFolder
print("ready", flush=True)
sys.stdin.readline()
try:
    with RunFolder(sys.argv[1]).locked():
        print("held", flush=True)
        sys.stdin.readline()
except UsageError as error:
    print("refused", error, flush=True)
"""


def contender(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CONTENDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def test_of_eight_processes_exactly_one_runs(tmp_path, count):
    """Breaks when two processes can write one folder, with or without flock."""
    folder = tmp_path / "run"
    processes = [contender(folder) for _ in range(8)]
    assert [line(process) for process in processes] == ["ready"] * 8
    for process in processes:
        tell(process)
    said = [line(process) for process in processes]
    assert said.count("held") == 1
    holder = processes[said.index("held")]
    refused = [words for words in said if words != "held"]
    # In the blink between taking the folder and saying so, the holder is "another process".
    assert all(f"process {holder.pid} on" in w or "another process" in w for w in refused), said
    count("processes that started on one folder together", 8, "1 ran")
    end(*processes)


def test_a_killed_holder_is_not_in_the_way(tmp_path, count):
    """Breaks when kill -9 locks a folder for ever, or its half-written file is left there."""
    folder = tmp_path / "run"
    process = contender(folder)
    line(process), tell(process)
    assert line(process) == "held"
    with pytest.raises(UsageError, match=rf"process {process.pid} on"), RunFolder(folder).locked():
        pass
    (folder / ".left.tmp").write_bytes(b"half")
    (folder / ".lock.break.1.0").touch()  # of a process killed while it tried to take the folder
    end(process)
    with RunFolder(folder).locked():
        assert not (folder / ".left.tmp").exists()
    assert not list(folder.iterdir())


def foreign(folder: Path) -> None:
    """Leave the lock of a process on another machine, long silent."""
    with RunFolder(folder).locked():
        marker = (folder / LOCK).read_text()
    (folder / LOCK).write_text(marker.replace(os.uname().nodename, "elsewhere"))
    (folder / HOLDER).write_text("process 7 on elsewhere since yesterday")
    os.utime(folder / LOCK, (1, 1))


def test_a_silent_holder_elsewhere_is_waited_for_then_replaced(tmp_path, monkeypatch):
    """Breaks when a machine that died locks a folder for ever."""
    monkeypatch.setattr(lease, "PERIOD", 0.5)
    folder = tmp_path / "run"
    foreign(folder)
    with RunFolder(folder).locked():
        assert "elsewhere" not in (folder / HOLDER).read_text()


def test_a_holder_elsewhere_that_is_alive_is_left_alone(tmp_path, monkeypatch):
    """Breaks when clocks that differ make a living holder look dead."""
    monkeypatch.setattr(
        lease, "PERIOD", 1.0
    )  # 3 s without a sign of life count, even if it is busy
    folder = tmp_path / "run"
    foreign(folder)
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.05):
            os.utime(folder / LOCK, (time.time() - 1e6, time.time() - 1e6))

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(UsageError, match="process 7 on elsewhere"), RunFolder(folder).locked():
            pass
    finally:
        stop.set()
        thread.join()


def test_unlock_frees_only_what_is_silent(tmp_path):
    """Breaks when a living run loses its folder by mistake, or a dead one cannot be helped."""
    folder = tmp_path / "run"
    foreign(folder)
    unlock(folder)
    assert not list(folder.iterdir())
    with RunFolder(folder).locked(), pytest.raises(UsageError, match="--force"):
        unlock(folder)


def test_a_holder_that_loses_its_folder_stops(tmp_path, monkeypatch):
    """Breaks when two runs write one folder after `unlock --force`."""
    monkeypatch.setattr(lease, "PERIOD", 0.05)
    folder = tmp_path / "run"
    with RunFolder(folder).locked():
        unlock(folder, force=True)
        until = time.monotonic() + 60
        while interruption._State.reason is None and time.monotonic() < until:
            time.sleep(0.02)
        with pytest.raises(Interrupted, match=r"took .*run over"):
            interruption.check()
    interruption._State.reason = None
