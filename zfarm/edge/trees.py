"""Directories as blobs: what is in one, as its manifest lists it; how it is read, and how it is made again.

A manifest is as little to be trusted as whoever sent it: every name is judged by zfarm.edge.names, a link may
lead to what is listed only, and what is made is made by descriptor in a directory that was empty.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from zfarm.edge.handover import copy_content
from zfarm.edge.names import Names
from zfarm.edge.parcels import open_regular
from zfarm.errors import TransferError, UnsafeName
from zfarm.messages import DIGEST_BYTES, Blob, Need
from zfarm.settings import settings

__all__ = [
    "FOLDER",
    "Entry",
    "Manifest",
    "build_tree",
    "check_list",
    "pack_manifest",
    "read_manifest",
    "walk_tree",
]

FILE: Final = "f"
FOLDER: Final = "d"
LINK: Final = "l"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
LINK_MAX: Final = 2048
"""Characters of the target of a symbolic link."""
STORED_MODE: Final = 0o444
"""Of a file in the store."""
ENTRY_BYTES: Final = 256
"""Of a file in a list, on an average, at most: a list is read whole."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A file, a directory or a symbolic link below the directory."""

    name: str
    kind: str
    mode: int = 0
    digest: bytes = b""
    size: int = 0
    target: str = ""  # of a link

    @property
    def need(self) -> Need:
        """The blob of a file."""
        return Need(self.digest, self.size)


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """All that is in a directory; what is in something comes after it."""

    mode: int
    entries: list[Entry]


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(Manifest).decode


def pack_manifest(manifest: Manifest) -> bytes:
    """The blob of a manifest."""
    return _pack(manifest)


def read_manifest(blob: Blob) -> Manifest:
    """The manifest in a blob, judged.

    Raises:
        TransferError: it is none, or lists more than there may be.
        UnsafeName: a name or link in it leads out of its directory, cannot be a name, or clashes.
    """
    check_list(len(blob), _listed(blob))
    try:
        manifest = _unpack(blob)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TransferError(f"the list of a directory's files cannot be read: {error}") from None
    names = Names()
    folders = {""}
    for entry in manifest.entries:
        names.add(entry.name, entry.kind == FOLDER)
        if entry.name.rpartition("/")[0] not in folders:
            raise UnsafeName(f"{entry.name!a} is in a directory that is not listed before it")
        _judge(entry)
        if entry.kind == FOLDER:
            if entry.name in folders:
                raise UnsafeName(f"{entry.name!a} is listed twice")
            folders.add(entry.name)
    return manifest


def check_list(size: int, files: int = 0) -> None:
    """Raise TransferError: a list of so many bytes and files is more than may be read."""
    most = settings.files_max
    if files > most:
        raise TransferError(
            f"a directory lists {files:,} files, at most {most:,} may travel: "
            "pack them, or set ZFARM_FILES_MAX"
        )
    if size > most * ENTRY_BYTES:
        raise TransferError(
            f"the list of a directory's files has {size:,} bytes, at most {most * ENTRY_BYTES:,} may travel: "
            "pack them, or set ZFARM_FILES_MAX"
        )


def _listed(blob: Blob) -> int:
    """How many entries a list has by its own words: a few bytes of each can be a hundred times as much in
    memory. Raises TransferError: it does not begin as pack_manifest has it."""
    head = bytes(blob[:16]).ljust(16, b"\0")
    skip = 1 if head[1] < 0x80 else {0xCC: 2, 0xCD: 3}.get(head[1], 0)  # the mode
    kind = head[1 + skip]
    if head[0] == 0x92 and skip and kind & 0xF0 == 0x90:
        return kind & 0x0F
    if head[0] == 0x92 and skip and kind in (0xDC, 0xDD):
        return int.from_bytes(head[2 + skip : 2 + skip + (2 if kind == 0xDC else 4)], "big")
    raise TransferError("the list of a directory's files cannot be read: it does not begin as one")


def _judge(entry: Entry) -> None:
    if not 0 <= entry.mode <= 0o777 or not 0 <= entry.size <= settings.file_bytes_max:
        raise TransferError(f"{entry.name!a} claims to have {entry.size} bytes and mode {entry.mode:o}")
    if entry.kind == FILE:
        if len(entry.digest) != DIGEST_BYTES:
            raise TransferError(f"{entry.name!a} is listed without a digest")
    elif entry.kind == LINK:
        check_link(entry.name, entry.target)
    elif entry.kind != FOLDER:
        raise TransferError(f"{entry.name!a} is listed as {entry.kind!a}, which is nothing that may travel")


def check_link(name: str, target: str) -> None:
    """Raise UnsafeName unless a link of this name and target stays within its directory, step by step."""
    shown = f"the link {name!a} to {target[:200]!a}"
    if not target or target.startswith("/") or "\0" in target or len(target) > LINK_MAX:
        raise UnsafeName(f"{shown} does not stay within its directory: it has to be relative")
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    if ups > name.count("/"):
        raise UnsafeName(f"{shown} leads out of its directory")
    if ".." in parts[ups:]:
        raise UnsafeName(f"{shown} goes down before it goes up: nobody knows where that leads")


def walk_tree(top: Path) -> Iterator[tuple[Entry, int]]:
    """What is in a directory of ours, without digests, and for each file a descriptor, which is the caller's.

    Raises:
        TransferError: something in it cannot travel, or cannot be read; the text says what.
    """
    names = Names()
    for at, folders, files, fd in os.fwalk(top, onerror=_unreadable, follow_symlinks=False):
        folder = os.path.relpath(at, top)
        prefix = "" if folder == os.curdir else folder + "/"
        folders.sort()
        if prefix:
            yield Entry(names.add(folder, True), FOLDER, stat.S_IMODE(os.fstat(fd).st_mode) & 0o777), -1
        links = [base for base in folders if stat.S_ISLNK(os.lstat(base, dir_fd=fd).st_mode)]
        for base in sorted([*files, *links]):
            name = names.add(prefix + base)
            mode = os.lstat(base, dir_fd=fd).st_mode
            if stat.S_ISLNK(mode):
                target = os.readlink(base, dir_fd=fd)
                check_link(name, target)
                yield Entry(name, LINK, target=target), -1
                continue
            opened = open_regular(base, follow=False, dir_fd=fd)
            status = os.fstat(opened)
            yield Entry(name, FILE, stat.S_IMODE(status.st_mode) & 0o777, b"", status.st_size), opened


def _unreadable(error: OSError) -> None:
    name = os.fsdecode(error.filename or "")
    raise TransferError(f"cannot read the directory {name!r}: {error.strerror}", error.errno or 0)


def build_tree(
    manifest: Manifest,
    top: int,
    open_blob: Callable[[Need], tuple[int, str]],
    blobs: int,
    writable: bool,
    spend: bool = False,
) -> int:
    """Make what a manifest lists in the empty directory ``top``; the bytes that were copied.

    ``open_blob`` opens a file's blob, and names it within ``blobs``. Unless it shall be ``writable``, files
    are the very blobs where their mode allows it. With ``spend`` nobody needs the blobs any more: each is
    moved to the last file that it is. Raises OSError, TransferError.
    """
    uses = Counter(entry.need for entry in manifest.entries if spend and entry.kind == FILE)
    copied = 0
    opened = {"": top}
    modes: list[tuple[str, int]] = []
    try:
        for entry in manifest.entries:
            folder, _, base = entry.name.rpartition("/")
            fd = opened.get(folder, -1)
            if fd < 0:
                for old in [name for name in opened if name and not folder.startswith(name + "/")]:
                    os.close(opened.pop(old))
                fd = opened[folder] = _descend(top, folder)
            if entry.kind == FOLDER:
                os.mkdir(base, 0o700, dir_fd=fd)
                modes.append((entry.name, entry.mode))
            elif entry.kind == LINK:
                os.symlink(entry.target, base, dir_fd=fd)
            elif spend and uses[entry.need] == 1:
                _spend(entry, base, fd, open_blob, blobs)
            else:
                if spend:
                    uses[entry.need] -= 1
                copied += _place(entry, base, fd, open_blob, blobs, writable)
        for name, mode in reversed(modes):
            below = _descend(top, name)
            try:
                os.fchmod(below, mode if writable else mode | 0o500)
            finally:
                os.close(below)
    finally:
        for name, fd in opened.items():
            if name:
                os.close(fd)
    return copied


def _spend(
    entry: Entry, base: str, folder: int, open_blob: Callable[[Need], tuple[int, str]], blobs: int
) -> None:
    source, name = open_blob(entry.need)
    try:
        os.fchmod(source, entry.mode)
        os.rename(name, base, src_dir_fd=blobs, dst_dir_fd=folder)
    finally:
        os.close(source)


def _place(
    entry: Entry,
    base: str,
    folder: int,
    open_blob: Callable[[Need], tuple[int, str]],
    blobs: int,
    writable: bool,
) -> int:
    source, name = open_blob(entry.need)
    try:
        mode = entry.mode if writable else entry.mode & 0o555 | 0o400
        if not writable and mode == STORED_MODE:
            with suppress(OSError):  # a file system may allow no or only so many links
                os.link(name, base, src_dir_fd=blobs, dst_dir_fd=folder, follow_symlinks=False)
                return 0
        target = os.open(base, _NEW, 0o600, dir_fd=folder)
        try:
            copy_content(source, target)
            os.fchmod(target, mode)
        finally:
            os.close(target)
        return entry.size
    finally:
        os.close(source)


def _descend(top: int, name: str) -> int:
    fd = os.dup(top)
    for part in name.split("/") if name else ():
        try:
            below = os.open(part, _DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd
