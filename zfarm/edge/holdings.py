"""What a client has put: files and directories of its own, by digest; they are read again when a worker asks.

A file is what it was when it was put: its size, times and inode are looked at whenever it is read, and one
that has changed is not given.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final, NamedTuple

from zfarm.edge.names import check_path
from zfarm.edge.parcels import digest_of, digest_of_file, head_of, open_regular, whole_digest
from zfarm.edge.trees import FILE, Manifest, pack_manifest, read_manifest, walk_tree
from zfarm.errors import TransferError
from zfarm.messages import CHUNK_BYTES, Blob, Need

__all__ = ["FileHolding", "Holding", "Mark", "TreeHolding", "hold", "hold_stored", "mark_of"]

HASHED_MAX: Final = 100_000
"""Files whose digests are remembered."""


class Mark(NamedTuple):
    """By what a file is known to be unchanged."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def mark_of(fd: int) -> Mark:
    """That of an open file."""
    status = os.fstat(fd)
    return Mark(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


_hashed: OrderedDict[Mark, bytes] = OrderedDict()
_lock = threading.Lock()


def _digest(fd: int, mark: Mark, name: str) -> bytes:
    """The digest of a file; that of an unchanged one is remembered."""
    with _lock:
        known = _hashed.get(mark)
        if known is not None:
            _hashed.move_to_end(mark)
            return known
    digest = digest_of_file(fd, mark.size, name)
    if mark_of(fd) != mark:
        raise TransferError(f"{name!r} was changed while it was read: put it when nobody writes it")
    with _lock:
        _hashed[mark] = digest
        if len(_hashed) > HASHED_MAX:
            _hashed.popitem(last=False)
    return digest


class FileHolding:
    """A file."""

    __slots__ = ("_mark", "mode", "need", "path")

    def __init__(self, path: Path, need: Need, mark: Mark | None, mode: int = 0o644) -> None:
        self.path = path
        self.mode = mode
        self.need = need
        self._mark = mark  # None: of a store, where digests tell all

    def blob(self, digest: bytes) -> FileHolding | None:
        """What has this digest; None: nothing here."""
        return self if digest == self.need.digest else None

    def open(self) -> int:
        """A descriptor of it. Raises TransferError: it is not there as it was when it was put."""
        try:
            fd = open_regular(self.path)
        except TransferError as error:
            raise TransferError(f"{error}: it was put, and has to stay until its calls have ended") from None
        if self._mark is not None and mark_of(fd) != self._mark:
            os.close(fd)
            raise TransferError(
                f"{str(self.path)!r} has changed since it was put: put it again, and do not change what "
                "calls still need"
            )
        return fd

    def unchanged(self, fd: int) -> bool:
        """Whether what was opened is still what was put."""
        return self._mark is None or mark_of(fd) == self._mark

    def read(self, fd: int, at: int) -> bytes:
        """The chunk that begins there."""
        return os.pread(fd, min(CHUNK_BYTES, self.need.size - at), at)


class TreeHolding:
    """A directory: its manifest, and its files."""

    __slots__ = ("_files", "manifest", "mode", "need", "packed", "path")

    def __init__(self, path: Path, manifest: Manifest, files: dict[bytes, FileHolding]) -> None:
        self.path = path
        self.mode = manifest.mode
        self.manifest = manifest
        self.packed = pack_manifest(manifest)
        digests = b"".join(
            digest_of(self.packed[at : at + CHUNK_BYTES]) for at in range(0, len(self.packed), CHUNK_BYTES)
        )
        self.need = Need(whole_digest(digests), len(self.packed), True)
        self._files = files

    def blob(self, digest: bytes) -> FileHolding | TreeHolding | None:
        """What has this digest; None: nothing here."""
        return self if digest == self.need.digest else self._files.get(digest)

    def chunk(self, at: int) -> Blob:
        """The chunk of the manifest that begins there."""
        return self.packed[at : at + CHUNK_BYTES]


Holding = FileHolding | TreeHolding


def hold(path: str | os.PathLike[str]) -> Holding:
    """What is at ``path``, read once for its digests.

    Raises:
        TransferError: it is no file or directory, cannot be read, or has in it what cannot travel.
        UnsafeName: this can be no path, or a name in it cannot travel.
    """
    top = Path(os.path.realpath(check_path(path)))
    if top.is_dir():
        return _hold_tree(top)
    fd = open_regular(top)
    try:
        return _hold_file(top, fd)
    finally:
        os.close(fd)


def _hold_file(path: Path, fd: int) -> FileHolding:
    head = head_of(fd, str(path))
    mark = mark_of(fd)
    return FileHolding(path, Need(_digest(fd, mark, str(path)), mark.size), mark, head.mode)


def _hold_tree(top: Path) -> TreeHolding:
    entries = []
    files: dict[bytes, FileHolding] = {}
    for entry, fd in walk_tree(top):
        if entry.kind == FILE:
            try:
                held = _hold_file(top / entry.name, fd)
            finally:
                os.close(fd)
            entry = type(entry)(entry.name, entry.kind, entry.mode, held.need.digest, held.need.size)
            files.setdefault(held.need.digest, held)
        entries.append(entry)
    return TreeHolding(top, Manifest(os.stat(top).st_mode & 0o777, entries), files)


def hold_stored(path: Path, need: Need) -> Holding | None:
    """What is in the store of a worker, which a task may give on; None: it is not there."""
    if not need.tree:
        return FileHolding(path, need, None) if path.is_file() else None
    try:
        packed = (path.parent.parent / "blobs" / path.name).read_bytes()
    except OSError:
        return None
    manifest = read_manifest(packed)
    files = {
        entry.digest: FileHolding(path / entry.name, entry.need, None)
        for entry in manifest.entries
        if entry.digest
    }
    return TreeHolding(path, manifest, files)
