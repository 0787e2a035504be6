"""Numbers as a person writes them; what is missing becomes a dash."""

from __future__ import annotations

import math

MISSING = "–"


def count(value: float | None) -> str:
    """Return a whole number with thin thousands separators."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def amount(value: float | None) -> str:
    """Return a number as `count` does if it is whole, else in few digits."""
    return count(value) if value is None or float(value).is_integer() else f"{value:g}"


def plural(number: float, one: str, many: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{amount(number)} {one if number == 1 else many or one + 's'}"


def percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal."""
    return MISSING if share is None else f"{100 * share:.1f}\u00a0%"


def spread(share: float | None, deviation: float | None, runs: int) -> str:
    """Return mean ± standard deviation in per cent; one run alone has no deviation."""
    if share is None or deviation is None or runs < 2:
        return percent(share)
    return f"{100 * share:.1f}\u00a0±\u00a0{100 * deviation:.1f}\u00a0%"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with a few significant digits."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def size(bytes_: float | None) -> str:
    """Return a size in the unit a person would choose."""
    if bytes_ is None:
        return MISSING
    for unit in ("bytes", "kB", "MB", "GB"):
        if bytes_ < 1000 or unit == "GB":
            break
        bytes_ /= 1000
    return f"{bytes_:.0f} bytes" if unit == "bytes" else f"{bytes_:.3g}\u00a0{unit}"


def duration(seconds: float | None) -> str:
    """Return a time in the unit a person would choose."""
    if seconds is None:
        return MISSING
    if seconds < 1:
        return f"{1000 * seconds:.3g}\u00a0ms"
    if seconds < 120:
        return f"{seconds:.3g}\u00a0s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes}\u00a0min"
    return f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"


def listed(names: list[str]) -> str:
    """Return names as a list in a sentence."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
