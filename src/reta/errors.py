"""Errors a user can act on; each kind has its own exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RetaError(Exception):
    """An error the user can act on; the message names the place and the fix."""

    exit_code = 1


class UsageError(RetaError):
    """An option that cannot be used as given."""

    exit_code = 2


class DataError(RetaError):
    """Images, labels or artefacts that cannot be trusted."""

    exit_code = 3


class DivergedError(RetaError):
    """An optimisation that produced NaN or infinity."""

    exit_code = 4


class StorageError(RetaError):
    """A file that could not be written or read back intact."""

    exit_code = 5


class UnfinishedError(RetaError):
    """Units of work that were given up; the others are done, and the same command tries again."""

    exit_code = 6


class MemoryLimitError(RetaError):
    """Work whose smallest part does not fit into memory."""

    exit_code = 7


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; torch has no one type for it on a CPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
    return isinstance(error, MemoryError) or (
        # The last is what oneDNN says.
        isinstance(error, RuntimeError)
        and any(word in str(error) for word in (*words, "could not create a memory object"))
    )


class Interrupted(KeyboardInterrupt):
    """A signal asked the work to stop; what was finished is on disk.

    Attributes:
        exit_code: 128 + the signal, as a shell reports it: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, number: int, message: str = "interrupted") -> None:
        super().__init__(f"{message}; the same command continues where it stopped")
        self.exit_code = 128 + number


def unknown(kind: str, given: str, names: Iterable[str]) -> UsageError:
    """Return the error for a name that does not exist: the nearest one, and all there are."""
    choices = list(names)
    near = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UsageError(f"unknown {kind} {given!r}{hint}; choose from: {', '.join(choices)}")
