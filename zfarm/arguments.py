"""What the arguments of an executor and of its map may be, and what stands in for those not given."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sized
from typing import Any, Final

from zfarm.errors import ConfigurationError

__all__ = ["check_arguments", "check_sizes", "default_workers", "name_of", "picklers", "sized"]

picklers: Final[set[int]] = set()
"""Threads that have pickled a handle of a file since somebody looked (zfarm.handles)."""

NAME_MAX: Final = 200
"""Characters of a function's name that travel, for dashboards and messages."""


def check_arguments(
    address: object, max_workers: object, initializer: object, max_tasks_per_child: object
) -> None:
    """Raise TypeError or ValueError if no executor can be made of these; its own texts."""
    if address is not None and not isinstance(address, str | os.PathLike):
        raise TypeError(f"address must be a string or a path, not {type(address).__name__}")
    if max_workers is not None and operator.index(max_workers) <= 0:  # type: ignore[arg-type]
        raise ValueError("max_workers must be greater than 0")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if max_tasks_per_child is not None:
        if not isinstance(max_tasks_per_child, int):
            raise TypeError("max_tasks_per_child must be an integer")
        if max_tasks_per_child <= 0:
            raise ValueError("max_tasks_per_child must be >= 1")


def check_sizes(chunksize: int, buffersize: object) -> None:
    """Raise TypeError or ValueError if ``map`` cannot take these."""
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


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
