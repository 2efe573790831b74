"""Peers with a key that take routing ids which are to be given to others, or that never say anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from tests.edge.waiting import until
from zfarm.edge.ports import DealerPort, Received, RouterPort
from zfarm.edge.security import Access, ServerKeys
from zfarm.edge.sockets import Context, connect, new_socket
from zfarm.edge.tcpinfo import available
from zfarm.edge.unfinished import MUTE_STEP_S
from zfarm.edge.zap import Doorkeeper
from zfarm.settings import settings

AHEAD = 50


class Place:
    """A router with whoever dials it, and what it has read and lost."""

    def __init__(self, context: Context, keys: ServerKeys) -> None:
        self.context = context
        self.keys = keys
        self.got: list[Received] = []
        self.lost: list[bytes] = []
        self.router = RouterPort(context, "tcp://127.0.0.1:*", keys.server, self.lost.append)
        self.now = 0.0
        self.mallory = new_socket(context, zmq.DEALER, self.router.address, -1)

    def turn(self) -> None:
        """Look, and read all that is there."""
        self.now += settings.unfinished_check_s
        self.router.check(self.now)
        self.got += self.router.receive()

    def dealer(self) -> DealerPort:
        """A peer as it should be."""
        address = self.router.address
        return DealerPort(
            self.context, Access(address, "", self.keys.server.public, self.keys.roles["client"])
        )

    def say_as(self, number: int) -> None:
        """A peer that has chosen an id with this number says something."""
        self.mallory.setsockopt(zmq.IDENTITY, b"\0" + number.to_bytes(4, "big"))
        connect(self.mallory, self.router.address, self.keys.server.public, self.keys.roles["client"])
        self.mallory.send(b"mine")

    def heard(self, what: bytes) -> bytes:
        """The id of who said this, once it was read."""

        def found() -> bytes | None:
            return next((got.peer for got in self.got if got.frames == [what]), None)

        peer: bytes = until(found, self.turn)
        return peer


@pytest.fixture
def place(context: Context, keys: ServerKeys, doorkeeper: Doorkeeper) -> Iterator[Place]:
    place = Place(context, keys)
    yield place
    place.router.close()


def test_who_has_an_id_that_is_yet_to_be_given_is_out_and_those_whom_it_was_given_stay(place: Place) -> None:
    honest = [place.dealer()]
    honest[0].send([b"first"])
    first = int.from_bytes(place.heard(b"first"), "big")
    place.say_as((first + AHEAD) % (1 << 32))
    mallory = place.heard(b"mine")
    until(lambda: place.lost, place.turn)

    assert place.lost == [mallory]
    assert place.router.refused == 1
    place.mallory.close()  # else it dials anew
    for number in range(5):
        honest.append(place.dealer())
        honest[-1].send([b"%d" % number])
        place.heard(b"%d" % number)
    for one in honest:
        one.send([b"again"])
    until(lambda: sum(got.frames == [b"again"] for got in place.got) == len(honest), place.turn)
    assert place.lost == [mallory]
    for one in honest:
        one.close()


@pytest.mark.skipif(not available(), reason="only Linux tells what came on a connection")
def test_who_says_nothing_is_out_after_a_while_and_who_has_said_something_is_not(place: Place) -> None:
    mute, honest = place.dealer(), place.dealer()
    honest.send([b"hello"])
    place.heard(b"hello")
    until(lambda: mute.up, mute.watch_link, place.turn)
    place.now += 1000.0
    place.turn()
    assert place.router.unfinished.mute == 0, "the broker was stopped meanwhile"

    enough = int(settings.mute_s / MUTE_STEP_S) + 2
    for _ in range(enough):
        place.now += MUTE_STEP_S
        place.turn()
    assert place.router.unfinished.mute == 1
    until(lambda: not mute.up, mute.watch_link)
    honest.send([b"still here"])
    place.heard(b"still here")
    assert place.lost == []
    for one in (mute, honest):
        one.close()
