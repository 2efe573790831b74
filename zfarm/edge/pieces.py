"""Large results as pieces in the stream of their tasks' files: how they are taken apart, and what a client
makes of them; no socket, no machine.

    R size           a part of the result begins      V digest data    its next chunk
    W digest         it is complete

A part is a large buffer of the result's pickle, or the pickle itself, which comes last then. The outcome's
own blob is ``L`` and a table: size and digest of each part in order, and the pickle if that is no part.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from zfarm.edge.cargo import Cargo
from zfarm.edge.parcels import digest_of, whole_digest
from zfarm.errors import DamagedFile, TransferError
from zfarm.messages import CHUNK_BYTES, DIGEST_BYTES, Blob
from zfarm.settings import settings

__all__ = [
    "KINDS",
    "LANDED",
    "Gathered",
    "Part",
    "table",
    "take_apart",
]

KINDS: Final = frozenset(b"RVW")
"""First bytes of pieces; those of files have others (zfarm.edge.parcels)."""
LANDED: Final = b"L"
"""The first byte of the blob of an outcome whose result has come in pieces."""
_SIZE_BYTES: Final = 8
_MAPPED_FROM: Final = 1024 * 1024


class Part(msgspec.Struct, frozen=True, array_like=True):
    """What a part of a result is known by."""

    digest: bytes
    size: int


class _Table(msgspec.Struct, frozen=True, array_like=True):
    parts: list[Part]
    pickle: bytes | None


_pack: Final = msgspec.msgpack.Encoder().encode
_read: Final = msgspec.msgpack.Decoder(_Table).decode


def take_apart(data: memoryview, emit: Callable[[bytes], None]) -> Part:
    """Emit the pieces of one part; what it is known by."""
    emit(b"R" + data.nbytes.to_bytes(_SIZE_BYTES, "big"))
    digests = bytearray()
    for at in range(0, data.nbytes, CHUNK_BYTES):
        chunk = data[at : at + CHUNK_BYTES]
        digest = digest_of(chunk)
        digests += digest
        emit(b"".join((b"V", digest, chunk)))
    whole = whole_digest(digests)
    emit(b"W" + whole)
    return Part(whole, data.nbytes)


def table(parts: list[Part], pickle: bytes | None) -> bytes:
    """The blob of an outcome of these parts; no ``pickle``: the last of them is it."""
    return LANDED + _pack(_Table(parts, pickle))


class Gathered:
    """What has come of one result, in one attempt of its call. It is put where it will be used."""

    def __init__(self) -> None:
        self._parts: list[tuple[Part, Any]] = []
        self._memory: Any = None  # of the part that comes just now
        self._size = self._at = 0
        self._digests = bytearray()
        self._failure: TransferError | None = None

    def take(self, piece: Blob) -> None:
        """The next piece. What is wrong is told when the result is wanted."""
        if self._failure is not None:
            return
        try:
            self._take(memoryview(piece))
        except (OSError, MemoryError, ValueError, TransferError) as error:
            self._memory = None
            self._parts.clear()
            self._failure = error if isinstance(error, TransferError) else self._no_room(error)

    def _no_room(self, error: BaseException) -> TransferError:
        return TransferError(
            f"the result cannot be held here: {str(error) or type(error).__name__} ({self._size:,} bytes "
            "were wanted); return less, or let it stay on its host: options(keep=True)"
        )

    def _take(self, piece: memoryview) -> None:
        kind, rest = bytes(piece[:1]), piece[1:]
        if kind == b"R" and len(rest) == _SIZE_BYTES:
            self._size, self._at = int.from_bytes(rest, "big"), 0
            if self._size > settings.payload_bytes_max:
                raise TransferError(
                    f"a result has {self._size:,} bytes, at most {settings.payload_bytes_max:,} may come: "
                    "set ZFARM_PAYLOAD_BYTES_MAX for client, broker and workers"
                )
            self._memory = _memory(self._size)
            self._digests = bytearray()
        elif kind == b"V" and self._memory is not None and len(rest) > DIGEST_BYTES:
            self._write(bytes(rest[:DIGEST_BYTES]), rest[DIGEST_BYTES:])
        elif kind == b"W" and self._memory is not None and self._at == self._size:
            if whole_digest(self._digests) != bytes(rest):
                raise DamagedFile("a result came damaged: its digest differs")
            memory, self._memory = self._memory, None
            self._parts.append((Part(bytes(rest), self._size), memory))
        else:
            raise DamagedFile(f"a result came damaged: there is a hole before {kind!r}")

    def _write(self, digest: bytes, data: memoryview) -> None:
        if len(data) != min(CHUNK_BYTES, self._size - self._at):
            raise DamagedFile(f"a result came damaged: there are {len(data)} bytes at {self._at}")
        if digest_of(data) != digest:
            raise DamagedFile(
                f"a result came damaged: its bytes {self._at} and on are not those that were sent"
            )
        self._memory[self._at : self._at + len(data)] = data
        self._at += len(data)
        self._digests += digest

    def opened(self, blob: Blob) -> Cargo:
        """The result whose outcome came with this blob; once, since its memory is handed over.

        Raises:
            TransferError: it is not here, or something else is.
        """
        if self._failure is not None:
            raise self._failure
        try:
            told = _read(memoryview(blob)[len(LANDED) :])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise TransferError(f"the table of a result cannot be read: {error}") from None
        parts, self._parts = self._parts, []
        if [part for part, _ in parts] != told.parts:
            raise TransferError(
                f"a result of {len(told.parts)} parts has come, and {len(parts)} of them are here, or others"
            )
        buffers = [memory for _, memory in parts]
        cargo = Cargo(told.pickle or b"")
        if told.pickle is None:
            cargo.data = buffers.pop()
        cargo.buffers = buffers
        cargo.weight = sum(part.size for part, _ in parts) + len(cargo)
        return cargo


def _memory(size: int) -> Any:
    """Private memory, to be written to, that goes with its last user. Raises OSError, MemoryError."""
    if size < _MAPPED_FROM:
        return memoryview(bytearray(size))
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # of the kernel's large pages one touch is worth 512
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
