"""The heap of a child: large blocks that a call has freed are kept warm for the next one, within a limit, and
given back when there is none; it knows no call.

An allocator asks the system for every large block anew and gives it back at once. The first touch of fresh
pages costs as much as many operations on them, so a task that makes a large array pays more for its memory
than for its arithmetic. glibc can be told to keep blocks; other allocators are left as they are.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from zfarm.edge.cores import usable_cores
from zfarm.edge.glibc import MMAP_THRESHOLD, TRIM_THRESHOLD, tunable
from zfarm.edge.processes import anonymous_bytes
from zfarm.settings import settings

__all__ = ["Heap", "share_bytes"]

_INT_MAX: Final = 2**31 - 1
_GROWN: Final = 32 * 1024 * 1024
"""What glibc lets the threshold for blocks of their own grow to by itself, as blocks are freed."""
_SHARE: Final = 16
"""What is kept is at most the sixteenth part of the memory, in all children together."""


class _Use(ctypes.Structure):
    """struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    )  # fmt: skip


class Heap:
    """The heap of this process."""

    def __init__(self, keep: int | None = None) -> None:
        """``keep``: bytes that it keeps; nothing said: ``share_bytes()``, once that is needed."""
        self._keep = keep
        self._libc = _measurable()
        self.strict = False
        """A call with a limit of its own runs: see ``limit``."""
        self._warm = False
        self._free = 0  # after the last time that it gave back: of that, nothing is in memory
        self._used = 0

    def stir(self) -> None:
        """A call has run that was long enough to leave something: keep it, from now on, within the limit."""
        if self._libc is None or self.strict:
            return
        if not self._warm:
            if self._keep is None:
                self._keep = share_bytes()
            if self._keep <= 2 * _GROWN:
                self._libc = None  # that much it keeps by itself
                return
            self._warm = True
            self._set(self._keep // 2, self._keep)
            return
        keep = self._keep or 0
        free = self._free_bytes()
        if free > keep and max(free - self._free, anonymous_bytes() - self._used) > keep:
            self.cool()

    def limit(self, strict: bool) -> None:
        """While ``strict``, keep no more than any program does: what is free counts as in use where memory is
        limited."""
        self.strict = strict
        if self._warm and self._keep:
            if strict:
                self._set(_GROWN, 2 * _GROWN)
                self.cool()
            else:
                self._set(self._keep // 2, self._keep)

    def cool(self) -> None:
        """Give back all that is free."""
        if self._libc is not None and self._warm:
            self._libc.malloc_trim(0)
            self._free = self._free_bytes()
            self._used = anonymous_bytes()

    def _free_bytes(self) -> int:
        return 0 if self._libc is None else int(self._libc.mallinfo2().fordblks)

    def _set(self, alone: int, at_end: int) -> None:
        assert self._libc is not None
        self._libc.mallopt(MMAP_THRESHOLD, min(alone, _INT_MAX))
        self._libc.mallopt(TRIM_THRESHOLD, min(at_end, _INT_MAX))


def _measurable() -> ctypes.CDLL | None:
    """glibc, where it may be tuned and tells how much is free."""
    libc = tunable()
    if libc is None:
        return None
    try:
        libc.mallinfo2.restype = _Use
        libc.malloc_trim.argtypes = (ctypes.c_size_t,)
    except AttributeError:
        return None
    return libc


@cache
def share_bytes() -> int:
    """What one process may keep of something for its next calls."""
    return min(settings.child_warm_bytes, _memory_bytes() // (_SHARE * usable_cores()))


def _memory_bytes() -> int:
    """The host's memory, or that of the control group that this process is in."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    group = ""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = next(line for line in lines if line.startswith("0::"))[len("0::") :]
    for path in (f"{group}/memory.max", "/memory.max", "/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max", or there is no such file here
            sizes.append(int(Path("/sys/fs/cgroup" + path).read_text()))
    return min(sizes)
