"""The directories of a store of files, how much is in them, and what has to go when there is too much.

    blobs/DIGEST-SIZE    a file, complete, read-only        parts/    what is being written
    trees/DIGEST-SIZE    a directory, made of blobs         making    locked while one is made

It removes nothing that is locked, nor what handles of clients name (zfarm.edge.pins).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from zfarm.edge.pins import Pins
from zfarm.edge.places import private_directory
from zfarm.edge.removal import remove_tree
from zfarm.errors import TransferError

__all__ = ["DIRECTORY", "PART", "READ", "Storeroom"]

KEPT_SHARE: Final = 0.9
"""How full a store is after it was found too full."""
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
PART: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_PART_NAME: Final = re.compile(r"[0-9a-f]{64}-\d+|tree-.*")
"""What is gone on with later, or has no lock of its own; it goes when room is needed."""


class Storeroom:
    """The place that a store has."""

    def __init__(self, root: Path, bytes_max: int) -> None:
        """Make it if need be. Raises ConfigurationError, OSError."""
        self.root = private_directory(root, create=True)
        self._bytes_max = bytes_max
        self._top = os.open(root, DIRECTORY)
        for name in ("blobs", "parts", "trees"):
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._top)
        self._blobs, self._parts, self._trees = (
            os.open(name, DIRECTORY, dir_fd=self._top) for name in ("blobs", "parts", "trees")
        )
        self._known: dict[str, tuple[int, int, int]] = {}  # verified: inode, size and time
        self._bytes = -1
        self.pins = Pins(root)
        self.pinned_bytes = 0
        """Bytes of what handles named when room was needed last."""
        self._sweep()

    def _sweep(self) -> None:
        """Remove what the dead have left without a name."""
        for name in os.listdir(self._parts):
            if not _PART_NAME.fullmatch(name):
                self._remove("parts", name)

    def _make_room(self, size: int) -> None:
        """See to it that so much more can be kept. Raises TransferError: it cannot."""
        if size > self._bytes_max:
            raise TransferError(
                f"files of {size:,} bytes are more than the store of this worker may have "
                f"({self._bytes_max:,} bytes): set ZFARM_STORE_BYTES_MAX for it"
            )
        if self._bytes < 0 or self._bytes + size > self._bytes_max:
            self._evict(size)
        disk = os.fstatvfs(self._top)
        if size > disk.f_bavail * disk.f_frsize:
            self._evict(self._bytes_max)
            disk = os.fstatvfs(self._top)
            if size > disk.f_bavail * disk.f_frsize:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _evict(self, size: int) -> None:
        """Count what there is, and remove what was not used for longest, until there is room."""
        found: list[tuple[int, int, str, str]] = []
        total = 0
        for kind in ("blobs", "trees", "parts"):
            with os.scandir(self.root / kind) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        bytes_ = status.st_size if kind != "trees" else _copied_bytes(entry.path)
                        used = status.st_atime_ns if kind == "blobs" else status.st_mtime_ns
                        total += bytes_
                        found.append((used, bytes_, kind, entry.name))
        self._bytes = total
        if total + size <= self._bytes_max:
            return
        making = os.open("making", PART, 0o600, dir_fd=self._top)
        try:
            fcntl.flock(making, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self.pins.frozen() as pinned:
                self._remove_unpinned(found, size, pinned)
        except BlockingIOError:
            return  # a directory is being made: what it needs must stay
        finally:
            os.close(making)

    def _remove_unpinned(self, found: list[tuple[int, int, str, str]], size: int, pinned: set[str]) -> None:
        most = max(0, int(self._bytes_max * KEPT_SHARE) - size)
        self.pinned_bytes = sum(
            bytes_ for _, bytes_, kind, name in found if kind == "blobs" and name in pinned
        )
        for _, bytes_, kind, name in sorted(found):
            if self._bytes <= most:
                return
            if not (kind == "blobs" and name in pinned) and self._remove(kind, name):
                self._bytes -= bytes_

    def _remove(self, kind: str, name: str) -> bool:
        """Remove this unless it is in use."""
        try:
            fd = os.open(
                name, READ, dir_fd={"blobs": self._blobs, "trees": self._trees}.get(kind, self._parts)
            )
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if kind == "trees":
                self._remove_tree(name)
            elif kind == "blobs":
                os.unlink(name, dir_fd=self._blobs)
            else:
                remove_tree(self.root / "parts" / name)
            self._known.pop(name, None)
            return True
        except (BlockingIOError, FileNotFoundError):
            return False
        finally:
            os.close(fd)

    def _remove_tree(self, name: str) -> None:
        """Take a directory away first, and remove it then: nobody finds a half one."""
        gone = "gone-" + secrets.token_hex(12)
        with suppress(FileNotFoundError):
            os.rename(name, gone, src_dir_fd=self._trees, dst_dir_fd=self._parts)
            remove_tree(self.root / "parts" / gone)
        self._known.pop("tree " + name, None)


def _copied_bytes(path: str) -> int:
    """Bytes of a directory's files that are not the very blobs."""
    total = 0
    for at, _, files in os.walk(path):
        for base in files:
            with suppress(FileNotFoundError):
                status = os.lstat(os.path.join(at, base))
                total += status.st_size if status.st_nlink == 1 else 0
    return total
