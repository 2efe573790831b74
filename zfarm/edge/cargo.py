"""Pickles whose large parts are in shared memory: how they are packed, and opened again; it owns no segment.

    b"S", number of tokens, the tokens of the segments, pickle of (kept, parts, data)

``parts`` are what the pickle ``data`` takes as its buffers, each a reference to a segment, to a slice of one
that its reader owns, on farms over TCP to a blob of the worker's store, or the bytes themselves where there
was no room for one. ``data`` may be a reference, too. ``kept`` are tokens of segments that whoever packed
this has still mapped: with an outcome those of its arguments. The tokens in front are for the worker, which
reads no pickle; those of slices are none of its business.
"""

from __future__ import annotations

import ctypes
import pickle
import struct
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from zfarm.edge.segments import TOKEN_BYTES, Ref, Slice, area_of, bytes_of
from zfarm.edge.stored import Stored, area_of_stored
from zfarm.messages import Blob
from zfarm.settings import settings

__all__ = [
    "CARGO",
    "Apart",
    "Cargo",
    "Large",
    "Mapped",
    "Part",
    "is_cargo",
    "large",
    "opened_cargo",
    "pack",
    "small",
    "start_again",
    "stored_of",
    "tokens_of",
    "unpacked",
    "weigh",
]

CARGO: Final = b"S"
"""The first byte of such a blob."""
Part: TypeAlias = Ref | Slice | Stored | bytes
Get: TypeAlias = Callable[[Ref], Any]
_HEAD: Final = struct.Struct("<cI")
_FROM_BYTES: Final = settings.shared_from_bytes


class Cargo(bytes):
    """A blob with what belongs to it: what it has in shared memory, and who must be told of its end."""

    hold: Any = None
    """Dies with it."""
    kept: Sequence[bytes] = ()
    """Tokens of segments that its sender has still mapped."""
    weight = 0
    """Bytes of all that it stands for."""
    buffers: Sequence[Any] = ()
    """What its pickle takes for its buffers."""
    data: Any = None
    """The pickle, if that is not what the blob itself is."""

    def load(self, loads: Callable[..., Any] = pickle.loads) -> Any:
        """What is in it; once, since it belongs to whoever gets it then."""
        buffers, self.buffers = self.buffers, ()
        data, self.data = self.data, None
        return loads(self if data is None else data, buffers=buffers)


Encoded = TypeVar("Encoded")


class Large(Exception):
    """Something to be pickled has a large buffer: it is to be pickled apart."""


def large(buffer: pickle.PickleBuffer) -> bool:
    """For the first attempt at pickling something, which is nearly always the only one: give up at the first
    large buffer, before it is copied."""
    if _size(buffer) >= _FROM_BYTES:
        raise Large
    return True


class Apart:
    """For pickling something with large buffers: collects those."""

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """False: it is not in the pickle."""
        if _size(buffer) < _FROM_BYTES:
            return True
        self.buffers.append(buffer.raw())
        return False


def parted(encode: Callable[..., Encoded], *things: Any) -> tuple[Encoded, Sequence[memoryview]]:
    """What ``encode(*things, callback)`` gives, and the large buffers that are not in it."""
    try:
        return encode(*things, large), ()
    except Large:
        collector = Apart()
        return encode(*things, collector), collector.buffers


def start_again(callback: Callable[[pickle.PickleBuffer], bool] | None) -> None:
    """Something is pickled in another way after the first one has failed."""
    if isinstance(callback, Apart):
        callback.buffers.clear()


def _size(buffer: pickle.PickleBuffer) -> int:
    try:
        with buffer.raw() as view:
            return view.nbytes
    except BufferError:  # not in one piece: the pickler makes one of it
        return 0


def small(size: int) -> bool:
    """Whether a pickle of this size travels as it is."""
    return size < _FROM_BYTES


def is_cargo(blob: Blob) -> bool:
    """Whether this is such a blob."""
    return blob[:1] == CARGO


def pack(parts: Sequence[Part], data: Part, kept: Iterable[bytes] = ()) -> bytes:
    """Such a blob."""
    tokens = [part.token for part in (*parts, data) if isinstance(part, Ref)]
    plain = [_plain(part) for part in parts]
    head = _HEAD.pack(CARGO, len(tokens))
    return b"".join((head, *tokens, pickle.dumps((tuple(kept), plain, _plain(data)), 5)))


def _plain(part: Part) -> Any:
    if isinstance(part, Slice):
        return (tuple(part.ref), part.start, part.size)
    return part if isinstance(part, bytes) else tuple(part)


def tokens_of(blob: Blob) -> list[bytes]:
    """The tokens of the segments that a blob names. None for one that is no such blob, or a broken one."""
    if len(blob) < _HEAD.size or not is_cargo(blob):
        return []
    _, count = _HEAD.unpack_from(blob)
    names = bytes(blob[_HEAD.size : _HEAD.size + count * TOKEN_BYTES])
    return [names[at : at + TOKEN_BYTES] for at in range(0, len(names) - TOKEN_BYTES + 1, TOKEN_BYTES)]


def unpacked(blob: Blob) -> tuple[Sequence[bytes], list[Part], Part]:
    """What such a blob was packed of: what is kept, the parts, and the pickle."""
    _, count = _HEAD.unpack_from(blob)
    kept, parts, data = pickle.loads(memoryview(blob)[_HEAD.size + count * TOKEN_BYTES :])
    return kept, [_part(part) for part in parts], _part(data)


def stored_of(blob: Blob) -> list[Stored]:
    """What a blob refers to in stores. None for one that is no such blob."""
    if not is_cargo(blob):
        return []
    _, parts, data = unpacked(blob)
    return [part for part in (*parts, data) if isinstance(part, Stored)]


def _part(part: Any) -> Part:
    if isinstance(part, bytes):
        return part
    if len(part) == len(Slice._fields):
        ref, start, size = part
        return Slice(Ref(*ref), start, size)
    return Stored(*part) if len(part) == len(Stored._fields) else Ref(*part)


def opened_cargo(
    blob: Blob, mapped: Callable[[Ref, Any], None], get: Get = area_of, ours: Get | None = None
) -> Cargo:
    """The cargo of such a blob, with all that it names mapped; ``mapped`` is told each segment and area.
    ``ours`` gives the areas of slices, if that is not ``get``.

    Raises:
        OSError: a segment or blob is not there (any more), or cannot be mapped.
    """
    kept, parts, data = unpacked(blob)
    weight = 0
    buffers: list[Any] = []
    for part in (*parts, data):
        if isinstance(part, bytes):
            weight += len(part)
            buffers.append(bytearray(part) if part is not data else part)
        else:
            weight += part.size
            buffers.append(_mapped(part, mapped, ours or get if isinstance(part, Slice) else get))
    whole = buffers.pop()
    cargo = Cargo(whole if isinstance(whole, bytes) else b"")
    if not isinstance(whole, bytes):
        cargo.data = whole
    cargo.buffers, cargo.kept, cargo.weight = buffers, kept, weight
    return cargo


def _mapped(part: Ref | Slice | Stored, mapped: Callable[[Ref, Any], None], get: Get) -> memoryview:
    if isinstance(part, Stored):
        return bytes_of(area_of_stored(part))
    ref = part.ref if isinstance(part, Slice) else part
    area = get(ref)
    mapped(ref, area)
    data = bytes_of(area)
    return data[part.start : part.start + part.size] if isinstance(part, Slice) else data


def weigh(blob: Blob) -> int:
    """How many bytes a blob stands for."""
    return blob.weight if isinstance(blob, Cargo) else len(blob)


class Mapped:
    """The areas of one call in a child, and which of them are still in use after it."""

    def __init__(self) -> None:
        self._areas: list[tuple[Ref, weakref.ref[Any]]] = []
        self.forked = False

    def note(self, ref: Ref, area: Any) -> None:
        """The call uses this area."""
        self._areas.append((ref, weakref.ref(area)))

    def __bool__(self) -> bool:
        return bool(self._areas)

    def end(self) -> list[bytes]:
        """The call has ended: the tokens of what is still mapped, here or in a process that was forked."""
        areas, self._areas = self._areas, []
        forked, self.forked = self.forked, False
        return [ref.token for ref, area in areas if forked or area() is not None]

    def find(self, address: int, size: int) -> Slice | None:
        """Where so many bytes of this process are in a segment that the call has mapped. None: in none, or in
        one that is more than twice as large, which they would keep from being used for anything else."""
        for ref, weak in self._areas:
            area = weak()
            start = -1 if area is None else address - ctypes.addressof(area)
            if 0 <= start <= ref.size - size and size * 2 >= ref.size:
                return Slice(ref, start, size)
        return None
