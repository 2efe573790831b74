"""Messages that do not end: whoever sends one is disconnected, and nobody who is only slow, large or many."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from typing import cast

import pytest
import zmq

from tests.edge.joiner import Joiner
from tests.edge.relaying import mine_of, reader_of, relay_on_tcp, writer_of
from tests.edge.waiting import until
from zfarm.edge import ports, relay, unfinished
from zfarm.edge.items import ItemsWriter
from zfarm.edge.notes import NotesPort
from zfarm.edge.ports import DealerPort, RouterPort
from zfarm.edge.security import ROLES, Access, ServerKeys
from zfarm.edge.sockets import Context, connect, hang_up, is_up, new_socket
from zfarm.edge.tcpinfo import TcpInfo, available
from zfarm.edge.unfinished import SLACK
from zfarm.edge.zap import DOMAINS, Doorkeeper
from zfarm.settings import settings

pytestmark = pytest.mark.skipif(not available(), reason="only Linux tells what came on a connection")

MIB = 1 << 20
MOST = MIB
"""Of one message, in these tests."""


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


class Dam:
    """A relay on TCP without a thread: each turn lets some bytes through, in either direction."""

    def __init__(self, target: int, width: int) -> None:
        self._target = target
        self._width = width
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = port_of(f":{self._listener.getsockname()[1]}")
        self._ends: list[socket.socket] = []

    def turn(self) -> None:
        """Let some through."""
        try:
            if not self._ends:
                near = self._listener.accept()[0]
                self._ends = [near, socket.create_connection(("127.0.0.1", self._target))]
                for end in self._ends:
                    end.setblocking(False)
            for source, sink in (self._ends, self._ends[::-1]):
                self._carry(source, sink)
        except BlockingIOError:
            pass

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            piece = source.recv(self._width)
        except BlockingIOError:
            return
        sink.setblocking(True)
        sink.sendall(piece)
        sink.setblocking(False)

    def close(self) -> None:
        """End the connection."""
        for end in (self._listener, *self._ends):
            end.close()


class Place:
    """A router that takes messages of 1 MiB at most, and whoever wants to talk to it."""

    def __init__(self, context: Context, keys: ServerKeys) -> None:
        self.context = context
        self.keys = keys
        self.lost: list[bytes] = []
        self.router = RouterPort(context, "tcp://127.0.0.1:*", keys.server, self.lost.append)
        self.port = port_of(self.router.address)
        self.now = 0.0
        self.got: list[ports.Received] = []
        self._open: list[DealerPort | Joiner | Dam] = []

    def check(self) -> None:
        """Look for messages that do not end."""
        self.now += settings.unfinished_check_s
        self.router.unfinished.check(self.now)

    def read(self) -> None:
        """Read all that is there."""
        self.got += self.router.receive()

    @property
    def ended(self) -> int:
        return self.router.unfinished.ended

    def dealer(self, role: str = "client", port: int = 0) -> DealerPort:
        """A peer that dials the router, or another port."""
        access = Access(
            f"tcp://127.0.0.1:{port or self.port}", "", self.keys.server.public, self.keys.roles[role]
        )
        dealer = DealerPort(self.context, access)
        self._open.append(dealer)
        return dealer

    def endless(self, role: str = "client") -> tuple[DealerPort, Joiner]:
        """A peer whose messages are one that does not end, once the joiner is armed."""
        joiner = Joiner(self.port, inf)
        self._open.append(joiner)
        return self.dealer(role, joiner.port), joiner

    def dam(self, width: int) -> Dam:
        dam = Dam(self.port, width)
        self._open.append(dam)
        return dam

    def close(self) -> None:
        self.router.close()
        for one in sorted(self._open, key=lambda one: not isinstance(one, DealerPort)):
            one.close()


@pytest.fixture
def place(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    monkeypatch.setattr(ports, "largest_message", lambda size: MOST)
    monkeypatch.setitem(cast("dict[bytes, frozenset[str]]", DOMAINS), b"zfarm.clients", frozenset(ROLES))
    place = Place(context, keys)
    yield place
    place.close()


def keep_sending(dealer: DealerPort, size: int = 10_000) -> Callable[[], None]:
    def send() -> None:
        if not dealer.unsent:
            dealer.send([b"x" * size])
        dealer.flush()

    return send


@pytest.mark.parametrize(
    ("size", "first"),
    [(10_000, False), (10_000, True), (0, True)],
    ids=["from the start", "after a whole one", "in frames of nothing"],
)
def test_who_sends_a_message_that_does_not_end_is_disconnected(
    place: Place, first: bool, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    mallory, joiner = place.endless()
    honest = place.dealer("worker")
    honest.send([b"hello"])
    until(lambda: place.got, place.read)
    mallory_peer = b""
    if first:
        mallory.send([b"hello"])
        until(lambda: len(place.got) == 2, place.read)
        mallory_peer = place.got[-1].peer
    joiner.armed[False].set()
    send = keep_sending(mallory, size)

    def turn() -> None:
        for _ in range(1 if size else 1000):
            send()

    until(lambda: place.ended, turn, place.read, place.check)
    assert place.lost == ([mallory_peer] if first else [])
    assert "of a message without an end" in caplog.text
    assert ("somebody who has not said anything yet" in caplog.text) is not first
    assert ("client:client:" in caplog.text) is first
    before = len(place.got)
    honest.send([b"still there"])
    until(lambda: len(place.got) > before, place.read)
    assert place.got[-1].frames == [b"still there"]


def test_who_sends_the_largest_message_slowly_is_not(place: Place) -> None:
    dam = place.dam(20_000)
    slow = place.dealer(port=dam.port)
    slow.send([b"x" * MOST])
    until(lambda: place.got, dam.turn, slow.flush, place.read, place.check, place.check)
    assert place.got[0].frames == [b"x" * MOST]
    coming: list[bytes] = []
    place.router.on_coming = coming.append
    slow.send([b"y" * MOST])
    until(lambda: len(place.got) == 2, dam.turn, slow.flush, place.read, place.check, place.check)
    assert place.ended == 0
    assert set(coming) == {place.got[0].peer}, "it lives, though nothing whole comes from it"


@pytest.mark.parametrize("others", [unfinished.OTHERS, 0], ids=["many others", "its turn soon"])
def test_whole_messages_that_wait_for_a_busy_broker_are_no_offence(
    place: Place, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty times what one message may have waits, and is read one by one while others are heard, too."""
    monkeypatch.setattr(unfinished, "OTHERS", others)
    large, chatty = place.dealer(), place.dealer("worker")
    chatty.send([b"hello"])
    large.send([b"hello"])
    until(lambda: len(place.got) == 2, place.read)
    for _ in range(20):
        large.send([b"x" * MOST])
    for _ in range(100):
        chatty.send([b"chat"])
        large.flush()
        place.check()
    kernel = TcpInfo()

    def many() -> bool:
        return any(kernel.received(fd) > 5 * MOST for fd in range(3, 200))

    until(many, large.flush, place.check)
    assert place.ended == 0

    def one_by_one() -> None:
        place.got += place.router.receive(1)
        chatty.send([b"chat"])
        place.check()

    def large_ones() -> int:
        return sum(len(received.frames[0]) == MOST for received in place.got)

    until(lambda: large_ones() == 20, one_by_one, large.flush)
    assert place.ended == 0


def test_a_message_without_an_end_is_found_while_others_keep_the_socket_full(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "OTHERS", 10)
    mallory, joiner = place.endless()
    chatty = place.dealer("worker")
    joiner.armed[False].set()
    send = keep_sending(mallory, 50_000)
    drained = []

    def one_by_one() -> None:
        for _ in range(3):
            chatty.send([b"chat"])
        place.got += place.router.receive(1)
        drained.append(not int(place.router.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
        place.check()

    until(lambda: place.got, one_by_one)
    for _ in range(300):
        chatty.send([b"chat"])
    until(lambda: not drained[-1], one_by_one)
    del drained[:]
    until(lambda: place.ended, send, one_by_one)
    assert not any(drained)
    assert place.lost == []


@pytest.mark.parametrize("why", ["all together", "memory is short"])
def test_who_has_most_of_what_is_unfinished_goes_when_it_is_too_much(
    place: Place, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """None has a message that is too large, and somebody honest has begun one, too."""
    if why == "all together":
        few = replace(settings, unfinished_bytes_max=3_300_000)
        monkeypatch.setattr(unfinished, "settings", few)
    else:
        monkeypatch.setattr(unfinished, "memory_bytes", lambda: int(3 * MIB / unfinished.IN_THE_WAY))
        monkeypatch.setattr(unfinished, "anonymous_bytes", lambda: int(4 * MIB / unfinished.IN_THE_WAY))
    monkeypatch.setattr(unfinished, "FULL", 0.5)
    crowd = Place(place.context, place.keys)
    dam = crowd.dam(50_000)
    slow = crowd.dealer("worker", dam.port)
    slow.send([b"hello"])
    until(lambda: crowd.got, dam.turn, slow.flush, crowd.read)
    slow.send([b"x" * MOST])
    for _ in range(15):
        dam.turn()
    pairs = [crowd.endless() for _ in range(3)]
    for _, joiner in pairs:
        joiner.armed[False].set()
    for mallory, _ in pairs:
        for _ in range(12):
            mallory.send([b"x" * 100_000])

    until(lambda: crowd.ended, *(mallory.flush for mallory, _ in pairs), crowd.read, crowd.check)
    assert crowd.ended == 1
    assert ("ZFARM_UNFINISHED_BYTES_MAX" if why == "all together" else "in use, of") in caplog.text
    assert crowd.lost == [], "not whom we know"
    until(lambda: len(crowd.got) == 2, dam.turn, slow.flush, crowd.read)
    assert crowd.got[1].frames == [b"x" * MOST]
    crowd.close()


def test_subscribers_that_do_not_end_are_disconnected(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper
) -> None:
    notes = NotesPort(context, "tcp://127.0.0.1:*", [b"farm"], keys.server)
    joiner = Joiner(port_of(notes.address), inf)
    joiner.armed[False].set()
    mallory = new_socket(context, zmq.XSUB, "tcp://", -1)
    connect(mallory, f"tcp://127.0.0.1:{joiner.port}", keys.server.public, keys.roles["monitor"])
    clock = iter(range(1_000_000))

    def turn() -> None:
        mallory.send(b"x" * 900)
        notes.read_subscriptions()
        notes.unfinished.check(float(next(clock)))

    until(lambda: notes.unfinished.ended, turn)
    assert notes.refused == 0, "nobody saw a message"
    mallory.close(linger=0)
    notes.close()
    joiner.close()


@pytest.mark.parametrize("door", ["emits", "items"])
def test_the_relay_disconnects_who_does_not_end(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "largest_message", lambda size: SLACK)
    served = relay_on_tcp(context, keys)
    joiner = Joiner(port_of(served.emits_address if door == "emits" else served.items_address), inf)
    joiner.armed[False].set()
    address = f"tcp://127.0.0.1:{joiner.port}"
    writer: ItemsWriter | None = None
    mallory = new_socket(context, zmq.XSUB, "tcp://", -1)
    if door == "emits":
        writer = writer_of(context, address, keys)
    else:
        connect(mallory, address, keys.server.public, keys.roles["client"])

    def send() -> None:
        if writer is not None:
            writer.publish("topic", [b"x" * 900])
        else:
            mallory.send(b"x" * 900)

    until(lambda: served.ended, send)
    mallory.close(linger=0)
    if writer is not None:
        writer.close()
    served.close()
    joiner.close()


def test_the_relay_lets_go_on_whose_messages_end(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "largest_message", lambda size: SLACK)
    monkeypatch.setattr(relay, "settings", replace(settings, unfinished_check_s=0.0))
    monkeypatch.setattr(relay, "CHECK_MS", 1)  # between two messages as well, when none waits
    served = relay_on_tcp(context, keys)
    topic = f"{mine_of(keys)}/mine"
    ups: list[bool] = []
    writer = writer_of(context, served.emits_address, keys)
    reader = reader_of(context, served, keys, topic, on_link=ups.append)
    came = 0

    def all_came() -> bool:
        nonlocal came
        reader.watch_link()
        writer.publish(topic, [b"x" * 50_000])
        came += len(reader.receive())
        return came * 50_000 > 20 * SLACK

    until(all_came)
    assert served.ended == 0
    assert ups == [True]
    writer.close()
    reader.close()
    served.close()


def test_a_kernel_that_does_not_count_is_told_of_and_keeps_nobody_out(
    context: Context,
    keys: ServerKeys,
    doorkeeper: Doorkeeper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(unfinished, "available", lambda: False)
    unfinished._can_watch.cache_clear()
    try:
        place = Place(context, keys)
        dealer = place.dealer()
        dealer.send([b"hello"])
        until(lambda: place.got, place.read, place.check)
        assert caplog.text.count("does not tell how much came on a connection") == 1
        place.close()
    finally:
        unfinished._can_watch.cache_clear()


def test_the_kernel_counts_what_came_and_what_waits() -> None:
    kernel = TcpInfo()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far = listener.accept()[0]
        with near, far:
            near.sendall(b"x" * 1000)
            until(lambda: kernel.received(far.fileno()) == 1000)
            assert kernel.unread(far.fileno()) == 1000
            far.recv(600)
            assert kernel.unread(far.fileno()) == 400
            fd = far.fileno()
        assert (kernel.received(fd), kernel.unread(fd)) == (-1, 0)


def test_a_descriptor_that_names_something_else_by_now_is_left_alone() -> None:
    reading, writing = os.pipe()
    line = reading, ("127.0.0.1", 5555)
    before = os.listdir("/proc/self/fd")
    assert not is_up(line)
    assert not hang_up(line)
    assert os.listdir("/proc/self/fd") == before
    os.write(writing, b"!")
    assert os.read(reading, 1) == b"!"
    os.close(reading)
    os.close(writing)
