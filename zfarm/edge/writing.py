"""A large file on its way to the disk: its blocks set aside, begun early, and its memory had again where
fresh memory is dear; it opens no file.

What a program writes stays in memory for whoever reads it next, in pages that nobody has used. On most
machines they cost next to nothing. Where a host gives a machine its memory page by page, and takes back what
is free, each costs several times what it takes to write to it, and a program that wrote a gigabyte would
spend most of its time on them. There, those that are on the disk already are used for what comes next.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from contextlib import suppress
from functools import lru_cache
from time import thread_time
from typing import Any, Final

from zfarm.messages import CHUNK_BYTES

__all__ = ["WRITING_BYTES", "Writing", "begin_writing", "linux_function"]

WRITING_BYTES: Final = 8 * CHUNK_BYTES
"""Of a large file that the disk is told to begin with: it works while the rest comes, and little is left for
the sync at the end."""
RESERVED_BYTES: Final = 8 * WRITING_BYTES
"""For which the file system sets aside blocks at a time: to do that page by page, when each is written, costs
the processor as much as to copy the data (ext4: 0.08 of 0.21 ms per MB). Not all at once, since a sender may
claim what never comes."""
DEAR_S: Final = 0.6e-9
"""Of the processor per byte that is written. Copying takes a tenth of that; with pages that were used before
it is 0.2 to 0.4, with fresh ones of a host 1.3 to 2."""
DEAR_WINDOWS: Final = 2
"""So many times ``WRITING_BYTES`` in a row must cost that: once may be chance."""
TRIED_WINDOWS: Final = 8
"""After so many it must have paid off to use pages again: it does not where the processor is what is slow."""
BEHIND_BYTES: Final = 4 * WRITING_BYTES
"""How far back it is tried to have them: what a disk has not taken until then stays in memory."""
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RANGE_WRITE: Final = 2
"""SYNC_FILE_RANGE_WRITE: begin to write what nobody writes yet, and wait for nothing."""


class Trial:
    """Whether it pays off in this process to use pages again, in whatever files."""

    def __init__(self) -> None:
        self._windows = 0
        self._shares = 0.0  # the sum of what each has cost of what fresh pages had

    def note(self, share: float) -> None:
        """A byte has cost this share of what it had with fresh pages."""
        self._windows += 1
        self._shares += share

    @property
    def hopeless(self) -> bool:
        """It was tried, and has not halved the cost."""
        return self._windows >= TRIED_WINDOWS and self._shares > self._windows / 2


_trial = Trial()


class Writing:
    """One file that is written from its beginning to its end."""

    def __init__(self, fd: int, size: int) -> None:
        """``size``: what it will have at its end."""
        self._fd = fd
        self._size = size
        self._reserved = 0  # all before has its blocks
        self._begun = 0  # the disk was told of all before
        self._spent_s = 0.0  # on what was written since
        self._dear = 0  # windows in a row that cost too much
        self._fresh_s = 0.0  # what a byte cost in the last of them

    def prepare(self, at: int) -> None:
        """What begins at ``at`` is about to be written. Raises OSError: there is no room for it."""
        if at >= self._reserved and self._size >= WRITING_BYTES:
            self._reserved = min(at + RESERVED_BYTES, self._size)
            reserve(self._fd, at, self._reserved - at)

    def wrote(self, upto: int, spent_s: float) -> None:
        """All below is written; the last of it took so much of the processor."""
        self._spent_s += spent_s
        size = upto - self._begun
        if size < WRITING_BYTES:
            return
        start, self._begun = self._begun, upto
        begin_writing(self._fd, start, size)
        cost_s, self._spent_s = self._spent_s / size, 0.0
        if self._reuses(cost_s):
            before = thread_time()
            drop(self._fd, max(0, start - BEHIND_BYTES), start)
            self._spent_s = thread_time() - before

    def _reuses(self, cost_s: float) -> bool:
        """Whether pages shall be had again, now that a byte has cost this."""
        if self._dear < DEAR_WINDOWS:
            self._dear = self._dear + 1 if cost_s > DEAR_S else 0
            self._fresh_s = cost_s
        elif not _trial.hopeless:
            _trial.note(cost_s / self._fresh_s)
        return self._dear == DEAR_WINDOWS and not _trial.hopeless


def reserve(fd: int, start: int, size: int) -> None:
    """Have the file system set aside the blocks of this part of a file, where it can.

    Raises:
        OSError: there is no room for them.
    """
    allocate = linux_function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if allocate is not None and allocate(fd, 0, start, size) != 0:
        number = ctypes.get_errno()
        if number in _NO_ROOM:  # all else says that it cannot be done here
            raise OSError(number, os.strerror(number))


def begin_writing(fd: int, start: int, size: int) -> None:
    """Begin early what will be done in any case, when its errors are told: no answer is looked at."""
    begin = linux_function("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if begin is not None:
        begin(fd, start, size, _RANGE_WRITE)


def drop(fd: int, start: int, end: int) -> None:
    """Keep nothing of this part of a file in memory that is on its disk; nobody is waited for."""
    if sys.platform.startswith("linux"):
        with suppress(OSError):
            os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)


@lru_cache(maxsize=3)
def linux_function(name: str, *arguments: Any) -> Any:
    """A function that Linux alone has, or None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = arguments, ctypes.c_int
    return function
