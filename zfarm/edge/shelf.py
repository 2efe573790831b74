"""Stores in which directories stay what they travel as, a list and its files: what an archive keeps for one
owner, and where a download is gathered; they know no name that people give.

Nothing is removed to make room: what is kept was promised.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from zfarm.edge.parcels import digest_of
from zfarm.edge.store import Store, name_of
from zfarm.edge.storeroom import READ
from zfarm.edge.trees import Manifest, build_tree
from zfarm.errors import FarmError, TransferError
from zfarm.messages import CHUNK_BYTES, Blob, Chunk, Need, StoreChunk, Wanted

__all__ = ["Gathering", "Quota", "Shelf"]

NO_LIMIT: Final = 2**62


class Gathering(Store):
    """A store of one program, for one transfer."""

    whose = "this program"
    elsewhere = "name a place on another disk"

    def _seek_tree(self, errand: int, need: Need) -> None:
        manifest = self._manifest(need)
        if manifest is None:
            self._answer("blob_found", errand, 0, (Need(need.digest, need.size),))
            return
        needs = dict.fromkeys(entry.need for entry in manifest.entries if entry.digest)
        lacks = [one for one in needs if not self._has(one)]
        if not lacks:
            self._answer("blob_found", errand, need.size, ())
            return
        self._room_for(sum(one.size for one in lacks))
        self._answer("blob_found", errand, 0, tuple(lacks))

    def _room_for(self, size: int) -> None:
        self._make_room(size)

    def build(self, errand: int, need: Need) -> None:
        """All its files are there: there is no more to it."""
        self._answer("blob_stored", errand, need.size)

    def _evict(self, size: int) -> None:
        """What was gathered is needed."""
        self._bytes = 0

    def manifest(self, need: Need) -> Manifest:
        """What a directory that is complete here lists. Raises TransferError, OSError."""
        manifest = self._manifest(need)
        if manifest is None:
            raise TransferError("the list of a directory's files went missing")
        return manifest

    def spend(self, manifest: Manifest, top: int) -> None:
        """Make a directory of the blobs that are here, which are not here any more then.

        Raises OSError, TransferError.
        """
        build_tree(manifest, top, self._blob_for_tree, self._blobs, writable=True, spend=True)

    def open_blob(self, need: Need) -> tuple[int, str]:
        """A descriptor of a blob that is complete here, and what it is called. Raises TransferError."""
        return self._blob_for_tree(need)


class Quota:
    """How much all shelves of an archive may have together, and have."""

    def __init__(self, root: Path, bytes_max: int, floor_bytes: int) -> None:
        self.root = root
        self.bytes_max = bytes_max
        self.floor_bytes = floor_bytes
        self._lock = threading.Lock()
        self._bytes = -1
        self._reserved = 0

    def take(self, size: int, reserve: int = 0) -> str:
        """See whether there is room for so much more, and keep some; why there is not, or nothing."""
        with self._lock:
            if self._bytes < 0:
                self._bytes = self._count()
            if self._bytes + self._reserved + size > self.bytes_max:
                return (
                    f"the archive of the broker has {self._bytes + self._reserved:,} bytes of the "
                    f"{self.bytes_max:,} that it may have (ZFARM_ARCHIVE_BYTES_MAX), and {size:,} more were "
                    "wanted: remove something with `zfarm rm`"
                )
            disk = os.statvfs(self.root)
            free = disk.f_bavail * disk.f_frsize
            if free - self._reserved - size < self.floor_bytes:
                return (
                    f"the disk of the broker's archive has {free:,} bytes left: {size:,} more would leave it "
                    f"less than {self.floor_bytes:,} (ZFARM_ARCHIVE_FLOOR_BYTES); free some, or remove "
                    "something with `zfarm rm`"
                )
            self._reserved += reserve
            return ""

    def release(self, size: int) -> None:
        """What was kept for somebody is not needed any more."""
        with self._lock:
            self._reserved -= size

    def add(self, size: int) -> None:
        """So much was written, or, below 0, removed."""
        with self._lock:
            if self._bytes >= 0:
                self._bytes += size

    def _count(self) -> int:
        total = 0
        for shelf in _folders(self.root):
            for kind in ("blobs", "parts"):
                total += sum(size for _, size in _sizes(shelf / kind))
        return total


def _folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """Names and sizes of the files in a folder, which may not be there."""
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False).st_size


class Shelf(Gathering):
    """What the archive keeps for one owner."""

    whose = "the broker"
    elsewhere = "start it with --files DIR on another disk"

    def __init__(
        self, root: Path, quota: Quota, answer: Callable[..., None], kept: Callable[[], Collection[str]]
    ) -> None:
        """``kept`` says what has a name or is on its way to one; the rest goes when there is no room.

        Raises ConfigurationError, OSError.
        """
        super().__init__(root, NO_LIMIT, True, answer)
        self._quota = quota
        self._kept = kept
        self._reserved: dict[int, int] = {}
        self._counted: dict[int, int] = {}  # bytes of parts that are being written, which the quota has
        self._reading: tuple[Need | None, int] = (None, -1)

    def close(self) -> None:
        """See Store.close."""
        self.let_go()
        for size in self._reserved.values():
            self._quota.release(size)
        super().close()

    # ------------------------------------------------------------ room

    def _make_room(self, size: int) -> None:
        """It is asked for when it is needed."""

    def _room_for(self, size: int) -> None:
        self._ask(size)

    def _ask(self, size: int, reserve: int = 0) -> None:
        if self._quota.take(size, reserve):
            self.sweep(self._kept())
            full = self._quota.take(size, reserve)
            if full:
                raise TransferError(full, errno.ENOSPC)

    def _begin(self, errand: int, need: Need) -> int:
        """A part that lies there is counted as it is, and the room for what is missing is reserved."""
        self._counted[errand] = 0
        with suppress(FileNotFoundError):
            status = os.stat(name_of(need), dir_fd=self._parts, follow_symlinks=False)
            self._counted[errand] = status.st_size
        have = super()._begin(errand, need)
        if errand not in self._writing:
            self._counted.pop(errand, None)
            return have
        self._count(errand)
        left = need.size - self._counted[errand]
        self._ask(left, left)
        self._reserved[errand] = left
        return have

    def _count(self, errand: int) -> int:
        """See how large the part is by now; the bytes that it has more than before."""
        writing = self._writing.get(errand)
        size = 0 if writing is None else os.fstat(writing.fd).st_size
        grown = size - self._counted[errand]
        self._counted[errand] = size
        self._quota.add(grown)
        return grown

    def _take_chunk(self, action: StoreChunk) -> None:
        super()._take_chunk(action)
        if action.errand in self._writing:
            self._use(action.errand)

    def _use(self, errand: int) -> None:
        """Of what was reserved, what has been written is not any more."""
        grown = self._count(errand)
        if errand in self._reserved:
            self._reserved[errand] -= grown
            self._quota.release(grown)

    def _failed(self, errand: int, need: Need, error: Exception) -> None:
        super()._failed(errand, need, error)
        if errand in self._writing:  # it begins anew
            self._use(errand)
        elif errand in self._counted:  # the part is gone
            self._quota.add(-self._counted.pop(errand))

    def _take_small(self, errand: int, need: Need, data: Blob) -> None:
        self._ask(need.size)
        super()._take_small(errand, need, data)

    def _take_over(self, errand: int, need: Need, path: str) -> None:
        """Nothing that a client says has a path opened here."""
        raise TransferError("the broker opens no file of its host for a client")

    def _adopt(self, errand: int, need: Need, fd: int) -> None:
        super()._adopt(errand, need, fd)
        self._release(errand)
        self._quota.add(need.size - self._counted.pop(errand, 0))

    def drop(self, errand: int, need: Need) -> None:
        """See Store.drop."""
        super().drop(errand, need)
        self._counted.pop(errand, None)
        self._release(errand)

    def _release(self, errand: int) -> None:
        self._quota.release(self._reserved.pop(errand, 0))

    # ------------------------------------------------------------ what is kept, and what is not

    def blobs_of(self, needs: Iterable[Need]) -> set[str]:
        """What all of these are called here, and the files of the directories among them; of a directory
        whose list is not here yet, nothing but that."""
        found: set[str] = set()
        for need in needs:
            found.add(name_of(need))
            if need.tree:
                with suppress(FarmError, OSError):
                    manifest = self._manifest(need)
                    entries = manifest.entries if manifest is not None else ()
                    found.update(name_of(entry.need) for entry in entries if entry.digest)
        return found

    def sweep(self, kept: Collection[str]) -> None:
        """Remove every blob, and every part of one, that is not ``kept`` nor in use."""
        for kind in ("blobs", "parts"):
            for name, size in list(_sizes(self.root / kind)):
                if name not in kept and self._remove(kind, name):
                    self._quota.add(-size)

    def remove(self, need: Need) -> None:
        """Remove this, and of a directory its files, unless it is kept for something else, or in use."""
        for name in self.blobs_of((need,)).difference(self._kept()):
            for kind in ("blobs", "parts"):
                with suppress(FileNotFoundError):
                    size = os.lstat(self.root / kind / name).st_size
                    if self._remove(kind, name):
                        self._quota.add(-size)

    # ------------------------------------------------------------ reading

    def chunk(self, wanted: Wanted, at: int, near: bool) -> tuple[Chunk, bytes]:
        """One chunk of what somebody wants: or where it lies, or why it cannot be had."""
        digest, size = wanted.digest, wanted.size
        need = Need(digest, size)
        try:
            fd = self._opened(need)
            if near and not wanted.far:
                return Chunk(digest, size, at, path=str(self.root / "blobs" / name_of(need))), b""
            data = os.pread(fd, min(CHUNK_BYTES, size - at), at)
            if not data:
                return Chunk(digest, size, at, text="a file in the broker's archive got shorter"), b""
            return Chunk(digest, size, at, digest_of(data)), data
        except FileNotFoundError:
            text = "the broker does not keep it any more: it was removed, or its name is another file's now"
            return Chunk(digest, size, at, text=text), b""
        except OSError as error:
            text = f"the broker cannot read it in {self.root}: {error.strerror}"
            return Chunk(digest, size, at, text=text), b""

    def _opened(self, need: Need) -> int:
        known, fd = self._reading
        if known != need:
            self.let_go()
            fd = os.open(name_of(need), READ, dir_fd=self._blobs)
            self._reading = need, fd
        return fd

    def let_go(self) -> None:
        """Close what was read last."""
        fd: Any = self._reading[1]
        self._reading = (None, -1)
        if fd >= 0:
            os.close(fd)
