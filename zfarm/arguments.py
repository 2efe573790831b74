"""What arguments of executors and futures may be, what stands in for those not given, and their errors."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sized
from math import isfinite, isnan
from time import monotonic
from typing import Any, Final

from zfarm.errors import ConfigurationError

__all__ = [
    "SECONDS_MAX",
    "check_arguments",
    "check_sizes",
    "default_workers",
    "grace_of",
    "name_of",
    "picklers",
    "seconds_of",
    "shown",
    "sized",
]

picklers: Final[set[int]] = set()
"""Threads that have pickled a handle of a file since somebody looked (zfarm.handles)."""

NAME_MAX: Final = 200
"""Characters of a function's name that travel, for dashboards and messages."""
SECONDS_MAX: Final = 10.0 * 366 * 24 * 3600
"""Ten years: the system refuses to wait for some centuries, and says so too late."""


def check_arguments(
    address: object, max_workers: object, initializer: object, max_tasks_per_child: object
) -> None:
    """Raise TypeError or ValueError if no executor can be made of these; its own texts."""
    if address is not None and not isinstance(address, str | os.PathLike):
        raise TypeError(f"address must be a string or a path, not {type(address).__name__}")
    if max_workers is not None and _whole("max_workers", max_workers) <= 0:
        raise ValueError("max_workers must be greater than 0")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if max_tasks_per_child is not None:
        if not isinstance(max_tasks_per_child, int):
            raise TypeError("max_tasks_per_child must be an integer")
        if max_tasks_per_child <= 0:
            raise ValueError("max_tasks_per_child must be >= 1")


def check_sizes(chunksize: object, buffersize: object) -> None:
    """Raise TypeError or ValueError if ``map`` cannot take these."""
    if _whole("chunksize", chunksize) < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None


def seconds_of(name: str, value: Any) -> float:
    """A time in seconds that was given as the argument ``name``.

    Raises:
        TypeError, ValueError: it is no number, or none that is finite.
    """
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    try:
        seconds = float(value)
    except TypeError:  # an array
        raise TypeError(f"{name} must be one number of seconds, not {shown(value)}") from None
    except (ValueError, OverflowError):  # a signalling NaN; a whole number beyond all floats
        seconds = float("nan")
    if not isfinite(seconds):
        raise ValueError(f"{name} must be a finite number of seconds, not {shown(value)}")
    return seconds


def end_of(timeout: float | None) -> float | None:
    """When a wait that begins now is over, by the monotonic clock; None: never.

    Raises:
        ValueError: ``timeout`` is no number, so that its end would never come.
    """
    if timeout is None:
        return None
    if isnan(timeout):
        raise ValueError("timeout must be a number of seconds, not nan")
    return monotonic() + timeout


def grace_of(value: Any) -> int:
    """The argument ``grace`` of a cancel, in microseconds.

    Raises:
        TypeError, ValueError: it cannot be.
    """
    seconds = seconds_of("grace", value)
    if not 0 <= seconds <= SECONDS_MAX:
        raise ValueError(f"grace must be 0 or more seconds, and at most ten years, not {shown(value)}")
    return int(seconds * 1e6)


def shown(value: object) -> str:
    """How errors show what was given."""
    try:
        return repr(value)[:200]
    except ValueError:  # Python writes no whole numbers that are too long
        return f"such a large {type(value).__name__}"


def default_workers() -> int:
    """How many slots an embedded farm has without a word: ZFARM_MAX_WORKERS, else the usable cores.

    Raises:
        ConfigurationError: the variable is no number.
    """
    from zfarm.edge.cores import usable_cores

    text = os.environ.get("ZFARM_MAX_WORKERS")
    if not text:
        return usable_cores()
    if not text.isdecimal() or not int(text):
        raise ConfigurationError(f"ZFARM_MAX_WORKERS is {text!r}; it must be a whole number greater than 0")
    return int(text)


def name_of(fn: object) -> str:
    """What dashboards and messages call a function."""
    name = getattr(fn, "__qualname__", None)
    if type(name) is not str:
        inner = getattr(fn, "func", None)  # functools.partial
        name = getattr(inner, "__qualname__", None)
        if type(name) is not str:
            name = type(fn).__qualname__
    if not name.isprintable() or len(name) > NAME_MAX:
        name = ascii(name)[1:-1][:NAME_MAX]
    return name


def sized(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """How many items a map over these has, if that can be known without taking them."""
    sizes = [len(one) for one in iterables if isinstance(one, Sized)]
    return min(sizes) if len(sizes) == len(iterables) else None
