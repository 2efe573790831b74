"""The files that the workers of one user on one host keep for calls: named by digest, verified, bounded.

What is in use is locked (shared) by a descriptor, and so is (exclusively) a large file that is being written:
no death leaves a lock behind. Whoever finds a file for the first time reads it for its digest.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from zfarm.edge.copying import copied_digest
from zfarm.edge.landing import sync_files
from zfarm.edge.names import file_name
from zfarm.edge.parcels import digest_of, digest_of_file, open_regular, whole_digest
from zfarm.edge.removal import remove_tree
from zfarm.edge.storeroom import DIRECTORY, PART, READ, Storeroom
from zfarm.edge.trees import STORED_MODE, Manifest, build_tree, check_list, read_manifest
from zfarm.errors import FarmError, TransferError
from zfarm.messages import CHUNK_BYTES, Blob, BuildTree, DropBlob, Need, Pin, SeekBlob, StoreChunk

__all__ = ["DAMAGED", "FAR", "FINAL", "Store", "name_of"]

FINAL, DAMAGED, FAR = 0, 1, 2
"""Why something failed, as zfarm.core.lacking has it."""
_NEW: Final = PART | os.O_EXCL

Answer = Callable[..., None]


def name_of(need: Need) -> str:
    """What a blob or directory is called in a store."""
    return file_name(need.digest, need.size)


class _Writing(NamedTuple):
    """A large file that is being written."""

    fd: int
    digests: bytearray


class _Fresh(NamedTuple):
    """A file that is written and has no name yet."""

    errand: int
    need: Need
    fd: int
    temporary: str


class _Bad(TransferError):
    """What is there is not what it is called; it was removed."""


class Store(Storeroom):
    """One worker's hands on a store. One thread."""

    whose = "the worker"
    elsewhere = "start it with --store DIR on another disk (on an embedded farm: set TMPDIR)"

    def __init__(self, root: Path, bytes_max: int, lasting: bool, answer: Answer) -> None:
        """Open the store in ``root``, which is made if need be. One that is ``lasting`` is synced. ``answer``
        is called with the name of a method of the worker's machine, and its arguments.

        Raises:
            ConfigurationError: the directory is not ours alone.
            OSError: it cannot be made.
        """
        super().__init__(root, bytes_max)
        self._lasting = lasting
        self._answer = answer
        self._pins: dict[int, int] = {}  # descriptors that hold a shared lock, by errand
        self._making: dict[int, int] = {}
        self._writing: dict[int, _Writing] = {}
        self._fresh: list[_Fresh] = []
        self.moved_bytes = 0
        """Bytes of chunks that were written."""

    def close(self) -> None:
        """Give up what is begun, which stays to be gone on with, and all locks."""
        for fd in (*self._pins.values(), *self._making.values(), *(w.fd for w in self._writing.values())):
            os.close(fd)
        for fresh in self._fresh:
            os.close(fresh.fd)
            os.unlink(fresh.temporary, dir_fd=self._parts)
        for fd in (self._blobs, self._parts, self._trees, self._top):
            os.close(fd)

    # ------------------------------------------------------------ what is there

    def seek(self, errand: int, need: Need) -> None:
        """See Worker.blob_found."""
        try:
            if need.tree:
                self._seek_tree(errand, need)
            else:
                self._seek_blob(errand, need)
        except (OSError, FarmError) as error:
            self._failed(errand, need, error)

    def _seek_blob(self, errand: int, need: Need) -> None:
        fd = self._open_blob(need)
        if fd is not None:
            self._pins[errand] = fd
            self._answer("blob_found", errand, need.size, ())
            return
        self._make_room(need.size)
        if not need.size:
            self._take_small(errand, need, b"")
            self.settle()
            return
        self._answer("blob_found", errand, self._begin(errand, need) if need.size > CHUNK_BYTES else 0, ())

    def _open_blob(self, need: Need) -> int | None:
        """A descriptor of this blob, verified and locked; None: it is not there."""
        name = name_of(need)
        try:
            fd = os.open(name, READ, dir_fd=self._blobs)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            status = os.fstat(fd)
            mark = status.st_ino, status.st_size, status.st_mtime_ns
            if not status.st_nlink:  # removed just now
                os.close(fd)
                return None
            if self._known.get(name) != mark:
                true = status.st_size == need.size and (digest_of_file(fd, need.size, name) == need.digest)
                if not true:
                    os.unlink(name, dir_fd=self._blobs)
                    os.close(fd)
                    return None
                self._known[name] = mark
            with suppress(OSError):
                os.utime(fd, ns=(time.time_ns(), status.st_mtime_ns))
            return fd
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise

    def _begin(self, errand: int, need: Need) -> int:
        """Open the part of a large file, and say how much of it is there; -1: somebody else is at it."""
        while True:
            fd = os.open(name_of(need), PART, 0o600, dir_fd=self._parts)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return -1
            if os.fstat(fd).st_nlink:
                break
            os.close(fd)  # it was completed or removed just now
        have = min(os.fstat(fd).st_size, need.size) // CHUNK_BYTES * CHUNK_BYTES
        os.ftruncate(fd, have)
        digests = bytearray()
        for at in range(0, have, CHUNK_BYTES):
            digests += digest_of(os.pread(fd, CHUNK_BYTES, at))
        self._writing[errand] = _Writing(fd, digests)
        if have == need.size and not self._finish(errand, need):
            return 0
        return have

    def _seek_tree(self, errand: int, need: Need) -> None:
        fd = self._open_tree(need)
        if fd is not None:
            self._unmake(errand)
            self._pins[errand] = fd
            self._answer("blob_found", errand, need.size, ())
            return
        if errand not in self._making:
            lock = self._making[errand] = os.open("making", PART, 0o600, dir_fd=self._top)
            fcntl.flock(lock, fcntl.LOCK_SH)
        listed = Need(need.digest, need.size)
        manifest = self._manifest(need)
        if manifest is None:
            self._answer("blob_found", errand, 0, (listed,))
            return
        needs = dict.fromkeys(entry.need for entry in manifest.entries if entry.digest)
        lacks = [one for one in needs if not self._has(one)]
        self._make_room(sum(one.size for one in lacks))
        self._answer("blob_found", errand, 0, tuple(lacks))

    def _manifest(self, need: Need) -> Manifest | None:
        check_list(need.size)
        fd = self._open_blob(Need(need.digest, need.size))
        if fd is None:
            return None
        with open(fd, "rb") as file:
            return read_manifest(file.read())

    def _has(self, need: Need) -> bool:
        fd = self._open_blob(need)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def _open_tree(self, need: Need) -> int | None:
        """A descriptor of this directory, verified and locked; None: it is not there."""
        name = name_of(need)
        try:
            fd = os.open(name, DIRECTORY, dir_fd=self._trees)
        except FileNotFoundError:
            return None
        fcntl.flock(fd, fcntl.LOCK_SH)
        status = os.fstat(fd)
        mark = status.st_ino, 0, 0
        try:
            known = self._known.get("tree " + name) == mark
            if not status.st_nlink or not (known or self._is_true(need, self.root / "trees" / name)):
                os.close(fd)
                self._remove_tree(name)
                return None
        except TransferError:
            os.close(fd)
            raise
        self._known["tree " + name] = mark
        with suppress(OSError):
            os.utime(fd)
        return fd

    def _is_true(self, need: Need, path: Path) -> bool:
        """Whether all that is in a directory found here is as its manifest lists it."""
        manifest = self._manifest(need)
        if manifest is None:
            return False
        listed = {entry.name: entry for entry in manifest.entries}
        found = 0
        for at, folders, files in os.walk(path):
            for base in (*folders, *files):
                name = os.path.relpath(os.path.join(at, base), path)
                entry = listed.get(name)
                found += 1
                if entry is None or (entry.target and os.readlink(path / name) != entry.target):
                    return False
                if entry.digest:
                    fd = open_regular(path / name, follow=False)
                    try:
                        same = os.fstat(fd).st_size == entry.size
                        if not same or digest_of_file(fd, entry.size, name) != entry.digest:
                            return False
                    finally:
                        os.close(fd)
        return found == len(listed)

    # ------------------------------------------------------------ writing

    def do(self, action: SeekBlob | StoreChunk | BuildTree | DropBlob) -> None:
        """What a machine wants; what was written before has its name when more than that is wanted."""
        if isinstance(action, StoreChunk):
            self.store_chunk(action)
            return
        self.settle()
        if isinstance(action, SeekBlob):
            self.seek(action.errand, action.need)
        elif isinstance(action, BuildTree):
            self.build(action.errand, action.need)
        else:
            self.drop(action.errand, action.need)

    def store_chunk(self, action: StoreChunk) -> None:
        """See Worker.blob_stored and blob_failed."""
        errand, need = action.errand, action.need
        try:
            if action.path:
                self._take_over(errand, need, action.path)
            elif need.size <= CHUNK_BYTES:
                self._take_small(errand, need, action.data)
            else:
                self._take_chunk(action)
        except (OSError, FarmError) as error:
            self._failed(errand, need, error)

    def _take_small(self, errand: int, need: Need, data: Blob) -> None:
        digests = digest_of(data) if need.size else b""
        if len(data) != need.size or whole_digest(digests) != need.digest:
            raise _Bad("a file came damaged: its digest differs")
        temporary = secrets.token_hex(12)
        fd = os.open(temporary, _NEW, 0o600, dir_fd=self._parts)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self._fresh.append(_Fresh(errand, need, fd, temporary))
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, STORED_MODE)
        self.moved_bytes += need.size

    def _take_chunk(self, action: StoreChunk) -> None:
        errand, need, data = action.errand, action.need, action.data
        writing = self._writing.get(errand)
        if writing is None or action.at != len(writing.digests) // len(need.digest) * CHUNK_BYTES:
            return  # of before it came damaged
        if digest_of(data) != action.check:
            raise _Bad(f"bytes {action.at} and on of a file came damaged")
        view, at = memoryview(data), action.at
        while view:
            done = os.pwrite(writing.fd, view, at)
            at += done
            view = view[done:]
        writing.digests.extend(action.check)
        self.moved_bytes += len(data)
        if at < need.size or self._finish(errand, need):
            self._answer("blob_stored", errand, at)

    def _finish(self, errand: int, need: Need) -> bool:
        """All is written: verify it, and give it its name. False: it is not what it should be: that was
        told."""
        writing = self._writing[errand]
        if whole_digest(writing.digests) != need.digest:
            self._failed(errand, need, _Bad("a file came damaged: its digest differs"))
            return False
        del self._writing[errand]
        if self._lasting:
            os.fsync(writing.fd)
        os.fchmod(writing.fd, STORED_MODE)
        os.rename(name_of(need), name_of(need), src_dir_fd=self._parts, dst_dir_fd=self._blobs)
        if self._lasting:
            os.fsync(self._blobs)
        self._adopt(errand, need, writing.fd)
        return True

    def _adopt(self, errand: int, need: Need, fd: int) -> None:
        """It has its name: keep it for this errand."""
        fcntl.flock(fd, fcntl.LOCK_SH)
        status = os.fstat(fd)
        self._known[name_of(need)] = status.st_ino, status.st_size, status.st_mtime_ns
        self._pins[errand] = fd
        if self._bytes >= 0:
            self._bytes += need.size

    def _take_over(self, errand: int, need: Need, path: str) -> None:
        """Copy a file that lies on this host, and believe no more of it than its digest says."""
        try:
            source = open_regular(path)
        except TransferError:
            source = -1
        temporary = secrets.token_hex(12)
        fd = os.open(temporary, _NEW, 0o600, dir_fd=self._parts)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            if source < 0 or copied_digest(source, fd, need.size) != need.digest:
                os.unlink(temporary, dir_fd=self._parts)
                os.close(fd)
                self._answer("blob_failed", errand, f"{path} is not here", FAR)
                return
        except BaseException:
            os.unlink(temporary, dir_fd=self._parts)
            os.close(fd)
            raise
        finally:
            if source >= 0:
                os.close(source)
        os.fchmod(fd, STORED_MODE)
        self._fresh.append(_Fresh(errand, need, fd, temporary))

    def settle(self) -> None:
        """Sync the files that are written and give them their names, all at once."""
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return
        try:
            if self._lasting:
                sync_files(self._parts, [one.fd for one in fresh], len(fresh))
            for one in fresh:
                writing = self._writing.pop(one.errand, None)
                if writing is not None:  # it was begun, and found nearer
                    os.unlink(name_of(one.need), dir_fd=self._parts)
                    os.close(writing.fd)
                name = name_of(one.need)
                os.rename(one.temporary, name, src_dir_fd=self._parts, dst_dir_fd=self._blobs)
                self._adopt(one.errand, one.need, one.fd)
            if self._lasting:
                os.fsync(self._blobs)
        except OSError as error:
            for one in fresh:
                if self._pins.get(one.errand) != one.fd:
                    os.close(one.fd)
                    with suppress(FileNotFoundError):
                        os.unlink(one.temporary, dir_fd=self._parts)
                self._failed(one.errand, one.need, error)
            return
        for one in fresh:
            kind = "blob_stored" if one.need.size else "blob_found"
            self._answer(kind, one.errand, one.need.size, *(() if one.need.size else ((),)))

    def build(self, errand: int, need: Need) -> None:
        """Make the directory of a manifest whose files are all there."""
        temporary = "tree-" + secrets.token_hex(12)
        try:
            manifest = self._manifest(need)
            if manifest is None:
                raise TransferError("the list of a directory's files went missing")
            os.mkdir(temporary, 0o700, dir_fd=self._parts)
            top = os.open(temporary, DIRECTORY, dir_fd=self._parts)
            try:
                copied = build_tree(manifest, top, self._blob_for_tree, self._blobs, writable=False)
                if self._lasting:
                    sync_files(top, [], len(manifest.entries) + 100)
                os.fchmod(top, manifest.mode | 0o700)
            finally:
                os.close(top)
            with suppress(FileExistsError, OSError):  # another worker has made it just now
                os.rename(temporary, name_of(need), src_dir_fd=self._parts, dst_dir_fd=self._trees)
                self._bytes += copied if self._bytes >= 0 else 0
            status = os.stat(name_of(need), dir_fd=self._trees, follow_symlinks=False)
            self._known["tree " + name_of(need)] = status.st_ino, 0, 0
            fd = self._open_tree(need)
            if fd is None:
                raise TransferError("a directory went missing that was made just now")
            self._pins[errand] = fd
            self._answer("blob_stored", errand, need.size)
        except (OSError, FarmError) as error:
            self._failed(errand, need, error)
        finally:
            self._unmake(errand)
            remove_tree(self.root / "parts" / temporary)

    def _blob_for_tree(self, need: Need) -> tuple[int, str]:
        fd = self._open_blob(need)
        if fd is None:
            raise TransferError("a file of a directory went missing")
        return fd, name_of(need)

    def _unmake(self, errand: int) -> None:
        lock = self._making.pop(errand, None)
        if lock is not None:
            os.close(lock)

    def _failed(self, errand: int, need: Need, error: Exception) -> None:
        """Tell it, and leave nothing that is of no use."""
        kind = DAMAGED if isinstance(error, _Bad) else FINAL
        writing = self._writing.get(errand)
        if writing is not None and kind == DAMAGED:
            os.ftruncate(writing.fd, 0)
            writing.digests.clear()
        elif writing is not None:
            del self._writing[errand]
            with suppress(FileNotFoundError):
                os.unlink(name_of(need), dir_fd=self._parts)
            os.close(writing.fd)
        text = str(error)
        if isinstance(error, OSError) and not isinstance(error, FarmError):
            text = f"{self.whose} cannot keep a file of {need.size:,} bytes in {self.root}: {error.strerror}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                text += f"; free some space there, or {self.elsewhere}"
        self._answer("blob_failed", errand, text, kind)

    # ------------------------------------------------------------ handles, and the end of an errand

    def pin(self, pin: Pin) -> None:
        """See Worker.pinned. What cannot be written is not answered: it is said again."""
        with suppress(OSError):
            answer = self.pins.follow(pin)
            if answer is not None:
                self._answer("pinned", answer)

    def drop(self, errand: int, need: Need) -> None:
        """No lease of ours names it any more."""
        for held in (self._pins, self._making):
            fd = held.pop(errand, None)
            if fd is not None:
                os.close(fd)
        writing = self._writing.pop(errand, None)
        if writing is not None:  # the part stays, to be gone on with
            os.close(writing.fd)
        if self._bytes > self._bytes_max:
            self._evict(0)
