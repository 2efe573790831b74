"""Files that say by a lock which process has something: free as soon as that is dead, at the latest.

They stay for ever: a lock that is removed can be held twice.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

__all__ = ["Held", "open_lock", "take_lock"]

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Held(Exception):
    """Another process has it: ``holder`` is its number, or what is known of that."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


def open_lock(path: Path) -> int:
    """A descriptor of the file, which is made if need be. Raises OSError."""
    return os.open(path, _FLAGS, 0o600)


def take_lock(path: Path) -> int:
    """The descriptor that has the lock, and says so in the file, until it is closed.

    Raises:
        Held: another process has it.
        OSError: there can be no lock there.
    """
    fd = open_lock(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "that does not say its number"
        os.close(fd)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise Held(holder) from None
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            os.close(fd)
            raise  # on a full disk the lock is ours all the same, and does not say so
    return fd
