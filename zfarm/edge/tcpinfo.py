"""What the kernel knows of TCP connections: the bytes that came, and those that nobody has read; Linux only.

Descriptors are looked at as they are, without a copy: one that was closed meanwhile, or belongs to another
connection by now, gives a number that says nothing. Whoever acts on one makes sure of the far end first.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable
from functools import cache
from typing import Final

__all__ = ["TcpInfo", "available"]

_RECEIVED: Final = 16
"""Which of the 64-bit words of the kernel's struct tcp_info is tcpi_bytes_received: 128 bytes come before it,
and the struct only ever grows at its end."""
_WORDS: Final = 32
_NEEDED: Final = (_RECEIVED + 1) * 8
_TCP_INFO: Final = 11


class TcpInfo:
    """Asks the kernel; for one thread, since what it answers is written to one place."""

    def __init__(self) -> None:
        self._words = (ctypes.c_uint64 * _WORDS)()
        self._size = ctypes.c_uint32()
        self._where = ctypes.addressof(self._words), ctypes.addressof(self._size)
        self._ask: Callable[..., int] = ctypes.CDLL(None).getsockopt
        self._ask.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 2

    def received(self, fd: int) -> int:
        """Bytes that have come on this connection since it was made; -1 when that cannot be told."""
        self._size.value = _WORDS * 8
        if self._ask(fd, socket.IPPROTO_TCP, _TCP_INFO, *self._where) or self._size.value < _NEEDED:
            return -1
        return self._words[_RECEIVED]

    def unread(self, fd: int) -> int:
        """Of these, those that wait in the kernel; 0 when that cannot be told."""
        try:
            answer = fcntl.ioctl(fd, termios.FIONREAD, bytes(4))
        except OSError:
            return 0
        return int(struct.unpack("i", answer)[0])


@cache
def available() -> bool:
    """Whether this kernel tells what came: Linux does since 4.1."""
    if sys.platform != "linux":
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return TcpInfo().received(probe.fileno()) >= 0
