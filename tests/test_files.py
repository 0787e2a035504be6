"""Atomic writes under every fault the operating system can answer with."""

import errno
import os
import resource
import signal
from collections import namedtuple
from pathlib import Path

import pytest

from reta import files
from reta.errors import DataError, StorageError
from reta.files import atomic_write, read_json, require_space, sync_files

FAULTS = (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EDQUOT, errno.EIO)


class FaultyOs:
    """The module os, of which the n-th call fails."""

    def __init__(self, fails_at: int, code: int) -> None:
        self.calls: list[str] = []
        self.fails_at, self.code = fails_at, code

    def __getattr__(self, name: str):
        value = getattr(os, name)
        if not callable(value):
            return value

        def call(*arguments, **options):
            self.calls.append(name)
            if len(self.calls) == self.fails_at:
                raise OSError(self.code, os.strerror(self.code))
            return value(*arguments, **options)

        return call


def calls_of_a_write(path: Path, monkeypatch) -> list[str]:
    whole = FaultyOs(0, 0)
    monkeypatch.setattr(files, "os", whole)
    atomic_write(path, b"ol", b"d")
    monkeypatch.setattr(files, "os", os)
    return whole.calls


def test_any_failing_call_leaves_the_old_file(tmp_path, monkeypatch, count):
    """Breaks when any system call on the way can lose or tear the file that was there."""
    path = tmp_path / "file"
    calls = calls_of_a_write(path, monkeypatch)
    assert {"makedirs", "open", "write", "fsync", "close", "replace"} <= set(calls)
    for number, name in enumerate(calls, 1):
        for code in FAULTS:
            atomic_write(path, b"old")
            faulty = FaultyOs(number, code)
            monkeypatch.setattr(files, "os", faulty)
            with pytest.raises(StorageError, match=r"file: could not write 3 bytes: .*free"):
                atomic_write(path, b"ne", b"w")
            monkeypatch.setattr(files, "os", os)
            # Syncing the folder comes after the swap: the file may be new then, but it is whole.
            swapped = number > calls.index("replace") + 1
            assert path.read_bytes() == (b"new" if swapped else b"old"), (number, name)
            assert [p.name for p in tmp_path.iterdir()] == ["file"]
    times = len(calls) * len(FAULTS)
    count(f"faults at each of the {len(calls)} calls of an atomic write", times, "nothing torn")


def test_the_message_names_the_cause(tmp_path, monkeypatch):
    """Breaks when a full disk, a quota and a read-only file system cannot be told apart."""
    said = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "quota",
        errno.EFBIG: "size limit",
        errno.EROFS: "read-only",
    }
    for code, words in said.items():
        monkeypatch.setattr(files, "os", FaultyOs(3, code))
        with pytest.raises(StorageError, match=words) as caught:
            atomic_write(tmp_path / "file", bytes(5))
        assert caught.value.exit_code == 5
        monkeypatch.setattr(files, "os", os)


def test_a_place_that_cannot_be_made_is_one_clear_message(tmp_path):
    """Breaks when a folder that cannot be made ends in a traceback."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="could not write"):
        atomic_write(tmp_path / "file" / "below", b"x")


@pytest.mark.parametrize("limit", [0, 1, 4096, 99_999])
def test_a_real_size_limit(tmp_path, limit):
    """Breaks when a file the system refuses half-way is left behind, or ends in a traceback."""
    path = tmp_path / "file"
    atomic_write(path, b"old")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            atomic_write(path, bytes(100_000))
        except StorageError as error:
            os._exit(error.exit_code if "size limit" in str(error) else 99)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_too_little_space_is_said_beforehand(tmp_path, monkeypatch):
    """Breaks when hours are computed for a result that cannot be stored."""
    usage = namedtuple("usage", "total used free")(100, 90, 10)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    require_space(tmp_path / "not" / "there", 10)
    with pytest.raises(StorageError, match=r"there: needs 1,234 bytes, .* only 10 free"):
        require_space(tmp_path / "not" / "there", 1234)


def test_files_are_synced_together(tmp_path, monkeypatch):
    """Breaks when a unit is called done while its files are only in memory."""
    paths = [tmp_path / "a" / name for name in "xyz"]
    for path in paths:
        atomic_write(path, b"1", sync=False)
    watched = FaultyOs(0, 0)
    monkeypatch.setattr(files, "os", watched)
    sync_files(paths)
    assert watched.calls.count("fsync") == len(paths) + 1  # and their folder
    monkeypatch.setattr(files, "os", FaultyOs(2, errno.EIO))
    with pytest.raises(StorageError):
        sync_files(paths)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "\xff", "{"])
def test_hostile_json_is_one_clear_message(tmp_path, text):
    """Breaks when nesting or digits without end reach the user as a traceback."""
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="damaged"):
        read_json(path)
