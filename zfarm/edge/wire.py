"""Messages to frames and back: packs, unpacks, and refuses what is malformed; it knows no socket.

A message is ``[header, shared?, own...]``. The header is msgpack of ``[sizes, message]``, where ``sizes``
has one number per blob of the payload: ``n`` for a blob of n bytes in the shared frame, ``~n`` (that is -n-1)
for one of n bytes in a frame of its own. The shared frame is left out when it would be empty. The sender
alone decides which blobs share, so peers whose settings differ understand each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from zfarm import messages
from zfarm.edge.checks import CHECKS, NAME_MAX, Malformed
from zfarm.messages import Blob, Payload
from zfarm.packed import Packed
from zfarm.settings import settings

__all__ = [
    "FRAME_BYTES_MAX",
    "NAME_MAX",
    "Decoder",
    "Frame",
    "Malformed",
    "decode_note",
    "decode_setup",
    "encode",
    "encode_note",
    "encode_setup",
    "from_anyone",
    "from_child",
    "from_client",
    "from_worker",
    "published",
    "to_child",
    "to_client",
    "to_worker",
]

Frame: TypeAlias = Blob
M = TypeVar("M")

BLOB_BYTES_MAX: Final = max(settings.payload_bytes_max, 2 * settings.batch_bytes_max)
"""Of one call or result, and in any case of what is cut to measure for a full message, and of a message of a
client in a child, which travels in another one."""
FRAME_BYTES_MAX: Final = max(BLOB_BYTES_MAX, settings.header_bytes_max)

_BAD: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError)
_VIEW_FROM: Final = 16 * 1024
"""Mean size of shared blobs from which slicing a foreign buffer in place is cheaper than copying it first."""

_KEPT_PACKED: Final[frozenset[type]] = frozenset((messages.Emits, messages.Items))
"""What is only passed on by most who decode it, many blobs at a time."""

_pack: Final = msgspec.msgpack.Encoder().encode


def encode(message: messages.Message, payload: Payload = ()) -> list[Frame]:
    """The frames of ``message`` with ``payload``; blobs above ``frame_share_max`` are taken as they are."""
    if not payload:
        return [_pack(((), message))]
    if type(payload) is Packed:
        return [_pack((payload.sizes, message)), payload.data]
    sizes = list(map(len, payload))
    if max(sizes) <= settings.frame_share_max:
        shared = b"".join(payload)
        if len(shared) == sum(sizes):  # not so when a view's items are larger than a byte
            return [_pack((sizes, message)), shared] if shared else [_pack((sizes, message))]
    return _encode_large(message, payload)


def _encode_large(message: messages.Message, payload: Payload) -> list[Frame]:
    small: list[Blob] = []
    own: list[Blob] = []
    sizes: list[int] = []
    for blob in payload:
        size = blob.nbytes if isinstance(blob, memoryview) else len(blob)
        if size <= settings.frame_share_max:
            sizes.append(size)
            small.append(blob)
        else:
            sizes.append(~size)
            own.append(blob)
    shared = b"".join(small)
    return [_pack((sizes, message)), *([shared] if shared else ()), *own]


class Decoder(Generic[M]):
    """Reads the frames of one direction: only messages of its union come out, and only consistent ones."""

    def __init__(self, union: Any) -> None:
        """Prepare for ``union``, one of the unions of zfarm.messages (or one Message class)."""
        self._unpack: Callable[[Frame], tuple[list[int], M]]
        self._unpack = msgspec.msgpack.Decoder(tuple[list[int], union]).decode

    def decode(self, frames: Sequence[Frame]) -> tuple[M, Payload]:
        """The message and its blobs.

        Blobs that share a frame come as bytes, and items stay together; the others are the very frames,
        uncopied.

        Raises:
            Malformed: anything about the frames is not as it must be; the text says what.
        """
        if not frames:
            raise Malformed("no frame")
        if len(frames[0]) > settings.header_bytes_max:
            raise Malformed(f"header of {len(frames[0])} bytes, at most {settings.header_bytes_max} allowed")
        try:
            sizes, message = self._unpack(frames[0])
        except _BAD as error:
            raise Malformed(f"bad header: {error}") from None
        if len(sizes) > settings.blobs_max:
            raise Malformed(f"{len(sizes)} blobs, at most {settings.blobs_max} allowed")
        CHECKS[type(message)](message, len(sizes))
        if not sizes and len(frames) == 1:
            return message, []
        if sizes and min(sizes) < 0:
            return message, _mixed_blobs(sizes, frames)
        if type(message) in _KEPT_PACKED and any(sizes):
            return message, Packed(bytes(_shared_frame(sizes, frames[1:])), sizes)
        return message, _shared_blobs(sizes, frames[1:])


def _shared_frame(sizes: list[int], frames: Sequence[Frame]) -> Frame:
    total = sum(sizes)
    if len(frames) != (1 if total else 0):
        raise Malformed(f"{len(frames)} payload frames for {total} bytes of shared blobs")
    shared = frames[0] if total else b""
    if len(shared) != total:
        raise Malformed(f"the shared frame has {len(shared)} bytes, its blobs {total}")
    return shared


def _shared_blobs(sizes: list[int], frames: Sequence[Frame]) -> list[Blob]:
    shared = _shared_frame(sizes, frames)
    total = len(shared)
    if not total:
        return [b""] * len(sizes)
    if not isinstance(shared, bytes):
        if total > _VIEW_FROM * len(sizes):
            with memoryview(shared) as view:
                return [view[a:b].tobytes() for a, b in pairwise(accumulate(sizes, initial=0))]
        shared = bytes(shared)
    return [shared[a:b] for a, b in pairwise(accumulate(sizes, initial=0))]


def _mixed_blobs(sizes: list[int], frames: Sequence[Frame]) -> list[Blob]:
    small = [size for size in sizes if size >= 0]
    first_own = 2 if any(small) else 1
    if len(frames) != first_own + len(sizes) - len(small):
        raise Malformed(f"{len(frames)} frames, {first_own + len(sizes) - len(small)} expected")
    shared = iter(_shared_blobs(small, frames[1:first_own]))
    own = iter(frames[first_own:])
    blobs: list[Blob] = []
    for size in sizes:
        blob = next(shared) if size >= 0 else next(own)
        if size < 0 and len(blob) != ~size:
            raise Malformed(f"a blob of {~size} bytes in a frame of {len(blob)}")
        if len(blob) > BLOB_BYTES_MAX:
            raise Malformed(f"a blob of {len(blob)} bytes, at most {BLOB_BYTES_MAX} allowed")
        blobs.append(blob)
    return blobs


from_client: Final = Decoder[messages.FromClient](messages.FromClient)
to_client: Final = Decoder[messages.ToClient](messages.ToClient)
from_worker: Final = Decoder[messages.FromWorker](messages.FromWorker)
from_monitor: Final = Decoder[messages.FromMonitor](messages.FromMonitor)
"""Monitors look and ask why, and can say nothing else."""
from_anyone: Final = Decoder[messages.FromClient | messages.FromWorker](
    messages.FromClient | messages.FromWorker
)
"""For local sockets, whose peers may be clients and workers alike."""
published: Final = Decoder[messages.Items](messages.Items)
"""What comes to a client from a relay."""
to_worker: Final = Decoder[messages.ToWorker](messages.ToWorker)
to_child: Final = Decoder[messages.ToChild](messages.ToChild)
from_child: Final = Decoder[messages.FromChild](messages.FromChild)

_unpack_note: Final[Callable[[Frame], messages.Note]] = msgspec.msgpack.Decoder(messages.Note).decode
_unpack_setup: Final[Callable[[Frame], messages.Setup]] = msgspec.msgpack.Decoder(messages.Setup).decode


def encode_note(note: messages.Note) -> bytes:
    """The one frame of a note."""
    return _pack(note)


def decode_note(frame: Frame) -> messages.Note:
    """The note in ``frame``. Raises Malformed."""
    if len(frame) > settings.header_bytes_max:
        raise Malformed(f"note of {len(frame)} bytes, at most {settings.header_bytes_max} allowed")
    try:
        note = _unpack_note(frame)
    except _BAD as error:
        raise Malformed(f"bad note: {error}") from None
    CHECKS[type(note)](note, 0)
    return note


def encode_setup(setup: messages.Setup) -> bytes:
    """The blob of a setup."""
    return _pack(setup)


def decode_setup(blob: Blob) -> messages.Setup:
    """The setup in ``blob``. Raises Malformed."""
    try:
        return _unpack_setup(blob)
    except _BAD as error:
        raise Malformed(f"bad setup: {error}") from None
