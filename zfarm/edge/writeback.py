"""Having a disk begin early with what will be synced; what the file is, others know.

A kernel keeps what was written in memory for seconds, so that a sync at the end finds all of it still to be
done. Begun while the rest is copied or received, it costs no time of its own. Nothing is promised here: only
the sync that follows makes a file safe, and tells of errors.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any, Final

__all__ = ["SOON_BYTES", "write_soon"]

SOON_BYTES: Final = 4 * 1024 * 1024
"""Large enough for a disk to be at its best, small enough to leave little for the end."""
_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE: begin, wait for nothing


def write_soon(fd: int, end: int) -> None:
    """``fd`` was written up to ``end``, and will be synced: begin with what is a whole piece of it now."""
    if end and end % SOON_BYTES == 0:
        begin = _sync_file_range()
        if begin is not None:
            begin(fd, end - SOON_BYTES, SOON_BYTES, _WRITE)


@lru_cache(maxsize=1)
def _sync_file_range() -> Any:
    """Linux's sync_file_range, or None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    function.restype = ctypes.c_int
    return function
