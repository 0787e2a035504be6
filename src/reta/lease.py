"""One run per folder: a lock that also works on network drives, with its holder's sign of life.

`flock` does not exclude across the clients of a network file system; creating a file that must not
exist does. So the lock is a file, which its holder touches every ten seconds. A holder that died on
this machine is recognised by its process, one on another machine by 30 seconds without a touch.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

from reta.errors import Interrupted, UsageError
from reta.files import storage_error
from reta.interruption import SIGNALS, request_stop
from reta.progress import log

LOCK, HOLDER = ".lock", ".holder"
PERIOD = 10.0
"""Seconds between two signs of life."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder while the block runs.

    Raises:
        UsageError: naming the holder: at once while it shows signs of life; if it shows none,
            after the half minute that it takes to be sure.
    """
    lease = SoftFileLease(
        folder / LOCK,
        lease_duration=3 * PERIOD,
        heartbeat_interval=PERIOD,
        on_compromise=_lost,
        thread_local=False,
    )
    try:
        _acquire(lease, folder)
    except OSError as error:
        raise storage_error(folder / LOCK, 0, error) from error
    holder = folder / HOLDER
    _sweep(folder)
    try:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {started}")
        yield
    finally:
        if lease.compromise is None:
            holder.unlink(missing_ok=True)
            _sweep(folder)
        lease.release()


def _acquire(lease: SoftFileLease, folder: Path) -> None:
    try:
        lease.acquire(timeout=0)
    except Timeout as error:
        silent = silence(folder)
        if silent is None or silent < 3 * PERIOD:
            raise _in_use(folder, silent) from error
        log.warning(
            "%s is held by %s, silent for %.0f s; waiting %.0f s to be sure that it is gone",
            folder,
            _holder(folder),
            silent,
            4 * PERIOD,
        )
        try:
            lease.acquire(timeout=4 * PERIOD, poll_interval=PERIOD / 20)
        except Timeout:
            raise _in_use(folder, silence(folder)) from error


def _sweep(folder: Path) -> None:
    """Remove what a process left that was killed while it tried to take the folder.

    Such files have names of the lock's own. While the lock lies in its place none of them is it.
    """
    for path in folder.glob(f"{LOCK}.*"):
        if (folder / LOCK).exists():
            path.unlink(missing_ok=True)


def silence(folder: Path) -> float | None:
    """Return the seconds since the holder's last sign of life; None if there is no holder."""
    try:
        return max(0.0, time.time() - (folder / LOCK).stat().st_mtime)
    except OSError:
        return None


def unlock(folder: Path, force: bool = False) -> None:
    """Free a folder whose holder is gone, or with force one whose holder cannot be reached.

    A holder that lives on notices within half a minute and stops.

    Raises:
        UsageError: without force, if the holder gave a sign of life in the last 30 seconds.
    """
    silent = silence(folder)
    if silent is not None and silent < 3 * PERIOD and not force:
        raise _in_use(folder, silent, "; `reta unlock --force` takes the folder from it")
    for name in (LOCK, HOLDER):
        (folder / name).unlink(missing_ok=True)


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text()
    except OSError:
        return "another process"


def _in_use(folder: Path, silent: float | None, more: str = "") -> UsageError:
    sign = "" if silent is None else f" (last sign of life {silent:.0f} s ago)"
    return UsageError(
        f"{folder} is in use by {_holder(folder)}{sign}; wait, or choose another --out{more}"
    )


def _lost(loss: LeaseCompromise) -> None:
    request_stop(
        Interrupted(SIGNALS[0], f"another process took {Path(loss.lock_file).parent} over")
    )
