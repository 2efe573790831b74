"""The page that a worker and one child share: which call runs, which are void, which results wait.

It outlives the child, so that a worker knows exactly what a child that died was doing. Nobody locks anything;
each word has one writer, and these are the rules that make it safe:

* A child enters the number of a call *before* it runs it (``start``), so a call whose number was never
  entered has never run.
* Taking back takes two steps. ``void`` writes the range of the calls that shall not start; a turn later, and
  at least a millisecond, ``settle`` reads which call was entered last, and everything behind it is void for
  good. The child reads the range before and after it enters a number. Say it did not see the range after
  entering: then its entry came before the worker's write became visible, and it is visible itself long before
  that millisecond has passed (a store waits in a core's buffer for nanoseconds, and switching to another
  process empties it): the worker sees that the call has started. Say it did see the range, but only after
  entering: then the worker may have read either number, and the child waits until the worker has settled, and
  does what that says.
* Results are appended behind the last one and then counted, with one store of the new length. ``clear``
  begins a new generation. So what was counted in a generation stays as it is until the next one, and a reader
  that finds the same generation afterwards has read what was written. ``mark`` is taken at least a
  millisecond before ``unsent`` reads, for the same reason as above; a child that is dead writes nothing any
  more.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from typing import Final, NamedTuple

from zfarm.messages import Done

__all__ = ["PAGE_BYTES", "ChildPage", "Mark", "Page"]

RESULTS_BYTES: Final = 64 * 1024
_WORDS: Final = 64  # of 8 bytes; the two sides write into cache lines of their own
_RESULTS_AT: Final = _WORDS * 8
PAGE_BYTES: Final = _RESULTS_AT + RESULTS_BYTES

_STARTED: Final = 0  # by the child
_GENERATION: Final = 1  # by the child
_USED: Final = 2  # by the child
_LOW: Final = 8  # by the worker
_HIGH: Final = 9  # by the worker
_ASKED: Final = 10  # by the worker
_SETTLED: Final = 11  # by the worker

_ENTRY: Final = struct.Struct("<QIQI")
_ENTRY_BYTES: Final = _ENTRY.size
_pack_entry: Final = _ENTRY.pack
_VERDICT_POLL_S: Final = 0.0005


class Mark(NamedTuple):
    """How far the unsent results reached at one moment."""

    generation: int
    used: int


class Page:
    """The worker's side."""

    def __init__(self) -> None:
        self.fd = _shared_memory()
        self._map = mmap.mmap(self.fd, PAGE_BYTES)
        self._words = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Unmap it; the child's mapping is not touched."""
        self._words.release()
        self._map.close()
        self.close_fd()

    def close_fd(self) -> None:
        """Close the descriptor, which is of no use once the child has it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def started(self) -> int:
        """The last call that was entered; 0: none."""
        return int(self._words[_STARTED])

    def void(self, last: int) -> None:
        """First step of taking back: the calls after the running one up to number ``last`` shall not start.

        ``last`` is the last call that was sent; no other may be sent before ``settle``.
        """
        words = self._words
        words[_ASKED] = words[_ASKED] + 1
        words[_HIGH] = last
        words[_LOW] = words[_STARTED] + 1

    def settle(self) -> int:
        """Second step, a millisecond later: the last call that has started; those behind it never will."""
        words = self._words
        started = int(words[_STARTED])
        words[_LOW] = started + 1
        words[_SETTLED] = words[_ASKED]
        return started

    def mark(self) -> Mark:
        """How far the unsent results reach now."""
        return Mark(int(self._words[_GENERATION]), int(self._words[_USED]))

    def unsent(self, mark: Mark) -> list[tuple[Done, bytes]]:
        """The results up to ``mark`` that have not been sent; none if they were sent meanwhile."""
        if not 0 < mark.used <= RESULTS_BYTES:
            return []
        data = self._map[_RESULTS_AT : _RESULTS_AT + mark.used]
        if int(self._words[_GENERATION]) != mark.generation:
            return []
        found = []
        at = 0
        while at + _ENTRY.size <= mark.used:
            seq, kind, run_us, size = _ENTRY.unpack_from(data, at)
            at += _ENTRY.size
            if at + size > mark.used:
                break  # written by somebody who should not have
            found.append((Done(seq, kind, run_us), data[at : at + size]))
            at += size
        return found


class ChildPage:
    """The child's side. A call that runs may have overwritten the page: that harms only this child."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES)
        self._words = memoryview(self._map).cast("Q")
        self._used = 0
        self.entered = 0
        """The number of the call that runs, or ran last: also without a look into the page."""

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._map.close()

    def start(self, seq: int) -> bool:
        """Enter the number of the call that runs next. False: it is void, skip it."""
        words = self._words
        if seq <= words[_HIGH]:  # numbers grow: what is not above the range and has not started is in it
            return False
        words[_STARTED] = seq
        if seq <= words[_HIGH]:
            return self._verdict(seq)
        self.entered = seq
        return True

    def _verdict(self, seq: int) -> bool:
        """The range came while the number was entered: the worker has the last word, a turn later."""
        words = self._words
        while words[_SETTLED] != words[_ASKED]:
            time.sleep(_VERDICT_POLL_S)  # a page cannot be waited for
        if words[_LOW] <= seq:
            words[_STARTED] = self.entered
            return False
        self.entered = seq
        return True

    def keep(self, seq: int, kind: int, run_us: int, blob: bytes) -> bool:
        """Put a result into the page until it is sent. False: there is no room for it."""
        at = self._used
        after = at + _ENTRY_BYTES + len(blob)
        if after > RESULTS_BYTES:
            return False
        self._map[_RESULTS_AT + at : _RESULTS_AT + after] = _pack_entry(seq, kind, run_us, len(blob)) + blob
        self._words[_USED] = self._used = after
        return True

    def clear(self) -> None:
        """All results were sent."""
        if self._used:
            self._words[_GENERATION] = self._words[_GENERATION] + 1
            self._words[_USED] = self._used = 0


def _shared_memory() -> int:
    """A descriptor of fresh memory that a forked child can map."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("zfarm-page", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile(prefix="zfarm-page") as file:  # unlinked at once
            fd = os.dup(file.fileno())
    os.ftruncate(fd, PAGE_BYTES)
    return fd
