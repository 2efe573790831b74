"""How a large result leaves its child: its first piece alone, the others together, the end told."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

import pytest

from zfarm.edge import emitter
from zfarm.edge.delivery import Delivery
from zfarm.edge.emitter import Emitter
from zfarm.edge.ways import IN_PIECES
from zfarm.link import _see_off
from zfarm.messages import CHUNK_BYTES, VALUE, Blob, Delivered, Delivers, Emits, Message
from zfarm.settings import settings

SEQ = 7


class Worker:
    """What a worker gets of a child, and says to it."""

    def __init__(self) -> None:
        self.got: list[tuple[Message, list[Blob]]] = []
        self.gone = False

    def send(self, message: Message, payload: Sequence[Blob] = ()) -> None:
        if self.gone:
            raise BrokenPipeError
        self.got.append((message, list(payload)))

    def answer(self, kind: type[Message]) -> Delivered:
        return Delivered(SEQ)


def test_the_first_piece_of_a_result_travels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitter, "GATHER_S", 3600.0)
    worker: Any = Worker()
    filer = Emitter(worker.send, files=True)
    filer._sent_at = monotonic()
    delivery = Delivery(worker, filer, worker)
    delivery.way = IN_PIECES
    size = settings.results_from_bytes

    assert delivery.ended(SEQ, VALUE, bytes(size))[0] == VALUE

    assert [message for message, _ in worker.got[:2]] == [Delivers(SEQ), Emits(SEQ, files=True)]
    assert worker.got[-1] == (Delivers(SEQ, whole=True), [])
    pieces = [payload for message, payload in worker.got if isinstance(message, Emits)]
    assert [bytes(payload[0][:1]) for payload in pieces[:2]] == [b"R", b"V"]
    assert len(pieces[0]) == 1, "its client may have no room for more yet"
    assert len(pieces[1]) > 1
    assert sum(len(payload) for payload in pieces) == 2 + size // CHUNK_BYTES
    worker.gone = True
    filer.emit(SEQ, b"the last")
    filer.flush()
    assert filer._thread is not None
    filer._thread.join()
    _see_off(filer._thread)
