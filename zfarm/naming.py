"""Files that a farm keeps by name, as programs and commands use them: put, look up, get, list and remove.

On a farm with a broker they outlive the program; on an embedded farm a name lives as long as its executor.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from zfarm.courier import Courier, Moved
from zfarm.edge.beside import beside, parts_name
from zfarm.edge.catalogue import check_archived_name
from zfarm.edge.disk import sync_directory
from zfarm.edge.holdings import TreeHolding
from zfarm.edge.landing import sync_files
from zfarm.edge.removal import remove_tree
from zfarm.edge.shelf import Gathering
from zfarm.edge.store import name_of
from zfarm.errors import BrokerUnreachable, ConfigurationError, FileUnknown
from zfarm.handles import FileHandle
from zfarm.messages import ArchivedFile, Need

if TYPE_CHECKING:
    from zfarm.api import Executor
    from zfarm.edge.security import Access
    from zfarm.link import Link

__all__ = ["NamedFile", "discard", "fetch", "handle", "named", "names", "put", "upload"]

DIGITS: Final = 24
"""Of a digest, in the name of the directory in which a download is gathered."""
_embedded: WeakKeyDictionary[Link, dict[str, tuple[FileHandle, NamedFile]]] = WeakKeyDictionary()


class NamedFile(NamedTuple):
    """What a farm keeps under a name."""

    name: str
    size: int
    """Bytes of the file, or of all files in the directory."""
    files: int
    is_directory: bool
    kept_since: datetime
    """When it was put, in UTC."""
    digest: str
    """As that of the handle."""
    owner: str = ""
    """Whose it is, where those of all are listed."""


def named(entry: ArchivedFile) -> NamedFile:
    """What people see of an entry."""
    since = datetime.fromtimestamp(entry.at, UTC)
    need = entry.need
    return NamedFile(entry.name, entry.bytes, entry.files, need.tree, since, need.digest.hex(), entry.owner)


# ---------------------------------------------------------------- over a courier


def upload(courier: Courier, put: FileHandle, name: str, moved: Moved) -> FileHandle:
    """Have a handle's content kept; a handle for it that needs this program no more. Raises: see Courier."""
    check_archived_name(name)
    courier.put(put, name, moved)
    return _kept(name, put._need, put.mode)


def _kept(name: str, need: Need, mode: int) -> FileHandle:
    return FileHandle(name, Need(need.digest, need.size, need.tree, True), mode)


def find(courier: Courier, name: str) -> tuple[FileHandle, NamedFile]:
    """What is kept under a name. Raises: see Courier; FileUnknown: nothing is."""
    found = courier.names(check_archived_name(name))
    if not found:
        raise _unknown(name)
    (entry,) = found
    return _kept(entry.name, entry.need, entry.mode), named(entry)


def _unknown(name: str) -> FileUnknown:
    return FileUnknown(f"nothing is kept under the name {name[:200]!a}: `zfarm ls` tells what is")


def fetch(courier: Courier, handle: FileHandle, target: Path, moved: Moved) -> None:
    """Write what is kept to ``target``, which was checked: gathered beside it, verified, synced and renamed.

    When this program dies in the middle, the next one goes on from there.

    Raises: see Courier; OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _place(target.parent, handle) as (folder, spoilt):
        try:
            store = courier.fetch(handle.name, handle._need, folder / "store", moved)
        except (BrokerUnreachable, KeyboardInterrupt):
            raise  # what has come is of use later
        except BaseException:
            spoilt()
            raise
        try:
            _move(store, handle, folder, target)
        finally:
            store.close()
            spoilt()


@contextmanager
def _place(parent: Path, handle: FileHandle) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A directory to gather in: that of a program that has died in the middle of the same, unless another
    one is at it; and how to remove it."""
    folder = parent / parts_name(handle.digest[:DIGITS])
    folder.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            ours = os.path.samestat(status, os.stat(folder)) and status.st_uid == os.geteuid()
            ours = ours and not status.st_mode & 0o077
        except OSError:
            ours = False
        if ours:
            yield folder, lambda: remove_tree(folder)
        else:
            with beside(parent) as folder:
                yield folder, lambda: remove_tree(folder)
    finally:
        os.close(fd)


def _move(store: Gathering, handle: FileHandle, folder: Path, target: Path) -> None:
    need = Need(handle._need.digest, handle._need.size, handle._need.tree)
    whole = folder / "whole"
    if need.tree:
        remove_tree(whole)  # of a program that has died
        os.mkdir(whole, 0o700)
        manifest = store.manifest(need)
        top = os.open(whole, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            store.spend(manifest, top)
            sync_files(top, [], len(manifest.entries) + 100)
            os.fchmod(top, manifest.mode | 0o700)
            with suppress(FileNotFoundError):
                os.rmdir(target)
            os.rename(whole, target)
            os.fchmod(top, manifest.mode)
        finally:
            os.close(top)
    else:
        fd, _ = store.open_blob(need)
        try:
            os.fchmod(fd, handle.mode)
            os.fsync(fd)
            os.rename(store.root / "blobs" / name_of(need), target)
        finally:
            os.close(fd)
    sync_directory(target.parent)


# ---------------------------------------------------------------- for executors


def _access(farm: Executor) -> Access | None:
    """How to reach the broker of a farm; None: it is embedded."""
    link = farm._link
    link.check_open()
    link.check_waiting()
    road: Any = link.road
    access: Access | None = getattr(road, "_access", None)
    if access is None:
        raise ConfigurationError(
            "a task cannot keep or look up files by name: its program can, and hand the handle to it"
        )
    return access if road.remote else None


def put(farm: Executor, held: FileHandle, name: str, moved: Moved) -> FileHandle:
    """See Beyond.put."""
    check_archived_name(name)
    access = _access(farm)
    if access is not None:
        with Courier(lambda: access) as courier:
            return upload(courier, held, name, moved)
    size, files = held.size, 1
    if isinstance(held._holding, TreeHolding):
        sizes = [entry.size for entry in held._holding.manifest.entries if entry.digest]
        size, files = sum(sizes), len(sizes)
    known = NamedFile(name, size, files, held.is_directory, datetime.now(UTC), held.digest)
    _embedded.setdefault(farm._link, {})[name] = FileHandle(name, held._need, held.mode, held._holding), known
    return held


def handle(farm: Executor, name: str) -> FileHandle:
    """See Beyond.handle."""
    access = _access(farm)
    if access is not None:
        with Courier(lambda: access) as courier:
            return find(courier, name)[0]
    found = _embedded.get(farm._link, {}).get(check_archived_name(name))
    if found is None:
        raise _unknown(name)
    return found[0]


def names(farm: Executor) -> list[NamedFile]:
    """See Beyond.names."""
    access = _access(farm)
    if access is not None:
        with Courier(lambda: access) as courier:
            return [named(entry) for entry in courier.names()]
    return [known for _, (_, known) in sorted(_embedded.get(farm._link, {}).items())]


def discard(farm: Executor, name: str) -> None:
    """See Beyond.discard."""
    access = _access(farm)
    if access is not None:
        with Courier(lambda: access) as courier:
            courier.discard(name)
    elif _embedded.get(farm._link, {}).pop(name, None) is None:
        raise _unknown(name)


def get(farm: Executor, handle: FileHandle, target: Path, moved: Moved) -> None:
    """What ``fetching.get`` does with a handle that is not of this program."""
    access = _access(farm)
    assert access is not None, "an embedded farm keeps nothing beyond its program"
    with Courier(lambda: access) as courier:
        fetch(courier, handle, target, moved)
