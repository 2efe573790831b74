"""A child's side of large results: they go to their client in pieces before their call ends; it runs no call.

The client has all of it when the outcome is told, so whatever dies meanwhile has died under a running call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from zfarm.edge.cargo import parted, small
from zfarm.edge.outcomes import encode_error
from zfarm.edge.ways import AS_THEY_ARE, BOUNDED, IN_PIECES, ITEM_MAX
from zfarm.errors import TooLarge
from zfarm.messages import ERROR, Delivered, Delivers, Message
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.edge.emitter import Emitter
    from zfarm.edge.hatch import Hatch
    from zfarm.edge.pipe import Frames

__all__ = ["Delivery", "Talk", "check_item", "too_large"]

_PAYLOAD_MAX: Final = settings.payload_bytes_max
_FROM_BYTES: Final = settings.results_from_bytes


class Talk(Protocol):
    """What is needed of a child's pipe."""

    def send(self, message: Message) -> None:
        """Write one message."""

    def receive(self) -> list[Frames] | None:
        """Wait for messages; None when the worker has closed its side."""


def too_large(size: int) -> TooLarge:
    """The error of a result beyond ``payload_bytes_max``."""
    return TooLarge(
        f"the result has {size:,} bytes, at most {_PAYLOAD_MAX:,} may travel; return less, write a file, or "
        "set ZFARM_PAYLOAD_BYTES_MAX for client, broker and workers"
    )


def check_item(blob: bytes, way: int, most: int) -> None:
    """Raise TooLarge if an emitted item may not travel to a client with this ``way`` of results; ``most``
    bytes may in each of them."""
    name = "PAYLOAD"
    if way != AS_THEY_ARE and most > ITEM_MAX:
        name, most = "UNDIVIDED", ITEM_MAX
    if len(blob) > most:
        raise TooLarge(
            f"the emitted value has {len(blob):,} bytes pickled, at most {most:,} may travel; emit less at a "
            f"time, send a file, or set ZFARM_{name}_BYTES_MAX for client, broker and workers"
        )


class Delivery:
    """How the results of one child's calls leave it, one call after the other."""

    def __init__(self, pipe: Talk, filer: Emitter, hatch: Hatch) -> None:
        self.way = AS_THEY_ARE
        """How large results travel to the client whose calls run."""
        self.waiting = False
        """The blob of the call that ends is not its result: ``send`` has that."""
        self._pipe = pipe
        self._filer = filer
        self._hatch = hatch
        self._buffers: Sequence[memoryview] = ()
        self._pickle = b""

    def encode(self, encode: Callable[..., Any], *things: Any) -> Any:
        """What ``encode(*things)`` gives; of something large only the kind is true, and it waits here.

        Raises:
            TooLarge: it is larger than anything that may travel.
            Others: as ``encode``.
        """
        if self.way != IN_PIECES:
            return encode(*things)
        encoded, buffers = parted(encode, *things)
        kind, blob = encoded if type(encoded) is tuple else (None, encoded)
        size = len(blob) + sum(buffer.nbytes for buffer in buffers)
        if size < _FROM_BYTES:
            return encode(*things) if buffers else encoded
        if size > _PAYLOAD_MAX:
            raise too_large(size)
        self._buffers, self._pickle, self.waiting = buffers, blob, True
        return b"" if kind is None else (kind, b"")

    def ended(self, seq: int, kind: int, blob: bytes) -> tuple[int, bytes]:
        """How call ``seq`` ends after what it has emitted: a large result is at its client when this returns.

        Raises:
            OSError: the worker is gone.
        """
        if self.waiting:
            buffers, data = self._buffers, self._pickle
            self.forget()
            return kind, self._send(seq, buffers, data)
        if self.way == IN_PIECES and len(blob) >= _FROM_BYTES:
            return kind, self._send(seq, (), blob)
        if self.way == BOUNDED and len(blob) > settings.undivided_bytes_max:
            text = (
                f"what a call of a job gives has {len(blob):,} bytes pickled, at most "
                f"{settings.undivided_bytes_max:,} may travel, since the broker keeps it; return less, "
                "write a file where its readers find it, or set ZFARM_UNDIVIDED_BYTES_MAX for the workers"
            )
            return ERROR, encode_error(TooLarge(text))
        return kind, blob

    def forget(self) -> None:
        """The call has ended in another way."""
        self._buffers, self._pickle, self.waiting = (), b"", False

    def _send(self, seq: int, buffers: Sequence[memoryview], data: bytes) -> bytes:
        from zfarm.edge.pieces import table, take_apart  # for those who give nothing large it takes too long

        self._pipe.send(Delivers(seq))
        alone = True

        def emit(piece: bytes) -> None:
            nonlocal alone
            self._filer.emit(seq, piece)
            if alone:  # the first piece travels alone, until its client has room for the others
                alone = False
                self._filer.flush()

        parts = [take_apart(buffer, emit) for buffer in buffers]
        if not small(len(data)):
            parts.append(take_apart(memoryview(data), emit))
        self._filer.flush()
        self._pipe.send(Delivers(seq, whole=True))
        while (answer := self._hatch.answer(Delivered)) is not None:
            if answer.seq == seq:
                return table(parts, data if small(len(data)) else None)
        raise BrokenPipeError("the worker has closed its pipe while a result was on its way")
