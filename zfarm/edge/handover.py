"""Files that change hands on one host: a child lays them ready, the client takes them; no byte travels.

A snapshot of the file is put under a number into a scratch directory of the child, or the file itself if
nobody else has it open. Who takes it moves it away by one rename, and so does the child when nobody has come
for it: exactly one of them gets it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from typing import Final

from zfarm.edge.parcels import Handed
from zfarm.edge.scratch import scratch_root
from zfarm.edge.writing import WRITING_BYTES, begin_writing
from zfarm.errors import ConfigurationError

__all__ = [
    "HANDED_FROM_BYTES",
    "Givers",
    "copy_content",
    "copy_some",
    "snapshot",
    "take_back",
]

HANDED_FROM_BYTES: Final = 1024 * 1024
"""A smaller file is sent sooner than it is handed over."""
_SCRATCH: Final = re.compile("[0-9a-f]{16}")
_FICLONE: Final = 0x40049409
_COPY_BYTES: Final = 8 * 1024 * 1024
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def snapshot(fd: int, path: str, size: int) -> None:
    """Make a file of the first ``size`` bytes of another one at ``path``, sharing its blocks where the file
    system can.

    Raises:
        OSError: that cannot be done, or there are not so many (any more). Then there is no such file.
    """
    out = os.open(path, _NEW, 0o600)
    try:
        if copy_content(fd, out, size, kept=True) < size:
            raise OSError(errno.ENODATA, "it got shorter")
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(out)


def copy_content(source: int, target: int, most: int = 1 << 62, kept: bool = False) -> int:
    """Copy a file, or at ``most`` so many bytes of it, into an empty one, by the kernel if it can; the bytes
    copied. ``kept``: it will be synced, and the disk may begin with that. Raises OSError."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        pass  # most file systems share no blocks
    else:
        if os.fstat(target).st_size > most:
            os.ftruncate(target, most)
        return os.fstat(target).st_size
    at = begun = 0
    while got := copy_some(source, target, min(_COPY_BYTES, most - at), at):
        at += got
        if kept and at >= begun + WRITING_BYTES:
            begin_writing(target, begun, at - begun)
            begun = at
    return at


def copy_some(source: int, target: int, count: int, at: int) -> int:
    """Copy some bytes to the same place, by the kernel if it can; how many, 0: at the end. Raises OSError."""
    try:
        return os.copy_file_range(source, target, count, at, at)
    except (AttributeError, OSError) as error:
        kinds = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
        if isinstance(error, OSError) and error.errno not in kinds:
            raise
    data = os.pread(source, min(count, 1024 * 1024), at)
    return os.pwrite(target, data, at) if data else 0


def take_back(directory: int, number: int) -> int | None:
    """Open a file that was laid ready, if nobody has taken it, so that nobody will; None: somebody has."""
    name = str(number)
    try:
        os.rename(name, name + "-back", src_dir_fd=directory, dst_dir_fd=directory)
    except FileNotFoundError:
        return None
    return os.open(name + "-back", _OPEN, dir_fd=directory)


class Givers:
    """The scratch directories of this user from which files are taken; the last one is held open."""

    def __init__(self) -> None:
        self._name = ""
        self._fd = -1

    def take(self, handed: Handed, folder: int, name: str) -> int | None:
        """Move a file that lies ready on this host into the directory ``folder`` under ``name``, and open it.

        None: there is none, or none of ours; it is left to its owner. Only numbered files of this user's
        scratch directories are ever touched.

        Raises:
            OSError: it cannot be written there. It has been taken all the same.
        """
        if not self._find(handed.scratch):
            return None
        source, near = str(int(handed.number)), self._fd
        try:
            fd = os.open(source, _OPEN, dir_fd=near)
        except OSError:
            return None
        status = os.fstat(fd)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1
        if not ours or status.st_size != handed.head.size:
            os.close(fd)
            return None
        try:
            os.rename(source, name, src_dir_fd=near, dst_dir_fd=folder)
            return fd
        except FileNotFoundError:  # its owner has taken it back just now
            os.close(fd)
            return None
        except OSError as error:
            if error.errno != errno.EXDEV:
                os.close(fd)
                return None
        try:
            os.unlink(source, dir_fd=near)
        except FileNotFoundError:
            os.close(fd)
            return None
        try:
            return _copied(fd, folder, name)
        finally:
            os.close(fd)

    def _find(self, scratch: str) -> bool:
        if scratch == self._name:
            return True
        self.close()
        if not _SCRATCH.fullmatch(scratch):
            return False
        try:
            self._fd = os.open(scratch_root(create=False) / scratch, _DIRECTORY)
        except (OSError, ConfigurationError):
            return False
        self._name = scratch
        return True

    def close(self) -> None:
        """Hold none. Harmless when done before."""
        if self._fd >= 0:
            os.close(self._fd)
        self._name, self._fd = "", -1


def _copied(fd: int, folder: int, name: str) -> int:
    target = os.open(name, _NEW, 0o600, dir_fd=folder)
    try:
        copy_content(fd, target, kept=True)
    except OSError:
        os.close(target)
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise
    return target
