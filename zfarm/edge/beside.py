"""Hidden directories beside what is written, in which it stands until it is whole.

They are locked while somebody is at it, so that whoever finds one that is not may remove it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from zfarm.edge.names import OURS, fold
from zfarm.edge.removal import remove_tree

__all__ = ["PARTS", "beside", "make_parts", "sweep_parts"]

PARTS: Final = OURS + "parts-"
"""What their names begin with."""
_MADE: Final = re.compile(re.escape(PARTS) + "[0-9a-f]{16}")
"""Made here, and of no use to anybody later."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
        name = PARTS + secrets.token_hex(8)
        os.mkdir(name, 0o700, dir_fd=root)
        fd = -1
        with suppress(FileNotFoundError, BlockingIOError):  # somebody sweeps it away before it is locked
            fd = os.open(name, _DIRECTORY, dir_fd=root)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink > 0:
                return name, fd
        if fd >= 0:
            os.close(fd)


def sweep_parts(root: int, downloads: bool = True) -> None:
    """Remove what those who were killed have left half-written in a directory. Parts of ``downloads``, which
    the next program goes on with, may stay."""
    for name in os.listdir(root):
        if not (fold(name).startswith(PARTS) if downloads else _MADE.fullmatch(name)):
            continue
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=root)
        except OSError:
            continue  # a link or a file of somebody, or gone meanwhile
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(name, root)
        except BlockingIOError:
            continue  # in use
        finally:
            os.close(fd)
