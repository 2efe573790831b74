"""A worker's duct: who was permitted a stream gets that one, as long as there is one; nobody else gets in."""

from __future__ import annotations

import contextlib
import logging
import pickle
import resource
import socket
from collections.abc import Callable, Iterator

import pytest
import zmq

from tests.edge.waiting import until
from zfarm.edge import duct
from zfarm.edge.dialled import Dialled, DuctReader
from zfarm.edge.duct import Duct
from zfarm.edge.items import duct_of
from zfarm.edge.loop import Loop
from zfarm.edge.security import KeyPair
from zfarm.edge.sockets import Context, hang_up, new_context

LEASE, OTHER = -7, -8


class Rig:
    """A duct, what its worker heard of it, and those who have dialled it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.loop = Loop()
        self.seen: list[tuple[int, bool]] = []
        self.duct = Duct(self.loop, context, 0, False, lambda lease, up: self.seen.append((lease, up)))
        self.readers: list[DuctReader] = []
        self.ended: list[bool] = []
        self.refused = 0

    def reader(self, keys: KeyPair, *leases: int) -> DuctReader:
        port, key = self.duct.said.split(" ")
        reader = DuctReader(self.context, f"tcp://127.0.0.1{port} {key}", keys, self.end)
        self.readers.append(reader)
        for lease in leases:
            reader.want(lease)
        return reader

    def end(self, reached: bool, refused: bool) -> None:
        self.ended.append(reached)
        self.refused += refused

    def until(self, true: Callable[[], object]) -> None:
        def look() -> object:
            self.duct._read()
            for reader in self.readers:
                reader.watch_link()
            return true()

        until(look)

    def close(self) -> None:
        for reader in self.readers:
            reader.close()
        self.duct.close()
        self.loop.close()


@pytest.fixture
def rig(context: Context) -> Iterator[Rig]:
    rig = Rig(context)
    yield rig
    rig.close()


def test_whoever_was_permitted_a_stream_gets_that_one_and_no_other(rig: Rig) -> None:
    mine, others = KeyPair.fresh(), KeyPair.fresh()
    rig.duct.admit(LEASE, mine.public)
    rig.duct.admit(OTHER, others.public)
    reader = rig.reader(mine, LEASE)
    rig.until(lambda: rig.seen == [(LEASE, True)])

    rig.duct.publish(OTHER, [b"header", b"not mine"])
    rig.duct.publish(LEASE, [b"header", b"mine"])
    got: list[tuple[bytes, list[bytes]]] = []

    def arrived() -> bool:
        got.extend((topic, list(map(bytes, frames))) for topic, frames in reader.receive())
        return bool(got)

    rig.until(arrived)
    assert got == [(b"-7\0", [b"header", b"mine"])]
    assert rig.duct.refused == rig.duct.denied == 0


def test_a_stranger_does_not_get_in(rig: Rig) -> None:
    rig.duct.admit(LEASE, KeyPair.fresh().public)
    rig.reader(KeyPair.fresh(), LEASE)

    rig.until(lambda: rig.ended)
    assert rig.duct.denied == rig.refused == 1
    assert not rig.seen


def test_the_key_of_another_client_opens_nothing_that_is_not_its_own(rig: Rig) -> None:
    mine, others = KeyPair.fresh(), KeyPair.fresh()
    rig.duct.admit(LEASE, mine.public)
    rig.duct.admit(OTHER, others.public)
    rig.reader(others, LEASE)

    rig.until(lambda: rig.ended)
    assert rig.duct.refused == 1
    assert not rig.refused, "it got in"
    assert not rig.seen
    assert not rig.duct._readers, "its end would be told as that of the one who may have it"


def test_whose_last_stream_has_ended_is_cut_off_and_does_not_get_in_again(rig: Rig) -> None:
    mine = KeyPair.fresh()
    rig.duct.admit(LEASE, mine.public)
    rig.duct.admit(OTHER, mine.public)
    rig.reader(mine, LEASE, OTHER)
    rig.until(lambda: sorted(rig.seen) == [(OTHER, True), (LEASE, True)])

    rig.duct.dismiss(LEASE)
    assert not rig.ended
    rig.duct.dismiss(OTHER)
    rig.until(lambda: rig.ended == [True])
    rig.readers.pop().close()
    rig.reader(mine, LEASE)
    rig.until(lambda: len(rig.ended) == 2)
    assert rig.duct.denied == 1


def test_those_who_connect_and_say_nothing_are_never_too_many(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duct, "STRANGERS_MAX", 5)
    mine = KeyPair.fresh()
    rig.duct.admit(LEASE, mine.public)
    rig.reader(mine, LEASE)
    rig.until(lambda: rig.seen)
    with contextlib.ExitStack() as open_ones:
        strangers = [
            open_ones.enter_context(socket.create_connection(("127.0.0.1", rig.duct.port), 20))
            for _ in range(20)
        ]

        def ended() -> int:
            rig.duct._check()
            return rig.duct.crowded

        rig.until(lambda: ended() == 15)
        for one in strangers[:15]:
            while one.recv(100):
                pass

    assert rig.seen == [(LEASE, True)]
    assert not rig.ended


def test_who_has_taken_all_descriptors_can_be_disconnected_all_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as stranger:
        stranger.connect(server.getsockname())
        accepted, name = server.accept()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with accepted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
            try:
                ended = hang_up((accepted.fileno(), name))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert ended
            assert accepted.fileno() >= 0
            assert stranger.recv(1) == b""
            assert not hang_up((accepted.fileno(), ("127.0.0.1", 1)))


def test_the_worker_hears_that_a_reader_has_gone(rig: Rig) -> None:
    mine = KeyPair.fresh()
    rig.duct.admit(LEASE, mine.public)
    rig.reader(mine, LEASE)
    rig.until(lambda: rig.seen)
    rig.readers.pop().close()

    rig.until(lambda: rig.seen == [(LEASE, True), (LEASE, False)])


def test_a_reader_that_dials_anew_is_there_although_its_old_connection_ends_later(rig: Rig) -> None:
    mine = KeyPair.fresh()
    rig.duct.admit(LEASE, mine.public)
    old, new = rig.reader(mine, LEASE), rig.reader(mine)
    rig.until(lambda: rig.seen)
    new.want(LEASE)
    rig.until(lambda: len(rig.duct._readers[b"-7\0"]) == 2)
    rig.readers.remove(old)
    old.close()
    rig.until(lambda: len(rig.duct._readers[b"-7\0"]) == 1)

    assert rig.seen == [(LEASE, True)]


@pytest.mark.parametrize("room", [1, 2])
def test_where_no_socket_can_be_had_the_duct_has_ended_and_none_is_left(rig: Rig, room: int) -> None:
    context = new_context()
    context.set(zmq.MAX_SOCKETS, room)
    broken: list[tuple[str, bool]] = []
    dialled = Dialled(
        rig.loop, context, "tcp://127.0.0.1:1", KeyPair.fresh(),
        lambda duct, items, payload: None, lambda duct, reached, refused: broken.append((duct, reached)),
    )  # fmt: skip
    dialled.dial(LEASE, rig.duct.said)
    rig.loop.turn(1.0)

    assert broken == [(rig.duct.said, False)]
    dialled.hang_up(LEASE, rig.duct.said)
    context.term()


def test_what_cannot_be_reached_is_told_to_have_ended(rig: Rig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"tcp://127.0.0.1:{taken.getsockname()[1]} {KeyPair.fresh().public}"
        rig.readers.append(DuctReader(rig.context, where, KeyPair.fresh(), rig.end))
        rig.until(lambda: rig.ended)

    assert rig.ended == [False]


def test_where_nobody_checks_keys_any_more_the_duct_is_closed(rig: Rig) -> None:
    mine = KeyPair.fresh()
    rig.duct.admit(LEASE, mine.public)
    rig.reader(mine, LEASE)
    rig.until(lambda: rig.seen)
    rig.duct._watch_keeper()
    assert not rig.duct.closed

    rig.duct._keeper.stop()
    rig.duct._watch_keeper()
    assert rig.duct.closed
    assert rig.seen == [(LEASE, True), (LEASE, False)]
    rig.duct.dismiss(LEASE)
    rig.duct.admit(OTHER, mine.public)


def test_a_port_that_is_taken_gives_way_to_another_one(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken, caplog.at_level(logging.WARNING):
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        loop = Loop()
        duct = Duct(loop, context, port, False, lambda lease, up: None)
        duct.close()
        loop.close()

    assert duct.port != port
    assert "another port" in caplog.text


def test_nothing_that_is_said_or_shown_of_it_has_its_secret(rig: Rig) -> None:
    secret = rig.duct._keys.secret

    assert secret not in rig.duct.said + repr(rig.duct) + repr(vars(rig.duct))
    with pytest.raises(TypeError):
        pickle.dumps(rig.duct)


@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("127.0.0.1", ":5 key"),
        ("::1", ":5 key"),
        ("", ""),
        ("10.1.2.3", "tcp://10.1.2.3:5 key"),
        ("::ffff:10.1.2.3", "tcp://10.1.2.3:5 key"),
        ("2001:db8::1", "tcp://[2001:db8::1]:5 key"),
        ("fe80::1", ""),
    ],
)
def test_clients_dial_the_host_that_the_worker_comes_from(host: str, where: str) -> None:
    assert duct_of(host, ":5 key") == where
