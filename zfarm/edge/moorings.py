"""Mappings of other processes' segments that are kept for the next time: those through which this process
reads, and those through which it writes; what is in the segments, others know.

To fill the page tables of a mapping and to empty them again costs as much as a copy of what is mapped. A
private mapping shows what its segment holds now, but for the pages that were written to through it: those
were copied. So a mapping is kept only if none was, which the system tells (pagemap). Kept ones are bounded in
number and bytes, and no process that is forked gets them. As long as they are kept, they keep their segments'
memory, too: whoever keeps them gives them back when nothing comes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections import OrderedDict, deque
from typing import Any, Final, NamedTuple

from zfarm.edge.heap import share_bytes
from zfarm.edge.segments import PRIVATE, Ref, advise, copy_to, open_ref, place_area, unmap

__all__ = ["KEPT_MAX", "Berths", "Moorings", "is_clean"]

KEPT_MAX: Final = 8
_LEAST_BYTES: Final = 1024 * 1024
"""Smaller ones are as soon mapped anew as looked through."""
_PAGE: Final = mmap.PAGESIZE
_ENTRY_BYTES: Final = 8
_LOOK_BYTES: Final = 128 * 1024
_OF_FILE: Final = bytes((0x00, 0x20, 0xA0, 0xA1))
"""The last byte of the entry of a page that is not there, or is the segment's own: present, of a file, mapped
by one process alone."""
_DONTFORK: Final = 10
_DOFORK: Final = 11
_POPULATE_WRITE: Final = 23  # since Linux 5.14


class _Mooring(NamedTuple):
    address: int
    size: int


class _Kept:
    """Mappings by the tokens of their segments. One thread at a time."""

    def __init__(self, most: int | None = None) -> None:
        """``most``: bytes of kept ones; nothing said: ``share_bytes()``."""
        self.bytes = 0
        """Of those that are kept."""
        self._most = most
        self._moored: OrderedDict[bytes, _Mooring] = OrderedDict()  # the one that was used last at the end
        _all.add(self)

    @property
    def most(self) -> int:
        """Bytes of all that may be kept."""
        if self._most is None:
            self._most = share_bytes()
        return self._most

    def _keep(self, token: bytes, mooring: _Mooring) -> None:
        self._moored[token] = mooring
        self.bytes += mooring.size
        while len(self._moored) > KEPT_MAX or self.bytes > self.most:
            self._drop(next(iter(self._moored)))

    def _drop(self, token: bytes) -> None:
        mooring = self._moored.pop(token)
        self.bytes -= mooring.size
        unmap(*mooring)

    def clear(self) -> None:
        """Keep nothing."""
        while self._moored:
            self._drop(next(iter(self._moored)))

    def forked(self) -> None:
        """This is a process that was forked: it has none of those that are kept."""
        self._moored.clear()
        self.bytes = 0

    def __del__(self) -> None:
        self.clear()


class Moorings(_Kept):
    """Where this process reads. Areas may die in any thread."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__(most)
        self.left: deque[tuple[bytes, _Mooring]] = deque()
        """Those that nobody uses any more, until ``settle``."""
        self._closed = False

    def area_of(self, ref: Ref) -> Any:
        """What another process's segment holds, as ``segments.area_of`` has it. Raises OSError."""
        if any(token == ref.token for token, _ in tuple(self.left)):
            self.settle()
        kept = self._moored.pop(ref.token, None)
        if kept is not None:
            self.bytes -= kept.size
            if kept.size == ref.size and advise(kept.address, kept.size, _DOFORK):
                return self._area(ref.token, kept)
            unmap(*kept)
        fd = open_ref(ref)
        try:
            address = place_area(fd, ref.size, PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)
        return self._area(b"" if ref.spilled else ref.token, _Mooring(address, ref.size))

    def _area(self, token: bytes, mooring: _Mooring) -> Any:
        area = (ctypes.c_ubyte * mooring.size).from_address(mooring.address)
        weakref.finalize(area, self._leave, token, mooring).atexit = False
        return area

    def _leave(self, token: bytes, mooring: _Mooring) -> None:
        """Called in any thread, in the middle of anything."""
        if not token or self._closed or mooring.size < _LEAST_BYTES:
            unmap(*mooring)
        else:
            self.left.append((token, mooring))

    def settle(self) -> None:
        """Keep what nobody uses any more, or unmap it."""
        while self.left:
            token, mooring = self.left.popleft()
            fits = mooring.size <= self.most and token not in self._moored
            if fits and is_clean(*mooring) and advise(*mooring, _DONTFORK):
                self._keep(token, mooring)
            else:
                unmap(*mooring)

    def forget(self, token: bytes) -> None:
        """Do not keep one of this segment: it will not come again."""
        self.settle()
        if token in self._moored:
            self._drop(token)

    def clear(self) -> None:
        self.settle()
        super().clear()

    def close(self) -> None:
        """Keep nothing any more."""
        self._closed = True
        self.clear()

    def forked(self) -> None:
        self._closed = True
        super().forked()
        while self.left:
            unmap(*self.left.popleft()[1])


class Berths(_Kept):
    """Where this process writes, again and again."""

    def write(self, ref: Ref, data: memoryview) -> bool:
        """Put this into another process's segment; False: it cannot be mapped for that, ``write_ref`` it.
        Raises OSError."""
        kept = self._moored.get(ref.token)
        if kept is not None and kept.size < data.nbytes:
            self._drop(ref.token)
            kept = None
        if kept is None:
            kept = self._map(ref, data.nbytes)
            if kept is None:
                return False
            self._keep(ref.token, kept)
        self._moored.move_to_end(ref.token)
        copy_to(kept.address, data)
        return True

    def _map(self, ref: Ref, size: int) -> _Mooring | None:
        if ref.spilled or not _LEAST_BYTES <= size <= self.most:
            return None
        fd = open_ref(ref, write=True)
        try:
            address = place_area(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)
        # one fault for each page costs more than to write without a mapping: all at once, or not at all
        if advise(address, size, _DONTFORK) and advise(address, size, _POPULATE_WRITE):
            return _Mooring(address, size)
        unmap(address, size)
        return None


def is_clean(address: int, size: int) -> bool:
    """Whether every page of a private mapping, or of a part of one, is its file's own, so that nothing was
    written to it. False, too, where the system does not tell."""
    start = address // _PAGE * _ENTRY_BYTES
    entries = -(-(address + size) // _PAGE) * _ENTRY_BYTES - start
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        for at in range(0, entries, _LOOK_BYTES):
            wanted = min(_LOOK_BYTES, entries - at)
            data = os.pread(fd, wanted, start + at)
            if len(data) < wanted or data[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(None, _OF_FILE):
                return False
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


_all: Final[weakref.WeakSet[_Kept]] = weakref.WeakSet()


def _after_fork() -> None:
    for kept in list(_all):
        kept.forked()


os.register_at_fork(after_in_child=_after_fork)
