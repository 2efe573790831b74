"""Files as items of a stream: how a sender takes them apart, and what a receiver reads; it writes no file.

    H head           a file begins              C digest data    its next chunk
    T digest         it is complete             S head digest data    a small file, complete
    D head           a directory                X refusal        this one cannot be had, and why
    P handed         a file lies ready on this host (zfarm.edge.handover); T comes when it was read

A digest is BLAKE3, 32 bytes: of a chunk its data's, of a file that of the digests of its chunks in order.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, TypeAlias

import msgspec

from zfarm.edge.pages import room
from zfarm.errors import TransferError
from zfarm.messages import CHUNK_BYTES, DIGEST_BYTES, Blob
from zfarm.settings import settings

__all__ = [
    "CHUNK_BYTES",
    "DIGEST_BYTES",
    "Chunk",
    "Handed",
    "Head",
    "Piece",
    "Refusal",
    "Small",
    "Tail",
    "digest_of",
    "digest_of_file",
    "directory_item",
    "file_items",
    "handed_item",
    "head_of",
    "open_regular",
    "read_item",
    "refusal_item",
    "tail_item",
    "whole_digest",
]

SMALL_BYTES: Final = 64 * 1024
"""A file up to this size is one item."""
_LENGTH: Final = 4
_TEXT_MAX: Final = 2000


class Head(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a file or directory before its content. ``mode`` has its permissions alone."""

    name: str
    size: int = 0
    mode: int = 0o644
    directory: bool = False


class Handed(msgspec.Struct, frozen=True, array_like=True):
    """A file that lies ready on this host, under this number in that scratch directory."""

    head: Head
    scratch: str
    number: int


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """This file cannot be had."""

    name: str
    text: str


class Chunk(msgspec.Struct, frozen=True):
    """The next chunk of the file that was begun last."""

    digest: bytes
    data: Blob


class Tail(msgspec.Struct, frozen=True):
    """The file that was begun last is complete."""

    digest: bytes


class Small(msgspec.Struct, frozen=True):
    """A complete file."""

    head: Head
    digest: bytes
    data: Blob


Piece: TypeAlias = Head | Handed | Chunk | Tail | Small | Refusal

_pack: Final = msgspec.msgpack.Encoder().encode
_read_head: Final = msgspec.msgpack.Decoder(Head).decode
_read_handed: Final = msgspec.msgpack.Decoder(Handed).decode
_read_refusal: Final = msgspec.msgpack.Decoder(Refusal).decode


@cache
def _hasher() -> Any:
    from blake3 import blake3

    return blake3


def digest_of(data: Blob) -> bytes:
    """The digest of a chunk."""
    digest: bytes = _hasher()(data).digest()
    return digest


def whole_digest(digests: bytes | bytearray) -> bytes:
    """The digest of a file, of those of its chunks."""
    return digest_of(digests)


# ---------------------------------------------------------------- taking apart


def open_regular(path: str | os.PathLike[str], follow: bool = True, dir_fd: int | None = None) -> int:
    """Open a file for reading: only one with content of its own, and without waiting for anybody.

    Raises:
        TransferError: it is a directory, a device, a pipe or a socket (or, unless we ``follow`` them, a
            symbolic link), or cannot be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise TransferError(f"cannot send {os.fspath(path)!r}: it is a symbolic link") from None
        if error.errno == errno.ENXIO:  # what opening a socket says
            raise TransferError(f"cannot send {os.fspath(path)!r}: it is no regular file") from None
        raise TransferError(f"cannot open {os.fspath(path)!r}: {error.strerror}", error.errno or 0) from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
    raise TransferError(f"cannot send {os.fspath(path)!r}: it is {what}")


def head_of(fd: int, name: str) -> Head:
    """The head of the regular file ``fd``.

    Raises:
        TransferError: it is too large, or has content, and its file system says that it is empty.
    """
    status = os.fstat(fd)
    size = status.st_size
    if not size and _has_content(fd, name):
        raise TransferError(
            f"cannot send {name!r}: its file system does not say how large it is, as those of /proc and the "
            "like; send a copy of it"
        )
    if size > settings.file_bytes_max:
        raise TransferError(
            f"{name!r} has {size:,} bytes, at most {settings.file_bytes_max:,} may travel: send parts of it, "
            "or set ZFARM_FILE_BYTES_MAX for client, broker and workers"
        )
    return Head(name, size, stat.S_IMODE(status.st_mode) & 0o777)


def _has_content(fd: int, name: str) -> bool:
    """Whether there is something to be read in a file that is still told to be empty."""
    try:
        return bool(os.pread(fd, 1, 0)) and not os.fstat(fd).st_size
    except OSError as error:
        raise TransferError(f"cannot read {name!r}: {error.strerror}", error.errno or 0) from None


def digest_of_file(fd: int, size: int, name: str) -> bytes:
    """The digest of so many bytes of a file. Raises TransferError: it has less, or cannot be read."""
    digests = bytearray()
    buffer = bytearray(min(size, CHUNK_BYTES))
    for at in range(0, size, CHUNK_BYTES):
        if size - at < len(buffer):
            buffer = bytearray(size - at)
        digests += digest_of(_read(fd, buffer, 0, at, name))
    return whole_digest(digests)


def handed_item(head: Head, scratch: str, number: int) -> bytes:
    """The item of a file that lies ready."""
    return b"P" + _pack(Handed(head, scratch, number))


def tail_item(digest: bytes) -> bytes:
    """The item which says that a file is complete."""
    return b"T" + digest


def file_items(fd: int, name: str | Head) -> Iterator[Blob]:
    """The items of the regular file ``fd``, as it is now; with its head, where that is known, as it was.

    Raises:
        TransferError: it gets shorter while it is read, or cannot be read. A refusal has to follow.
    """
    head = head_of(fd, name) if isinstance(name, str) else name
    name, size = head.name, head.size
    if size <= SMALL_BYTES:
        data = _read(fd, bytearray(size), 0, 0, name)
        packed = _pack(head)
        yield b"".join((b"S", len(packed).to_bytes(_LENGTH, "big"), packed, digest_of(data), data))
        return
    yield b"H" + _pack(head)
    digests = bytearray()
    at, start = 0, 1 + DIGEST_BYTES
    while at < size:
        item = room(start + min(CHUNK_BYTES, size - at))
        _read(fd, item, start, at, name)
        with memoryview(item) as view:
            digest = digest_of(view[start:])
        item[0:start] = b"C" + digest
        digests += digest
        at += len(item) - start
        yield item
    yield tail_item(whole_digest(digests))


def _read(fd: int, buffer: bytearray, start: int, at: int, name: str) -> bytearray:
    with memoryview(buffer) as view:
        while start < len(buffer):
            try:
                got = os.preadv(fd, [view[start:]], at)
            except OSError as error:
                raise TransferError(f"cannot read {name!r}: {error.strerror}", error.errno or 0) from None
            if not got:
                raise TransferError(f"{name!r} got shorter while it was sent")
            start += got
            at += got
    return buffer


def directory_item(name: str, mode: int) -> bytes:
    """The item of a directory."""
    return b"D" + _pack(Head(name, 0, mode & 0o777, True))


def refusal_item(name: str, text: str) -> bytes:
    """The item which says that a file, perhaps one that was begun, cannot be had."""
    shown = name[:_TEXT_MAX].encode("utf-8", "backslashreplace").decode()
    return b"X" + _pack(Refusal(shown, text[:_TEXT_MAX].encode("utf-8", "backslashreplace").decode()))


# ---------------------------------------------------------------- reading


def read_item(blob: Blob) -> Piece:
    """What an item says.

    Raises:
        TransferError: it is none.
    """
    view = memoryview(blob)
    kind, rest = bytes(view[:1]), view[1:]
    try:
        if kind == b"C" and DIGEST_BYTES < len(rest) <= DIGEST_BYTES + CHUNK_BYTES:
            return Chunk(bytes(rest[:DIGEST_BYTES]), rest[DIGEST_BYTES:])
        if kind == b"S":
            length = int.from_bytes(rest[:_LENGTH], "big")
            head, data = rest[_LENGTH : _LENGTH + length], rest[_LENGTH + length :]
            if len(head) == length and DIGEST_BYTES <= len(data) <= DIGEST_BYTES + SMALL_BYTES:
                return Small(_head(head), bytes(data[:DIGEST_BYTES]), data[DIGEST_BYTES:])
        if kind == b"T" and len(rest) == DIGEST_BYTES:
            return Tail(bytes(rest))
        if kind in (b"H", b"D"):
            return _head(rest)
        if kind == b"X":
            return _read_refusal(rest)
        if kind == b"P":
            handed = _read_handed(rest)
            return Handed(_checked(handed.head), handed.scratch, handed.number)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TransferError(f"a piece of a file cannot be read: {error}") from None
    raise TransferError(f"a piece of a file is none: {bytes(view[:20])!r}")


def _head(packed: memoryview) -> Head:
    return _checked(_read_head(packed))


def _checked(head: Head) -> Head:
    if not 0 <= head.size <= settings.file_bytes_max or not 0 <= head.mode <= 0o777:
        raise TransferError(f"{head.name!r} claims to have {head.size} bytes and mode {head.mode:o}")
    return head
