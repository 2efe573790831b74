"""What must hold between the fields of messages about blobs, as zfarm.edge.checks has it for all others; it
knows no frame and no file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zfarm import messages as m
from zfarm.edge.bounds import Malformed
from zfarm.edge.bounds import blobs as _blobs
from zfarm.edge.bounds import listed as _listed
from zfarm.edge.bounds import name as _name
from zfarm.edge.bounds import number as _number
from zfarm.edge.bounds import numbers as _numbers
from zfarm.edge.bounds import real as _real
from zfarm.settings import settings

__all__ = ["FILE_CHECKS", "digests"]

PATH_MAX: Final = 4096
MODE_MAX: Final = 0o777


def digests(what: str, *blobs: m.Need | m.Keep | m.Wanted | m.Chunk) -> None:
    """Digests and sizes as they can be."""
    for blob in blobs:
        if len(blob.digest) != m.DIGEST_BYTES:
            raise Malformed(f"the digest of {what} has {len(blob.digest)} bytes")
    _numbers(f"sizes of {what}", [blob.size for blob in blobs], settings.file_bytes_max)


def _want(message: m.Want, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _numbers("lease, task and bytes taken", (message.lease, message.task, message.taken))
    _name("a host or an owner", message.host, message.owner)
    _listed("files", message.wants, settings.batch_calls_max)
    digests("a file", *message.wants)
    for one in message.wants:
        _number("the end of what is wanted", one.upto, one.size)
        _number("the begin of what is wanted", one.at, one.upto)
        if one.at % m.CHUNK_BYTES:
            raise Malformed(f"a chunk begins at {one.at}")


def _chunks(message: m.Chunks, blobs: int) -> None:
    _listed("chunks", message.chunks, settings.batch_calls_max)
    _blobs(message, blobs, len(message.chunks))
    _numbers("lease and task", (message.lease, message.task))
    digests("a file", *message.chunks)
    for chunk in message.chunks:
        _number("the begin of a chunk", chunk.at, chunk.size)
        _name("a path", chunk.path, most=PATH_MAX)
        _name("a reason", chunk.text, most=settings.text_bytes_max)
        if len(chunk.check) != (0 if chunk.path or chunk.text else m.DIGEST_BYTES):
            raise Malformed(f"the digest of a chunk has {len(chunk.check)} bytes")


def _archive(message: m.Archive, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("number", message.number)
    _name("a name", message.name)
    digests("a file", message.need)
    _number("mode", message.mode, MODE_MAX)


def _lookup(message: m.Lookup, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("number", message.number)
    _name("a name", message.name)


def _discard(message: m.Discard, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("number", message.number)
    _name("a name or an owner", message.name, message.owner)


def _archived(message: m.Archived, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _numbers("number, first and total", (message.number, message.first, message.total))
    _listed("files", message.files, settings.batch_calls_max)
    _name("a code", message.code, most=64)
    _name("a reason", message.text, most=settings.text_bytes_max)
    digests("a file", *(file.need for file in message.files))
    for file in message.files:
        _name("a name or an owner", file.name, file.owner)
        _number("mode", file.mode, MODE_MAX)
        _numbers("bytes and files", (file.bytes, file.files))
        _real("a time", file.at)


def _pin(message: m.Pin, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("number", message.number)
    _name("a worker or an owner", message.at, message.owner)
    _listed("what is kept", message.keeps, settings.batch_calls_max)
    _listed("what is dropped", message.drops, settings.batch_calls_max)
    digests("a kept result", *message.keeps, *message.drops)
    if any(len(keep.birth) > m.DIGEST_BYTES for keep in message.keeps):
        raise Malformed("the name of a result at its birth is too long")


def _pinned(message: m.Pinned, blobs: int) -> None:
    _blobs(message, blobs, 0)
    _number("number", message.number)
    _name("a worker or an owner", message.at, message.owner)


FILE_CHECKS: Final[dict[Any, Callable[[Any, int], None]]] = {
    m.Want: _want,
    m.Chunks: _chunks,
    m.Archive: _archive,
    m.Lookup: _lookup,
    m.Discard: _discard,
    m.Archived: _archived,
    m.Pin: _pin,
    m.Pinned: _pinned,
}
