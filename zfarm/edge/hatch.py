"""A child's side of shared memory: arguments are mapped as they come in, results are written into what the
worker lends; it runs no call.

Whether somebody here still uses the memory of a call that has ended, its areas tell: whoever can reach a byte
of one keeps it alive. What a call gives back of its own arguments, as it came, is not written: the result
names the client's segment, which that holds until it has heard of the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zfarm.edge import wire
from zfarm.edge.callables import open_blob
from zfarm.edge.cargo import CARGO, Mapped, Part, is_cargo, opened_cargo, pack, parted, small
from zfarm.edge.delivery import Delivery, Talk, too_large
from zfarm.edge.larder import Larder
from zfarm.edge.moorings import is_clean
from zfarm.edge.pipe import Frames
from zfarm.edge.segments import Ref, Slice, address_of, write_ref
from zfarm.errors import NotPortable
from zfarm.messages import Blob, Borrow, Delivered, Lent, Memory
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.edge.emitter import Emitter

__all__ = ["Hatch"]

_PAYLOAD_MAX: Final = settings.payload_bytes_max
Answer = TypeVar("Answer", Lent, Delivered)


class Hatch:
    """What of one call goes through shared memory."""

    def __init__(self, pipe: Talk, filer: Emitter, larder: Larder) -> None:
        self.open = False
        """Results may be in shared memory."""
        self.busy = False
        """The call that has just ended needs ``finish``."""
        self.early: list[Frames] = []
        """What the worker had said before it answered us: still to be taken."""
        self.delivery = Delivery(pipe, filer, self)
        """Where results go that are not in shared memory."""
        self._pipe = pipe
        self._mapped = Mapped()
        self._larder = larder
        self._parts: Sequence[Part] = ()
        self._whole: Part = b""

    def arguments(self, body: Blob) -> Any:
        """What is in a body, whatever its form."""
        if not is_cargo(body):
            return open_blob(body)
        self.busy = True
        try:
            cargo = opened_cargo(body, self._mapped.note, self._larder.moorings.area_of)
        except OSError as error:
            raise NotPortable(
                f"an argument is in shared memory or in a store, and cannot be mapped here: {error}"
            ) from error
        return cargo.load(open_blob)

    def encode(self, encode: Callable[..., Any], *things: Any) -> Any:
        """What ``encode(*things, callback)`` gives, or a blob for ``finish`` in its place: large parts of it
        are in shared memory."""
        if not self.open:
            return self.delivery.encode(encode, *things)
        return self._ship(*parted(encode, *things))

    def _ship(self, encoded: Any, buffers: Sequence[memoryview]) -> Any:
        kind, blob = encoded if type(encoded) is tuple else (None, encoded)
        if not buffers and small(len(blob)):
            return encoded
        size = len(blob) + sum(buffer.nbytes for buffer in buffers)
        if size > _PAYLOAD_MAX:
            raise too_large(size)
        slices = [self._slice(part) for part in buffers]
        wanted = [part for part, there in zip(buffers, slices, strict=True) if there is None]
        wanted += [] if small(len(blob)) else [memoryview(blob)]
        memory = self._borrow([part.nbytes for part in wanted]) if wanted else ()
        placed: list[Part] = [self._place(part, piece) for part, piece in zip(wanted, memory, strict=False)]
        placed += [part.tobytes() for part in wanted[len(placed) :]]
        self._whole = blob if small(len(blob)) else placed.pop()
        rest = iter(placed)
        self._parts = [next(rest) if there is None else there for there in slices]
        self.busy = True
        return CARGO if kind is None else (kind, CARGO)

    def _slice(self, part: memoryview) -> Slice | None:
        """Where a part of a result is in an argument of its call, if none of its pages was written to.

        Threads of the task may still write to it, as they may while it is copied. It is mapped privately: the
        first write to a page makes a copy of that, and none ever reaches the segment.
        """
        with address_of(part) as address:
            there = self._mapped.find(address, part.nbytes)
            return there if there is not None and is_clean(address, part.nbytes) else None

    def _place(self, part: memoryview, memory: Memory) -> Part:
        ref = Ref(memory.token, memory.pid, memory.fd, part.nbytes, memory.spilled)
        kept = memory.yours and not self._larder.heap.strict
        try:
            if not (kept and self._larder.berths.write(ref, part)):
                write_ref(ref, part)
        except OSError:  # a full disk: it travels
            return part.tobytes()
        return ref

    def _borrow(self, sizes: list[int]) -> Sequence[Memory]:
        self._pipe.send(Borrow(sizes))
        lent = self.answer(Lent)
        return () if lent is None else lent.memory

    def answer(self, kind: type[Answer]) -> Answer | None:
        """Wait for a message of this kind; what comes before it is taken later. None: the worker has closed
        its side."""
        while (messages := self._pipe.receive()) is not None:
            answer = None
            for frames in messages:
                message, _ = wire.to_child.decode(frames)
                if isinstance(message, kind):
                    answer = message
                else:
                    self.early.append(frames)
            if answer is not None:
                return answer
        return None

    def forked(self) -> None:
        """The running call has forked this process: the other one sees what it has mapped, too."""
        self._mapped.forked = True

    def finish(self, blob: bytes) -> bytes:
        """The blob of the outcome of a call that has ended and of which nothing is referred to any more."""
        self.busy = False
        parts, whole = self._parts, self._whole
        self._parts, self._whole = (), b""
        kept = self._mapped.end()
        if blob == CARGO:
            return pack(parts, whole, kept)
        return pack((), blob, kept) if kept else blob
