"""What a person sees of long work: log lines, warnings, progress with the time left."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from reta import interruption

log = logging.getLogger("reta")
console = Console(stderr=True, markup=False, highlight=False)

T = TypeVar("T")

_LINE_EVERY = 10.0  # seconds between lines where there is no terminal for a bar

_shown = False


@lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Log a warning the first time it is said in this process."""
    log.warning(message)


def show_progress(enabled: bool = True) -> None:
    """Turn progress on or off: bars on a terminal, else a log line every ten seconds.

    The command line turns it on; from Python it is off until asked for.
    """
    global _shown
    _shown = enabled


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield items while the share done and the time left are shown on standard error.

    Raises:
        Interrupted: between two items, if a signal asked the work to stop.
    """
    for item in _shown_items(items, description, total):
        interruption.check()
        yield item


def _shown_items(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    if not _shown:
        yield from items
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield from progress.track(items, total=total, description=description)
    else:
        yield from _in_lines(items, description, total)


def _in_lines(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    log.info("%s", description)
    start = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= _LINE_EVERY and done < total:
            left = (now - start) / done * (total - done)
            log.info("%s: %d of %d, %.0f s left", description, done, total, left)
            said = now
