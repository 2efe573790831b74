"""Where files arrive: written beside, verified, synced and renamed, and never outside of their directory.

Every step from the directory down is taken by descriptor and follows no link, so that whatever anybody swaps
meanwhile, nothing is written elsewhere. What is not complete stands in a directory of its own, which is
locked while it is in use; whoever finds one that is not locked removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from time import thread_time
from typing import Final, NamedTuple

from zfarm.edge.beside import make_parts, sweep_parts
from zfarm.edge.handover import Givers
from zfarm.edge.names import Names
from zfarm.edge.parcels import (
    CHUNK_BYTES,
    Chunk,
    Handed,
    Head,
    Refusal,
    Small,
    Tail,
    digest_of,
    digest_of_file,
    read_item,
    whole_digest,
)
from zfarm.edge.writing import WRITING_BYTES, Writing, linux_function
from zfarm.errors import DamagedFile, TransferError, UnsafeName
from zfarm.messages import Blob
from zfarm.settings import settings

__all__ = ["Landed", "Landing", "Lost", "sync_files"]

PENDING_MAX: Final = 2048
"""Complete files that are synced and renamed together, at most."""
_SYNC_ALL_FROM: Final = 8
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Landed(NamedTuple):
    """A file is there, complete and synced."""

    name: str
    path: Path
    size: int
    digest: bytes


class Lost(NamedTuple):
    """A file cannot be had."""

    name: str
    error: TransferError


class _Part:
    """A file that is being written."""

    def __init__(self, head: Head, fd: int, temporary: str) -> None:
        self.head = head
        self.fd = fd
        self.temporary = temporary
        self.at = 0
        self.writing = Writing(fd, head.size)
        self.digests = bytearray()
        self.digest = b""
        self.handed = False
        self.syncing: threading.Thread | None = None


class Landing:
    """The files of one task on their way into one directory. One thread at a time."""

    def __init__(self, directory: Path) -> None:
        """Make the directory if need be. Raises TransferError: files cannot be written there."""
        self.directory = directory
        self.received = 0
        """Bytes of content that have come."""
        self.announced = 0
        """Bytes of all files that have begun."""
        self._names = Names()
        self._givers = Givers()
        self._part: _Part | None = None
        self._pending: list[_Part] = []
        self._modes: dict[str, int] = {}
        self._made = 0
        self._root = self._parts = -1
        try:
            os.makedirs(directory, exist_ok=True)
            self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            sweep_parts(self._root)
            self._beside, self._parts = make_parts(self._root)
        except OSError as error:
            self.close()
            raise TransferError(
                f"files cannot be written to {directory}: {error.strerror}", error.errno or 0
            ) from None

    # ------------------------------------------------------------ what comes

    @property
    def idle(self) -> bool:
        """No file has begun and is not complete."""
        return self._part is None

    @property
    def directories(self) -> dict[str, int]:
        """The directories that came, with their modes."""
        return self._modes

    def take(self, blob: Blob) -> list[Lost]:
        """Take the next item. What it completes is there after ``settle``; what cannot be had any more comes
        back."""
        name = self._part.head.name if self._part is not None else ""
        try:
            piece = read_item(blob)
            if isinstance(piece, Chunk):
                self._write(piece)
            elif isinstance(piece, Tail):
                self._complete(piece)
            elif isinstance(piece, Refusal):
                name = piece.name
                self._give_up()
                return [Lost(name, TransferError(piece.text))]
            else:
                lost = self.interrupted("the sender began another one before its end")
                head = piece if isinstance(piece, Head) else piece.head
                name = head.name
                try:
                    self._begin(head, None if isinstance(piece, Head) else piece)
                except (TransferError, OSError) as error:
                    lost.append(self._lost(name, error))
                return lost
        except (TransferError, OSError) as error:
            return [self._lost(name, error)]
        return []

    def interrupted(self, why: str) -> list[Lost]:
        """Nothing more comes of the file that was begun last, if it is not complete."""
        if self._part is None:
            return []
        name = self._part.head.name
        self._give_up()
        return [Lost(name, TransferError(f"{name!r} cannot be had: {why}"))]

    def begin_anew(self) -> None:
        """Another attempt begins: names may come again, and replace what came of the one before."""
        self._give_up()
        self._names = Names()

    def _lost(self, name: str, error: Exception) -> Lost:
        self._give_up()
        if isinstance(error, OSError) and not isinstance(error, TransferError):
            text = f"cannot write {name!r} to {self.directory}: {error.strerror or error}"
            error = TransferError(text, error.errno or 0)
        assert isinstance(error, TransferError)
        return Lost(name, error)

    def _begin(self, head: Head, more: Small | Handed | None) -> None:
        if len(self._names) >= settings.files_max:
            raise TransferError(
                f"a task may send {settings.files_max:,} files: pack them, or set ZFARM_FILES_MAX "
                "for the client"
            )
        self._names.add(head.name, head.directory)
        if head.directory:
            os.close(self._descend(head.name.split("/")))
            self._modes[head.name] = head.mode
            return
        if isinstance(more, Handed):
            self._take_over(more)
            return
        self.announced += head.size
        if more is None:
            free = os.fstatvfs(self._root)
            if head.size > free.f_bavail * free.f_frsize:
                raise OSError(errno.ENOSPC, f"it has {head.size:,} bytes, and there is less room")
        temporary = f"{self._made:x}"
        self._made += 1
        part = _Part(head, os.open(temporary, _NEW, 0o600, dir_fd=self._parts), temporary)
        self._part = part
        if more is None:
            return
        if len(more.data) != head.size:
            raise DamagedFile(f"{head.name!r} has {len(more.data)} bytes, and should have {head.size}")
        if head.size:
            self._write(Chunk(more.digest, more.data))
        self._complete(Tail(whole_digest(part.digests)))

    def _take_over(self, handed: Handed) -> None:
        """Take a file that lies ready on this host; if it cannot be found it will come in chunks."""
        head = handed.head
        temporary = f"{self._made:x}"
        self._made += 1
        fd = self._givers.take(handed, self._parts, temporary)
        if fd is None:
            self._names.discard(head.name)
            return
        self.announced += head.size
        part = self._part = _Part(head, fd, temporary)
        part.handed = True
        os.fchmod(fd, 0o600)
        if head.size >= WRITING_BYTES:  # while it is read: the disk and the processor work at once
            part.syncing = threading.Thread(target=_try_sync, args=(fd,), name="zfarm-sync", daemon=True)
            part.syncing.start()
        part.digest = digest_of_file(fd, head.size, head.name)
        part.at = head.size
        self.received += head.size

    def _write(self, chunk: Chunk) -> None:
        part = self._part
        if part is None or part.handed:
            return  # of a file that was given up
        expected = min(CHUNK_BYTES, part.head.size - part.at)
        if len(chunk.data) != expected:
            raise DamagedFile(
                f"a chunk of {part.head.name!r} has {len(chunk.data)} bytes, and should have {expected}"
            )
        if digest_of(chunk.data) != chunk.digest:
            raise DamagedFile(f"bytes {part.at} and on of {part.head.name!r} are not those that were sent")
        part.writing.prepare(part.at)
        view, before = memoryview(chunk.data), thread_time()
        while view:
            written = os.pwrite(part.fd, view, part.at)
            part.at += written
            view = view[written:]
        part.writing.wrote(part.at, thread_time() - before)
        part.digests += chunk.digest
        self.received += len(chunk.data)

    def _complete(self, tail: Tail) -> None:
        part = self._part
        if part is None:
            return
        name = part.head.name
        if part.at != part.head.size:
            raise DamagedFile(f"{name!r} ended after {part.at} of {part.head.size} bytes")
        if (part.digest if part.handed else whole_digest(part.digests)) != tail.digest:
            raise DamagedFile(f"{name!r} is not what was sent: its digest differs")
        part.digest = tail.digest
        if part.syncing is not None:
            part.syncing.join()
            part.syncing = None
        os.fchmod(part.fd, part.head.mode)
        self._part = None
        self._pending.append(part)
        if len(self._pending) > _SYNC_ALL_FROM:  # descriptors are few, and these will be synced together
            if linux_function("syncfs", ctypes.c_int) is None:
                os.fsync(part.fd)
            os.close(part.fd)
            part.fd = -1

    def _give_up(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            self._discard(part)

    def _discard(self, part: _Part) -> None:
        _close(part)
        with suppress(FileNotFoundError):
            os.unlink(part.temporary, dir_fd=self._parts)

    # ------------------------------------------------------------ syncing and renaming

    @property
    def full(self) -> bool:
        """So much is complete that it should be settled."""
        return len(self._pending) >= PENDING_MAX

    def settle(self) -> list[Landed | Lost]:
        """Sync what is complete and give it its name; what became of it."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        try:
            sync_files(self._parts, [part.fd for part in pending if part.fd >= 0], len(pending))
        except OSError as error:
            for part in pending:
                self._discard(part)
            return [self._lost(part.head.name, error) for part in pending]
        done: list[Landed | Lost] = []
        touched: dict[str, int] = {}
        try:
            for part in pending:
                done.append(self._rename(part, touched))
            sync_files(self._root, list(touched.values()), len(touched))
        finally:
            for fd in touched.values():
                os.close(fd)
        return done

    def _rename(self, part: _Part, touched: dict[str, int]) -> Landed | Lost:
        head = part.head
        folder, _, base = head.name.rpartition("/")
        try:
            fd = touched.get(folder, -1)
            if fd < 0:
                fd = touched[folder] = self._descend(folder.split("/") if folder else [])
            _check_target(fd, base)
            os.rename(part.temporary, base, src_dir_fd=self._parts, dst_dir_fd=fd)
        except (OSError, TransferError) as error:
            self._discard(part)
            return self._lost(head.name, error)
        _close(part)
        return Landed(head.name, self.directory / head.name, head.size, part.digest)

    def _descend(self, parts: list[str]) -> int:
        """A descriptor of this directory below ours; what is missing is made, and no link is followed."""
        fd = os.dup(self._root)
        for part in parts:
            try:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=fd)
                below = os.open(part, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    text = f"{part!r} in {self.directory} is a link or no directory: nothing is written there"
                    raise UnsafeName(text) from None
                raise
            finally:
                os.close(fd)
            fd = below
        return fd

    # ------------------------------------------------------------ the end

    def finish(self) -> list[Landed | Lost]:
        """All has come: settle, give the directories their modes, and close."""
        done = self.settle()
        for name in sorted(self._modes, key=len, reverse=True):
            try:
                fd = self._descend(name.split("/"))
                try:
                    os.fchmod(fd, self._modes[name])
                finally:
                    os.close(fd)
            except (OSError, TransferError) as error:
                done.append(self._lost(name, error))
        self.close()
        return done

    def close(self) -> None:
        """Leave nothing half-written. Harmless when done before."""
        self._givers.close()
        if self._parts >= 0:
            self._give_up()
            for part in self._pending:
                self._discard(part)
            self._pending = []
            with suppress(OSError):  # the directory was taken away under us, or with it
                os.rmdir(self._beside, dir_fd=self._root)
            os.close(self._parts)
        if self._root >= 0:
            os.close(self._root)
        self._root = self._parts = -1


def _try_sync(fd: int) -> None:
    """Begin early what will be done in any case, when its errors are told."""
    with suppress(OSError):
        os.fsync(fd)


def _close(part: _Part) -> None:
    if part.syncing is not None:
        part.syncing.join()
        part.syncing = None
    if part.fd >= 0:
        os.close(part.fd)
        part.fd = -1


def _check_target(fd: int, base: str) -> None:
    """Refuse to replace what is no file. Raises UnsafeName."""
    try:
        mode = os.stat(base, dir_fd=fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise UnsafeName(f"{base!r} is there already, and is no regular file: it is not replaced")


def sync_files(folder: int, fds: list[int], count: int) -> None:
    """Bring these files to the disk: each, or all of the file system if they are many. Raises OSError."""
    every = linux_function("syncfs", ctypes.c_int) if count > _SYNC_ALL_FROM else None
    if every is not None:
        if every(folder) != 0:
            raise OSError(ctypes.get_errno(), "the disk could not be synced")
        return
    for fd in fds:
        os.fsync(fd)
