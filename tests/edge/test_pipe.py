"""Messages over a stream: whatever the pieces, what goes in comes out, and garbage is refused."""

from __future__ import annotations

import socket
import threading
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zfarm.edge.checks import Malformed
from zfarm.edge.pipe import READ_BYTES, Outbox, Reader, packed, send_all
from zfarm.messages import Blob


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


class Dribble:
    """A socket that gives its bytes in pieces of the given sizes."""

    def __init__(self, data, sizes):
        self._data = memoryview(data)
        self._sizes = sizes
        self._n = 0

    def recv_into(self, buffer, nbytes=0, flags=0):
        size = min(self._sizes[self._n % len(self._sizes)], len(buffer), len(self._data))
        self._n += 1
        buffer[:size] = self._data[:size]
        self._data = self._data[size:]
        return size


def read_all(data, sizes):
    reader, found = Reader(), []
    sock = Dribble(data, sizes)
    while (messages := reader.read(sock)) is not None:  # type: ignore[arg-type]
        found += [[bytes(frame) for frame in frames] for frames in messages]
    return found


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.binary(max_size=200), min_size=1, max_size=12), max_size=10),
    st.lists(st.integers(1, 300), min_size=1, max_size=5),
)
def test_any_messages_in_any_pieces(messages, sizes):
    data = b"".join(b"".join(packed(frames)) for frames in messages)
    assert read_all(data, sizes) == messages


@pytest.mark.parametrize("size", [READ_BYTES - 100, READ_BYTES, READ_BYTES + 1, 3 * READ_BYTES + 17])
def test_large_frames_between_small_ones(size):
    messages = [[b"a", bytes(size), b"b"], [bytes(size)], [b"c"], [bytes(size), b""]]
    data = b"".join(b"".join(packed(frames)) for frames in messages)
    assert read_all(data, [READ_BYTES]) == messages
    assert read_all(data, [70_001]) == messages


def test_what_is_there_of_a_large_frame_is_read_in_one_go():
    data = b"".join(packed([bytes(5 * READ_BYTES), b"tail"]))
    reader, sock = Reader(), cast("socket.socket", Dribble(data, [READ_BYTES // 2]))
    assert reader.read(sock) == []
    assert reader.read(sock) == []
    assert reader.read(sock) == [[bytes(5 * READ_BYTES), b"tail"]]


def test_who_reads_what_is_there_does_not_wait_for_the_rest(pair):
    ours, theirs = pair
    data = b"".join(packed([bytes(2 * READ_BYTES)]))
    theirs.sendall(data[:50_000])
    reader = Reader()
    assert reader.read(ours) == []
    theirs.sendall(data[50_000:90_000])
    assert reader.read(ours) == []
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        reader.read(ours)
    theirs.close()
    assert reader.read(ours) is None, "the end in the middle of a frame"


def test_garbage_is_refused(pair):
    ours, theirs = pair
    theirs.sendall(b"Traceback (most recent call last)")
    with pytest.raises(Malformed, match="garbage on the pipe: b'Traceback"):
        Reader().read(ours)


@pytest.mark.parametrize("count", [0, 2**31])
def test_senseless_counts_are_refused(pair, count):
    ours, theirs = pair
    head = bytearray(packed([b"x"])[0])
    head[4:8] = count.to_bytes(4, "little")
    theirs.sendall(head)
    with pytest.raises(Malformed):
        Reader().read(ours)


def test_a_senseless_length_is_refused(pair):
    ours, theirs = pair
    head = bytearray(packed([b"x"])[0])
    head[8:16] = (2**62).to_bytes(8, "little")
    theirs.sendall(head)
    with pytest.raises(Malformed, match="bytes"):
        Reader().read(ours)


def test_an_outbox_keeps_what_the_socket_does_not_take(pair):
    ours, theirs = pair
    ours.setblocking(False)
    outbox = Outbox(ours)
    messages: list[list[Blob]] = [[bytes([n]) * 100_000, b"tail"] for n in range(50)]
    messages.append([memoryview(bytes(1_000_000)), b""])
    assert not [outbox.add(frames) for frames in messages][-1]
    assert outbox.waiting > 1_000_000
    reader = Reader()
    found: list[list[bytes]] = []
    while len(found) < len(messages):
        outbox.flush()
        found += [[bytes(frame) for frame in frames] for frames in reader.read(theirs) or ()]
    assert found == [[bytes(frame) for frame in frames] for frames in messages]
    assert outbox.flush()
    assert outbox.waiting == 0


def test_sending_all_waits_for_the_reader(pair):
    ours, theirs = pair
    frames: list[Blob] = [b"head", bytes(5_000_000), memoryview(b"tail")]
    found: list[list[bytes]] = []

    def read():
        reader = Reader()
        while not found:
            found.extend([bytes(frame) for frame in message] for message in reader.read(theirs) or ())

    thread = threading.Thread(target=read)
    thread.start()
    send_all(ours, frames)
    thread.join(20)
    assert found == [[bytes(frame) for frame in frames]]


def test_the_end_of_the_stream_is_told(pair):
    ours, theirs = pair
    send_all(theirs, [b"last"])
    theirs.shutdown(socket.SHUT_WR)
    reader = Reader()
    assert reader.read(ours) == [[b"last"]]
    assert reader.read(ours) is None
