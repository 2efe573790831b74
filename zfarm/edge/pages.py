"""Memory for large pieces that come and go: how the C library keeps it, and how it is had without being
cleared; it knows nothing of what is in it.

The first touch of a fresh page costs several times what it costs to copy that page. The GNU C library gives
memory back sooner than a process that passes on megabytes needs the next: by its own rules, which depend on
what was freed before, a broker then touches up to 480 fresh pages for each megabyte.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

from zfarm.edge.glibc import MMAP_THRESHOLD, TOP_PAD, TRIM_THRESHOLD, tunable

__all__ = ["KEPT_BYTES", "keep_freed_memory", "room"]

KEPT_BYTES: Final = 32 * 1024 * 1024
"""What is kept when it is free, of each thread that had it: the windows of two streams of files."""
_ALONE_FROM: Final = 8 * 1024 * 1024
"""Larger pieces are mapped each for itself, and given back at once: they are rare, and would leave holes."""
_GROWS_BY: Final = 16 * 1024 * 1024
"""Of address space: pages that are not used are not there."""


def keep_freed_memory() -> bool:
    """Have this process keep some of the memory that it has freed; False: its C library cannot be told, or
    was told something by whoever started this process.

    For processes of our own, never for the user's: what is good for a broker may be wrong for them.
    """
    libc = tunable()
    if libc is None:
        return False
    rules = ((TRIM_THRESHOLD, KEPT_BYTES), (TOP_PAD, _GROWS_BY), (MMAP_THRESHOLD, _ALONE_FROM))
    told: int = sum(libc.mallopt(number, size) for number, size in rules)
    return told == len(rules)


def _uncleared() -> Any:
    kind = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)
    try:
        return kind(("PyByteArray_FromStringAndSize", ctypes.pythonapi))
    except AttributeError:
        return None


_make: Final = _uncleared()


def room(size: int) -> bytearray:
    """A bytearray of so many bytes that are whatever was there before: all of it has to be written.

    Clearing a megabyte takes as long as to read one from a pipe.
    """
    if _make is None:
        return bytearray(size)
    made: bytearray = _make(None, size)
    return made
