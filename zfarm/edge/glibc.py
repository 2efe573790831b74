"""The allocator of the GNU C library, for those who tell it what to keep; it knows nothing of how much.

The C library of another system may have functions of the same names that want other numbers. What its user
has told it counts: a limit that we set would take the place of theirs.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

__all__ = ["MMAP_THRESHOLD", "TOP_PAD", "TRIM_THRESHOLD", "tunable"]

TRIM_THRESHOLD: Final = -1
"""Of mallopt: free bytes at the end of the heap, beyond which they are given back."""
TOP_PAD: Final = -2
"""Of mallopt: bytes by which the heap grows beyond what is needed, and which stay when it shrinks."""
MMAP_THRESHOLD: Final = -3
"""Of mallopt: blocks of that size and above are asked for alone."""
_TUNED: Final = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def tunable() -> ctypes.CDLL | None:
    """That library, with ``mallopt``; None: somebody has tuned it, or this system has another one."""
    if any(name in os.environ for name in _TUNED) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - whether it is the GNU one
        libc.mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    except (OSError, AttributeError):
        return None
    return libc
