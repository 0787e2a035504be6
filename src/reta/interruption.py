"""Stopping on SIGTERM or SIGINT: at the next safe place, with the state on disk.

Schedulers give a process 15 to 120 seconds between the first signal and SIGKILL. Work that may
take longer calls `check` wherever it can be left (`progress.track` does so between items), and
keeps its state with a `reta.checkpoint.Checkpoint`.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from reta.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _State:
    reason: Interrupted | None = None
    # Where the interpreter writes the number of each signal, and what was there before.
    watched: tuple[socket.socket, dict[signal.Signals, Any], int] | None = None


def check() -> None:
    """Leave the work if a signal asked for it.

    Raises:
        Interrupted: then; not an `Exception`, so that no handler of errors swallows it.
    """
    if _State.reason is not None:
        raise _State.reason


def request_stop(reason: Interrupted) -> None:
    """Ask the work of this process to stop at the next `check`."""
    _State.reason = reason


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Within the block the first SIGTERM or SIGINT asks the work to stop; a second ends it at once.

    A thread listens, because Python runs its own handlers only between two operations of the main
    thread, and one pass through a large network can take many seconds. Outside the main thread of
    a process signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    listening, writing = socket.socketpair()
    writing.setblocking(False)
    handlers = {number: signal.signal(number, _noted) for number in SIGNALS}
    _State.watched = (writing, handlers, signal.set_wakeup_fd(writing.fileno()))
    thread = threading.Thread(target=_listen, args=(listening,), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _restore()
        writing.close()  # ends the thread
        thread.join()
        listening.close()
        _State.reason = None


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Nothing: the listening thread was told already."""


def _restore() -> None:
    if _State.watched is not None:
        _, handlers, wakeup = _State.watched
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _State.watched = None


def _leave_to_parent() -> None:
    """Put signals back in a forked child, which shares the parent's socket but not its thread."""
    _restore()
    _State.reason = None


os.register_at_fork(after_in_child=_leave_to_parent)


def _listen(listening: socket.socket) -> None:
    while numbers := listening.recv(64):
        for number in numbers:
            if number not in SIGNALS:
                continue
            if _State.reason is not None:
                os._exit(128 + number)  # files are written atomically, so nothing is torn
            request_stop(Interrupted(number))
