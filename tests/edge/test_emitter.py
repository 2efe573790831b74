"""How what a call emits is put together: in order, whole messages, nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from time import monotonic

import pytest

from zfarm.edge import emitter
from zfarm.edge.emitter import BYTES_MAX, ITEMS_MAX, PIECES_BYTES_MAX, SMALL_MAX, Emitter
from zfarm.link import _see_off
from zfarm.messages import CHUNK_BYTES, Blob, Emits, Message


class Taken:
    """What a worker would get, as soon as it is ``open``."""

    def __init__(self) -> None:
        self.messages: list[tuple[Message, list[Blob]]] = []
        self.open = threading.Event()
        self.open.set()
        self.began = threading.Event()
        self.gone = False

    def __call__(self, message: Message, payload: Sequence[Blob]) -> None:
        self.began.set()
        self.open.wait()
        if self.gone:
            raise BrokenPipeError
        self.messages.append((message, list(payload)))

    @property
    def items(self) -> list[Blob]:
        return [blob for _, payload in self.messages for blob in payload]


@pytest.fixture
def taken() -> Taken:
    return Taken()


@pytest.fixture
def out(taken: Taken) -> Iterator[Emitter]:
    """One whose thread ends, as that of a child ends whose worker has gone."""
    made = Emitter(taken)
    yield made
    taken.gone = True
    made.emit(1, b"the last")
    assert made._thread is not None
    made._thread.join()
    _see_off(made._thread)


def test_all_comes_in_order_and_messages_have_bounds(out: Emitter, taken: Taken) -> None:
    blobs = [b"%d" % n for n in range(5 * ITEMS_MAX + 7)]
    for blob in blobs:
        out.emit(1, blob)
    out.flush()
    assert taken.items == blobs
    assert all(len(payload) <= ITEMS_MAX for _, payload in taken.messages)


def test_many_bytes_are_a_full_message_too(out: Emitter, taken: Taken) -> None:
    for _ in range(5):
        out.emit(1, bytes(BYTES_MAX))
    out.flush()
    assert [len(payload) for _, payload in taken.messages] == [1] * 5


def test_large_pieces_of_files_share_a_message_and_small_ones_do_not_fill_it(
    taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitter, "GATHER_S", 3600.0)
    filer = Emitter(taken, files=True)
    filer._sent_at = monotonic()
    piece = bytes(CHUNK_BYTES)
    together = PIECES_BYTES_MAX // CHUNK_BYTES
    for blob in [b"H", *[piece] * 7, b"T", *[bytes(BYTES_MAX // 4)] * 5]:
        filer.emit(1, blob)
    filer.flush()
    assert [len(payload) for _, payload in taken.messages] == [1 + together, together, 2, 4, 1]
    assert all(message == Emits(1, files=True) for message, _ in taken.messages)
    taken.gone = True
    filer.emit(1, b"the last")
    assert filer._thread is not None
    filer.flush()
    filer._thread.join()
    _see_off(filer._thread)


def test_items_are_gathered_until_the_message_before_is_long_ago(
    out: Emitter, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitter, "GATHER_S", 3600.0)
    out._sent_at = monotonic()
    for n in range(10):
        out.emit(1, b"%d" % n)
    assert not taken.messages
    out.flush()
    assert [len(payload) for _, payload in taken.messages] == [10], "the end of a call does not wait"
    for _ in range(ITEMS_MAX + 1):
        out.emit(2, b"x")
    out.flush()
    assert taken.messages[1][0] == Emits(2)
    assert len(taken.messages[1][1]) == ITEMS_MAX, "a full one goes"
    assert len(taken.items) == 10 + ITEMS_MAX + 1


def test_who_emits_waits_while_nothing_is_taken(out: Emitter, taken: Taken) -> None:
    taken.open.clear()
    done = threading.Event()

    def emit() -> None:
        for _ in range(3 * ITEMS_MAX):
            out.emit(1, b"x")
        done.set()

    thread = threading.Thread(target=emit)
    thread.start()
    assert taken.began.wait(60)
    assert not done.wait(0.05), "one message is being written, one waits, and there is no room for more"
    taken.open.set()
    thread.join()
    out.flush()
    assert len(taken.items) == 3 * ITEMS_MAX


def test_large_ones_among_small_ones_keep_their_order_and_fill_messages(out: Emitter, taken: Taken) -> None:
    blobs = [bytes([n % 256]) * (1 if n % 7 else SMALL_MAX * (n % 500)) for n in range(4 * ITEMS_MAX)]
    for blob in blobs:
        out.emit(1, blob)
    out.flush()
    assert taken.items == blobs
    assert max(sum(map(len, payload)) for _, payload in taken.messages) < BYTES_MAX + 500 * SMALL_MAX


def test_the_latest_stands_between_those_before_and_after_it(
    out: Emitter, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitter, "GATHER_S", 3600.0)
    out._sent_at = monotonic()
    out.emit(1, b"1")
    out.emit_latest(1, b"replaced")
    out.emit_latest(1, b"2")
    out.emit(1, b"3")
    out.emit_latest(1, b"4")
    out.flush()
    assert taken.items == [b"1", b"2", b"3", b"4"]
    out.emit(1, b"5")
    out.flush()
    assert taken.items[4:] == [b"5"]


def test_threads_that_emit_at_once_lose_nothing(out: Emitter, taken: Taken) -> None:
    """Each wakes the thread that sends, or knows that it is awake: else some items would wait for ever."""

    def emit(name: int) -> None:
        for n in range(3000):
            out.emit(1, b"%d %d" % (name, n))

    threads = [threading.Thread(target=emit, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.flush()
    for name in range(4):
        own = [blob for blob in taken.items if bytes(blob).startswith(b"%d " % name)]
        assert own == [b"%d %d" % (name, n) for n in range(3000)]


def test_one_item_alone_goes_without_anybody_waiting_for_it(out: Emitter, taken: Taken) -> None:
    for n in range(200):
        taken.began.clear()
        out.emit(1, b"%d" % n)
        assert taken.began.wait(60)


def test_whoever_emits_is_told_that_the_worker_is_gone(taken: Taken) -> None:
    out = Emitter(taken)
    taken.gone = True
    out.emit(1, b"x")
    out.flush()
    assert out._thread is not None
    out._thread.join()
    with pytest.raises(BrokenPipeError):
        out.emit(1, b"x")
    _see_off(out._thread)
