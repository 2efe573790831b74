"""Hidden directories beside what is written, in which it stands until it is whole.

They are locked while somebody is at it, so that whoever finds one that is not may remove it: on the same host
only, as some file systems that hosts share know no locks of the others. Where there are no locks at all, they
stay when their program is killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from zfarm.edge.names import OURS, fold
from zfarm.edge.removal import remove_tree

__all__ = ["PARTS", "beside", "make_parts", "parts_name", "sweep_parts"]

PARTS: Final = OURS + "parts-"
"""What their names begin with."""
_MADE: Final = re.compile("[0-9a-f]{16}")
"""What follows in those that are made here, and are of no use to anybody later."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def parts_name(rest: str) -> str:
    """The name of one of this host."""
    host = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
    return f"{PARTS}{host}-{rest}"


@contextmanager
def beside(parent: Path) -> Iterator[Path]:
    """A directory in ``parent``, which goes with all that is in it at the end of the block; before, what the
    dead have left there goes. Raises OSError."""
    root = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sweep_parts(root, downloads=False)
        name, fd = make_parts(root)
        try:
            yield parent / name
        finally:
            remove_tree(name, root)
            os.close(fd)
    finally:
        os.close(root)


def make_parts(root: int) -> tuple[str, int]:
    """Make one in a directory: its name, and a descriptor that holds its lock. Raises OSError."""
    while True:
        name = parts_name(secrets.token_hex(8))
        os.mkdir(name, 0o700, dir_fd=root)
        fd = -1
        with suppress(FileNotFoundError, BlockingIOError):  # somebody sweeps it away before it is locked
            fd = os.open(name, _DIRECTORY, dir_fd=root)
            _lock(fd)
            if os.fstat(fd).st_nlink > 0:
                return name, fd
        if fd >= 0:
            os.close(fd)


def sweep_parts(root: int, downloads: bool = True) -> None:
    """Remove what those who were killed have left half-written in a directory. Parts of ``downloads``, which
    the next program goes on with, may stay."""
    start = parts_name("")
    for name in os.listdir(root):
        if not fold(name).startswith(start) or not (downloads or _MADE.fullmatch(name[len(start) :])):
            continue
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=root)
        except OSError:
            continue  # a link or a file of somebody, or gone meanwhile
        try:
            if os.fstat(fd).st_uid == os.geteuid() and _lock(fd):
                remove_tree(name, root)
        except BlockingIOError:
            continue  # in use
        finally:
            os.close(fd)


def _lock(fd: int) -> bool:
    """False: there are no locks here. Raises BlockingIOError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
