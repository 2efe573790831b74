"""Numbers, times, sizes and strange texts as short readable words; it knows neither farm nor terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len

__all__ = [
    "ascii_only",
    "clean",
    "count",
    "duration",
    "meter",
    "per_second",
    "percent",
    "plural",
    "size",
    "sparkline",
]

_SPARKS: Final = "▁▂▃▄▅▆▇█"
_ASCII: Final = str.maketrans("▁▂▃▄▅▆▇█━─·×…", "_.-=+*%##--x~")


def count(number: float, width: int = 12) -> str:
    """A whole number in at most ``width`` (>= 4) characters: 1,234,567, or 1.23M where that does not fit."""
    text = f"{round(number):,}"
    if len(text) <= width:
        return text
    scaled = float(number)
    for unit in "kMGTPE":
        scaled /= 1000
        for digits in (2, 1, 0):
            text = f"{scaled:.{digits}f}{unit}"
            if abs(scaled) < 999.5 and len(text) <= width:
                return text
    return "many"


def per_second(rate: float, width: int = 9) -> str:
    """A rate without its unit: 0.25, 12.3, 1,234."""
    if rate == 0:
        return "0"
    if rate < 10:
        return f"{rate:.2f}"
    return f"{rate:.1f}" if rate < 100 else count(rate, width)


def duration(seconds: float) -> str:
    """A time in at most six characters: 0.4s, 12s, 3m05s, 2h07m, 3d04h, 412d."""
    if not math.isfinite(seconds):
        return "never"
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    for big, small, unit, rest in ((60, 1, "m", "s"), (3600, 60, "h", "m"), (86400, 3600, "d", "h")):
        if whole < {"m": 3600, "h": 86400, "d": 8640000}[unit]:
            return f"{whole // big}{unit}{whole % big // small:02d}{rest}"
    return f"{whole // 86400}d"


def size(bytes_: float) -> str:
    """Bytes in at most four characters: 512, 1.5K, 12M, 1.5G (powers of 1024)."""
    scaled = float(max(0, bytes_))
    for unit in ("", "K", "M", "G", "T", "P", "E"):
        if scaled < 9.95 and unit:
            return f"{scaled:.1f}{unit}"
        if scaled < 999.5:
            return f"{scaled:.0f}{unit}"
        scaled /= 1024
    return "huge"


def percent(part: float) -> str:
    """0 to 100 as at most four characters: 7%, 100%."""
    return f"{part:.0f}%"


def plural(number: int, word: str) -> str:
    """1 worker, 2 workers."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def meter(part: float, whole: float, width: int) -> tuple[str, str]:
    """A bar of ``width`` characters as (filled, empty), for a share of ``part`` in ``whole``."""
    share = 0.0 if whole <= 0 else min(1.0, max(0.0, part / whole))
    filled = round(share * width)
    if share > 0 and not filled:
        filled = 1  # something is not nothing
    return "━" * filled, "─" * (width - filled)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as a row of small columns: the highest full, zeros blank, newest right."""
    shown = list(values)[-width:] if width > 0 else []
    top = max(shown, default=0.0)
    columns = [
        " " if value <= 0 else _SPARKS[min(len(_SPARKS) - 1, int(value / top * len(_SPARKS)))]
        for value in shown
    ]
    return "".join(columns).rjust(width)


def clean(text: str, length_max: int = 500) -> str:
    """``text`` in one line that cannot steer a terminal: names and sentences come from other hosts."""
    shown = "".join(
        char if char.isprintable() else " " if char.isspace() else "�" for char in text[: length_max + 1]
    )
    return shown if len(text) <= length_max else shown[: length_max - 1] + "…"


def ascii_only(text: str) -> str:
    """``text`` for a terminal that shows nothing but ASCII, as wide as it was."""
    plain = text.translate(_ASCII)
    return plain if plain.isascii() else "".join(c if c.isascii() else "?" * cell_len(c) for c in plain)
