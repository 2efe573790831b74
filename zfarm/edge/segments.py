"""Shared memory that processes of one host hand each other: made, opened, mapped, recycled and bounded here;
what is in it, others know.

A segment is a memfd: nothing names it, so the kernel frees it with the last process that holds or maps it,
however those end. Another process of the same user opens it through ``/proc/PID/fd/N`` and checks the token
that stands at its end: that number may be another file by now. The first touch of fresh memory costs far more
than a copy into memory that was touched before, so a pool keeps what is free, and hands it out again. One of
which nobody says whether others look at it is renewed, when the system tells that nobody has it open: it gets
another token, so that no reference to what was in it leads to what will be.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final, NamedTuple

from zfarm.edge.leases import is_at_rest, memory_file
from zfarm.settings import Settings, settings

__all__ = [
    "POSSIBLE",
    "PRIVATE",
    "TOKEN_BYTES",
    "Pool",
    "Ref",
    "Segment",
    "Slice",
    "address_of",
    "advise",
    "area_of",
    "bytes_of",
    "copy_to",
    "leases_tell",
    "map_area",
    "open_ref",
    "place_area",
    "same",
    "unmap",
    "write_ref",
]

POSSIBLE: Final = sys.platform == "linux" and hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")
"""Whether this system can do any of this."""
TOKEN_BYTES: Final = 16
_SMALLEST: Final = 64 * 1024
_PIECE_BYTES: Final = 16 * 1024 * 1024
"""Copied in one go: other threads may run in between."""
_FAILED: Final = ctypes.c_void_p(-1).value
_NORESERVE: Final = 0x4000 if sys.platform == "linux" else 0
PRIVATE: Final = mmap.MAP_PRIVATE | _NORESERVE
"""How to map what is to be read at once, and copied page by page where it is written to."""


class Ref(NamedTuple):
    """Where another process finds what is in a segment: ``size`` bytes of it. A spilled one is no memory, but
    a file."""

    token: bytes
    pid: int
    fd: int
    size: int
    spilled: bool = False


class Slice(NamedTuple):
    """Some of what is in a segment that its reader owns: ``size`` bytes from ``start`` on."""

    ref: Ref
    start: int
    size: int


class Segment:
    """One segment of this process."""

    __slots__ = (
        "__weakref__",
        "_area",
        "blob",
        "capacity",
        "fd",
        "home",
        "key",
        "landed",
        "size",
        "spilled",
        "tainted",
        "token",
        "touched",
        "users",
    )

    def __init__(self, capacity: int, folder: str = "") -> None:
        """Make one of ``capacity`` bytes in memory, or in a file of ``folder`` without a name. Raises
        OSError."""
        self.token = os.urandom(TOKEN_BYTES)
        self.capacity = capacity
        self.size = 0  # of what is in it now
        self.touched = 0  # bytes that were ever written, and so are taken
        self.spilled = bool(folder)  # it is a file of a folder
        self.fd = -1
        self.users = 0
        self.landed = 0  # how many results its owner has mapped from it
        self.home = 0  # the only one who may be given it, since it may have it mapped; 0: anybody
        self.tainted = False  # somebody may look at it when its users are gone: not to be written to as it is
        self.key: Any = None
        self.blob: Any = None  # what zfarm.edge.bales has made of it
        self._area: Any = None
        if not folder:
            self.fd = memory_file(f"zfarm-{self.token.hex()}")
        else:
            self.fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(self.fd, self.token, capacity)
        except OSError:
            self.close()
            raise

    def ref(self) -> Ref:
        """How others find it."""
        return Ref(self.token, os.getpid(), self.fd, self.size, self.spilled)

    def renew(self) -> bool:
        """Make it as good as a new one: nobody else maps it, and no reference to it opens it any more. False:
        somebody else has it open or mapped, or nobody can tell.

        Who opens it before its token has changed is seen by the second look; who comes later finds that it is
        not what is looked for.
        """
        if not (leases_tell() and is_at_rest(self.fd)):
            return False
        token = os.urandom(TOKEN_BYTES)
        try:
            os.pwrite(self.fd, token, self.capacity)
        except OSError:
            return False
        self.token = token
        self.tainted = not is_at_rest(self.fd)
        return not self.tainted

    def write(self, data: memoryview) -> None:
        """Put this into it, and nothing else. Raises OSError."""
        size = data.nbytes
        if self.spilled:  # a full disk is an error of a write, but the end of a process that maps it
            _write_all(self.fd, data)
        else:
            copy_to(ctypes.addressof(self.area), data)
        self.size = size
        self.touched = max(self.touched, size)

    @property
    def area(self) -> Any:
        """It, mapped; one mapping, which is kept. Raises OSError."""
        if self._area is None:
            protection = mmap.PROT_READ if self.spilled else mmap.PROT_READ | mmap.PROT_WRITE
            self._area = map_area(self.fd, self.capacity, mmap.MAP_SHARED, protection)
        return self._area

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give it back: the memory is free when nobody else maps it."""
        self._area = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _write_all(fd: int, data: memoryview) -> None:
    at = 0
    while at < data.nbytes:
        at += os.pwrite(fd, data[at : at + _PIECE_BYTES], at)


def open_ref(ref: Ref, write: bool = False) -> int:
    """A descriptor of another process's segment.

    Raises:
        OSError: it is not there, or is not that segment any more.
    """
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
    fd = os.open(f"/proc/{ref.pid:d}/fd/{ref.fd:d}", flags)
    try:
        name = os.readlink(f"/proc/self/fd/{fd}")
        fits = name.endswith(" (deleted)") if ref.spilled else name.startswith("/memfd:zfarm-")
        capacity = os.fstat(fd).st_size - TOKEN_BYTES
        if not fits or capacity < ref.size or os.pread(fd, TOKEN_BYTES, capacity) != ref.token:
            raise FileNotFoundError(f"descriptor {ref.fd} of process {ref.pid} is another file now")
    except BaseException:
        os.close(fd)
        raise
    return fd


def area_of(ref: Ref) -> Any:
    """What another process's segment holds, as a private copy: to be read at once, and copied page by page
    where it is written to. Raises OSError."""
    fd = open_ref(ref)
    try:
        return map_area(fd, ref.size, PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)


def write_ref(ref: Ref, data: memoryview) -> None:
    """Put this into another process's segment. Raises OSError."""
    fd = open_ref(ref, write=True)
    try:
        _write_all(fd, data)
    finally:
        os.close(fd)


def bytes_of(area: Any) -> memoryview:
    """The bytes of an area; it stays mapped as long as anybody holds them, or a part of them."""
    return pickle.PickleBuffer(area).raw()  # a view of the area itself has a format that no library expects


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_ssize_t
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.memcpy.restype = None
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def place_area(fd: int, size: int, flags: int, protection: int) -> int:
    """Map a file; the address, which is the caller's to unmap. Raises OSError."""
    address = _libc.mmap(None, size, protection, flags, fd, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(address)


def map_area(fd: int, size: int, flags: int, protection: int) -> Any:
    """Map a file: an object that exports its bytes as a buffer, can be weakly referred to, and unmaps them
    when nobody refers to it any more. Not the standard library's, which holds a descriptor for each mapping.
    Raises OSError."""
    address = place_area(fd, size, flags, protection)
    area = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(area, _libc.munmap, address, size).atexit = False
    return area


def unmap(address: int, size: int) -> None:
    """Undo ``place_area``."""
    _libc.munmap(address, size)


def advise(address: int, size: int, advice: int) -> bool:
    """Tell the system something of a mapping (madvise); whether it has taken it."""
    return not _libc.madvise(address, size, advice)


class _Buffer(ctypes.Structure):
    """Py_buffer: the only way to the address of a buffer that is not writable."""

    _fields_ = (
        ("buf", ctypes.c_void_p), ("obj", ctypes.c_void_p), ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    )  # fmt: skip


_get_buffer: Final = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release_buffer: Final = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_Buffer),)
_release_buffer.restype = None


@contextmanager
def address_of(data: memoryview) -> Iterator[int]:
    """Where these bytes are, writable or not."""
    buffer = _Buffer()
    _get_buffer(data, ctypes.byref(buffer), 0)
    try:
        yield buffer.buf
    finally:
        _release_buffer(ctypes.byref(buffer))


def same(area: Any, data: memoryview) -> bool:
    """Whether these bytes are what the area begins with: every single one is compared."""
    with address_of(data) as address:
        return not _libc.memcmp(ctypes.addressof(area), address, data.nbytes)


def copy_to(address: int, data: memoryview) -> None:
    """Put bytes into a mapping; other threads run meanwhile."""
    with address_of(data) as source:
        _libc.memcpy(address, source, data.nbytes)


@cache
def leases_tell() -> bool:
    """Whether the system notices who has a segment open or mapped, and nobody else: tried once."""
    try:
        fd = memory_file("zfarm-lease")
    except OSError:
        return False
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        return is_at_rest(fd) and _others_are_seen(fd) and is_at_rest(fd)
    except OSError:
        return False
    finally:
        os.close(fd)


def _others_are_seen(fd: int) -> bool:
    for way in (os.O_RDONLY, os.O_RDWR):
        other = os.open(f"/proc/self/fd/{fd:d}", way | os.O_CLOEXEC)
        try:
            opened = not is_at_rest(fd)
            address = place_area(other, mmap.PAGESIZE, PRIVATE, mmap.PROT_READ)
        finally:
            os.close(other)
        mapped = not is_at_rest(fd)
        unmap(address, mmap.PAGESIZE)
        if not (opened and mapped):
            return False
    return True


class Pool:
    """The segments of one process: how many bytes they may have, and those that are free. One thread at a
    time."""

    def __init__(self, limits: Settings = settings, forget: Callable[[Segment], None] | None = None) -> None:
        """``forget`` is told of a segment whose content is about to go."""
        self._limits = limits
        self._most = min(limits.shared_bytes_max, _memory_bytes() // 4)
        self._forget = forget or (lambda segment: None)
        self._free: OrderedDict[Segment, None] = OrderedDict()  # the one that was free for longest first
        self._cold: set[Segment] = set()
        self.bytes = 0
        """In memory, the free ones included."""
        self.warm = 0
        """Of that, free."""
        self.spilled = 0
        """In files."""
        self.count = 0
        """How many there are: each is a descriptor."""

    def take(self, size: int, home: int = 0) -> Segment | None:
        """A segment for so many bytes, which belongs to the caller until ``give``, sooner one of this home
        than one without; None: there is no room for it."""
        capacity = max(_SMALLEST, 1 << (size - 1).bit_length())
        fitting = [one for one in self._free if one.capacity == capacity]
        for segment in sorted(fitting, key=lambda one: (one.tainted, one.home != home)):
            if segment.home in (0, home) and (not segment.tainted or segment.renew()):
                self.reclaim(segment)
                self._forget(segment)
                self.bytes += max(0, size - segment.touched)
                segment.touched = max(segment.touched, size)
                return segment
        while self._free and (
            self.bytes + size > self._most or self.count >= self._limits.shared_segments_max
        ):
            self._drop_oldest()
        if self.count >= self._limits.shared_segments_max:
            return None
        spill = self.bytes + size > self._most
        if spill and self.spilled + size > self._limits.shared_spill_max:
            return None
        try:
            segment = Segment(capacity, _spill_folder() if spill else "")
        except OSError:
            return None
        self.count += 1
        segment.touched = size
        if spill:
            self.spilled += size
        else:
            self.bytes += size
        return segment

    def reclaim(self, segment: Segment) -> None:
        """A free segment is in use again, with what it holds."""
        self._cold.discard(segment)
        del self._free[segment]
        self.warm -= segment.touched

    def is_free(self, segment: Segment) -> bool:
        """Whether it may be reclaimed."""
        return segment in self._free

    def give(self, segment: Segment) -> None:
        """A segment is not needed now: it is kept as long as there is room. What is in it stays. One that is
        not tainted may be written to, since nobody else maps it; another one when it can be renewed."""
        if segment.spilled or segment.touched > self._limits.shared_warm_bytes:
            self.drop(segment)
            return
        self._free[segment] = None
        self.warm += segment.touched
        while self.warm > self._limits.shared_warm_bytes:
            self._drop_oldest()

    def drop(self, segment: Segment) -> None:
        """A segment is not needed any more."""
        self.hand_over(segment)
        self.handed_over_went(segment)

    def hand_over(self, segment: Segment) -> None:
        """A segment is another process's from now on, which has it open: what it takes counts as before."""
        self._forget(segment)
        self.count -= 1
        segment.close()

    def handed_over_went(self, segment: Segment) -> None:
        """Nobody has it any more."""
        if segment.spilled:
            self.spilled -= segment.touched
        else:
            self.bytes -= segment.touched

    def cool(self) -> None:
        """Give back what has been free since this was last called."""
        cold, self._cold = self._cold & self._free.keys(), set(self._free)
        for segment in cold:
            self.reclaim(segment)
            self.drop(segment)

    def trim(self) -> None:
        """Give back all that is free."""
        while self._free:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        segment = next(iter(self._free))
        self.reclaim(segment)
        self.drop(segment)


def _spill_folder() -> str:
    import tempfile

    return tempfile.gettempdir()


def _memory_bytes() -> int:
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 1 << 62
