"""``farm.put`` and ``farm.get``, and which files a call needs; it knows no message but a need."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zfarm.arguments import name_of
from zfarm.edge.bales import Bale
from zfarm.edge.beside import beside
from zfarm.edge.disk import sync_directory
from zfarm.edge.handover import copy_content
from zfarm.edge.holdings import FileHolding, Holding, TreeHolding, hold
from zfarm.edge.landing import sync_files
from zfarm.edge.names import Names, check_path, file_name
from zfarm.edge.parcels import digest_of_file
from zfarm.edge.trees import Manifest, build_tree, read_manifest
from zfarm.errors import DamagedFile, FarmError, TransferError
from zfarm.handles import FileHandle, collected, holding_of
from zfarm.messages import Need
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.api import Executor
    from zfarm.edge.callables import Portable
    from zfarm.terms import Terms

__all__ = ["bytes_of", "check_target", "get", "needed", "placed", "put"]

_GOT: Final = "got"
"""What a worker calls the file that it sends, or the list of the directory."""


def put(
    path: str | os.PathLike[str],
    farm: Executor | None = None,
    name: str | None = None,
    progress: bool = False,
) -> FileHandle:
    """See Beyond.put."""
    if isinstance(path, FileHandle):
        handle = path
    else:
        held = hold(path)
        handle = FileHandle(os.path.basename(os.path.abspath(path)) or "root", held.need, held.mode, held)
    if farm is None or name is None:
        return handle
    from zfarm import naming
    from zfarm.loading import bar

    holding_of(handle)  # else this program does not have it
    with bar(name, bytes_of(handle), progress) as moved:
        return naming.put(farm, handle, name, moved)


def bytes_of(handle: FileHandle) -> int:
    """What may have to be sent of it: the bytes of all different files, and of their list."""
    held = handle._holding
    if not isinstance(held, TreeHolding):
        return handle.size
    sizes = {entry.digest: entry.size for entry in held.manifest.entries if entry.digest}
    return sum(sizes.values()) + handle.size


def placed(files: Mapping[str, Any] | None) -> tuple[tuple[str, FileHandle], ...]:
    """What ``options(files=...)`` was given: names that are safe, and handles."""
    if files is None:
        return ()
    if not isinstance(files, Mapping):
        raise TypeError(f"files must be a mapping of names to paths or handles, not {type(files).__name__}")
    names = Names()
    found = []
    for name, what in files.items():
        handle = put(what)
        found.append((names.add(name, handle.is_directory), handle))
    return tuple(found)


def needed(
    terms: Terms,
    portable: Portable,
    known: dict[bytes, tuple[FileHandle | Bale, ...]],
    fn: Any,
    blob: bytes,
    body: Any,
) -> Terms:
    """The terms of a call with the files that it needs: those in its ``body`` (arguments, or items), in its
    function, whose ``blob`` is remembered with them, and those that the terms name.

    Raises TransferError: they are too many.
    """
    with collected() as found:
        portable.encode_again(body)
    if blob not in known:
        with collected() as inner:
            portable.encode_again(fn)
        if inner:
            known[blob] = tuple(one.of(None) if isinstance(one, Bale) else one for one in inner)
    handles = tuple(dict.fromkeys((*terms.handles, *known.get(blob, ()), *found)))
    if len(handles) > settings.call_files_max:
        raise TransferError(
            f"the call of {name_of(fn)} is given {len(handles):,} files, at most "
            f"{settings.call_files_max:,} are allowed: put their directory, or set "
            "ZFARM_CALL_FILES_MAX for client, broker and workers"
        )
    return terms if handles == terms.handles else replace(terms, handles=handles)


# ---------------------------------------------------------------- getting


def get(farm: Executor, handle: FileHandle, path: str | os.PathLike[str], progress: bool = False) -> Path:
    """See Beyond.get."""
    if not isinstance(handle, FileHandle):
        raise TypeError(f"get() takes a handle of farm.put(), not {type(handle).__name__}")
    target = Path(os.path.abspath(check_path(path)))
    check_target(target, handle)
    if handle._holding is None and handle._need.archived:
        return _bring_kept(farm, handle, target, progress)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with beside(target.parent) as folder:
            if handle._holding is not None:
                whole = _write(handle._holding, folder / "whole")
            else:
                whole = _bring(farm, handle, folder)
            _put_in_place(whole, target)
        sync_directory(target.parent)
    except OSError as error:
        if isinstance(error, TransferError):
            raise
        text = f"cannot write {handle.name!r} to {str(target)!r}: {error.strerror}"
        raise TransferError(text, error.errno or 0) from None
    return target


def _put_in_place(whole: Path, target: Path) -> None:
    """Rename what is complete. A directory that its owner must not write to cannot be moved to another one:
    it may be, for that moment."""
    mode = stat.S_IMODE(os.lstat(whole).st_mode)
    directory = whole.is_dir()
    if directory:
        with suppress(FileNotFoundError):
            os.rmdir(target)
        os.chmod(whole, mode | 0o700)
    os.rename(whole, target)
    if directory:
        os.chmod(target, mode)


def _bring_kept(farm: Executor, handle: FileHandle, target: Path, progress: bool) -> Path:
    from zfarm import naming
    from zfarm.loading import bar

    try:
        with bar(handle.name, None if handle.is_directory else handle.size, progress) as moved:
            naming.get(farm, handle, target, moved)
    except OSError as error:
        if isinstance(error, FarmError):
            raise
        text = f"cannot write {handle.name!r} to {str(target)!r}: {error.strerror}"
        raise TransferError(text, error.errno or 0) from None
    return target


def check_target(target: Path, handle: FileHandle) -> None:
    """Raise TransferError unless it can be written there."""
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise TransferError(f"cannot write {str(target)!r}: {error.strerror}", error.errno or 0) from None
    if handle.is_directory and not (stat.S_ISDIR(mode) and not os.listdir(target)):
        text = f"{str(target)!r} is there already: name a directory that is not, or an empty one"
        raise TransferError(text, errno.EEXIST)
    if not handle.is_directory and not stat.S_ISREG(mode):
        text = f"{str(target)!r} is there already, and is no regular file: it is not replaced"
        raise TransferError(text, errno.EEXIST)


def _write(held: Holding, whole: Path) -> Path:
    """Copy what this process has, verified and synced, to ``whole``, and return that."""
    if isinstance(held, TreeHolding):
        return _build(held.manifest, whole, lambda need: _opened(held, need))
    source = held.open()
    try:
        target = os.open(whole, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_content(source, target)
            if digest_of_file(target, held.need.size, held.path.name) != held.need.digest:
                raise DamagedFile(f"{str(held.path)!r} has changed while it was copied")
            os.fchmod(target, held.mode)
            os.fsync(target)
        finally:
            os.close(target)
    finally:
        os.close(source)
    return whole


def _build(
    manifest: Manifest, whole: Path, open_blob: Callable[[Need], tuple[int, str]], blobs: int = -1
) -> Path:
    """Make a directory at ``whole``, synced, and return that; of files in ``blobs``, if there are such, which
    are not there any more then."""
    os.mkdir(whole, 0o700)
    top = os.open(whole, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        build_tree(manifest, top, open_blob, blobs, writable=True, spend=blobs >= 0)
        sync_files(top, [], len(manifest.entries) + 100)
        os.fchmod(top, manifest.mode)
    finally:
        os.close(top)
    return whole


def _opened(held: TreeHolding, need: Need) -> tuple[int, str]:
    found = held.blob(need.digest)
    assert isinstance(found, FileHolding), "a directory has all files that it lists"
    return found.open(), ""


def _bring(farm: Executor, handle: FileHandle, folder: Path) -> Path:
    """Have a worker send it that has it in its store, into ``folder``; where it is then, verified."""
    future = farm.submit(_send, handle)
    future.files.into(folder)
    try:
        future.result()
        came = {file.name: file.digest for file in future.files.wait()}
    except TransferError as error:
        raise TransferError(f"{handle.name!r} cannot be had: {error}", error.errno or 0) from error
    if came.get(_GOT) != handle.digest:
        raise DamagedFile(f"{handle.name!r} is not what the worker has sent")
    if not handle.is_directory:
        os.chmod(folder / _GOT, handle.mode)
        return folder / _GOT
    manifest = read_manifest((folder / _GOT).read_bytes())

    def blob(need: Need) -> tuple[int, str]:
        name = file_name(need.digest, need.size)
        if came.get(name) != need.digest.hex():
            raise DamagedFile(f"a file of {handle.name!r} is not what the worker has sent")
        return os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), name

    blobs = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _build(manifest, folder / "whole", blob, blobs)
    finally:
        os.close(blobs)


def _send(handle: FileHandle) -> None:
    """In a task: send this home; of a directory its list, and each different file once, by its digest."""
    from zfarm.transfer import scratch, send_file

    held = holding_of(handle)
    if not isinstance(held, TreeHolding):
        send_file(handle, _GOT)
        return
    listed = scratch() / _GOT
    listed.write_bytes(held.packed)
    send_file(listed, _GOT)
    for need in {entry.need: None for entry in held.manifest.entries if entry.digest}:
        found = held.blob(need.digest)
        assert isinstance(found, FileHolding), "a directory has all files that it lists"
        send_file(found.path, file_name(need.digest, need.size))
