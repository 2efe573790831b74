"""One machine at a time: say something to it, let a turn pass, and get the whole list of its actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from zfarm.core.broker import Broker
from zfarm.core.client import Client
from zfarm.core.worker import Worker
from zfarm.messages import (
    BROKER,
    PROTOCOL,
    Action,
    Blob,
    Call,
    Done,
    Grants,
    Hello,
    Join,
    Lease,
    Send,
    Setup,
    Submit,
    Versions,
    Welcome,
)
from zfarm.settings import Settings

LIMITS = Settings(beat_interval_s=1.0, worker_lost_after_s=5.0, client_lost_after_s=10.0, client_grace_s=60.0)
VERSIONS = Versions(PROTOCOL, "0", "3.11")
SETUP = msgspec.msgpack.encode(Setup(realm="c/0", cwd="/", path=()))
START = 1000.0
"""What the clocks show at first."""
EPOCH = 7
FIRST = EPOCH << 32 | 1
"""The first lease that a broker of that epoch grants."""
SAID = EPOCH << 32
"""The numbers of its Grants are above this one."""

HELLO = Hello("c", VERSIONS, "host-c", 11, "", number=1)
JOIN = Join("w", VERSIONS, 2, "host-w", 22, beat=1)


BOOKS = EPOCH << 32 | 1
"""What such a broker calls the books of its first client."""


def welcome(workers: int, slots: int, grants: int = 0, books: int = 0, topic: str = "") -> Welcome:
    silence_us = 5_000_000 if grants else 0  # that of a worker, with the ordinary settings
    most = LIMITS.payload_bytes_max
    about = workers, slots, grants, False, books, topic
    return Welcome(EPOCH, VERSIONS, *about, silence_us=silence_us, blob_bytes=most)


def submit(*tasks: int, items: int = 0, attempts: int = 3) -> tuple[Submit, list[Blob]]:
    """These tasks of one function in one realm."""
    calls = [Call(task, 0, 0, items, attempts) for task in tasks]
    return Submit(calls, ["f"], 1, [], 1), [b"function", SETUP, *(b"body %d" % task for task in tasks)]


def grants(number: int, leases: dict[int, int], owner: str = "c", expected_us: int = 0) -> Grants:
    """Grants of these leases (to task numbers) for one owner."""
    listed = [Lease(lease, 0, task, 0, 0, 0, expected_us) for lease, task in leases.items()]
    return Grants(number, listed, [owner], 1, 1, beat=1)


class BrokerRig:
    """A broker, and a clock that stands still until it is moved."""

    def __init__(self, limits: Settings = LIMITS) -> None:
        self.now = START
        self.machine = Broker(EPOCH, VERSIONS, self.now, limits)

    def say(self, peer: Any, message: Any, payload: Sequence[Blob] = ()) -> list[Action]:
        """``peer`` says this, and a turn passes."""
        self.machine.receive(peer, message, payload, self.now)
        return self.turn()

    def turn(self, after: float = 0.0) -> list[Action]:
        """A turn, so many seconds later."""
        self.now += after
        actions = self.machine.advance(self.now)
        self.machine.check()
        assert self.machine.deadline > self.now
        return actions

    def met(self) -> BrokerRig:
        """With one client ``C`` and one worker ``W`` of two slots."""
        self.say("C", HELLO)
        self.say("W", JOIN)
        return self


M = TypeVar("M", bound=Worker | Client)


class _PeerRig(Generic[M]):
    """One that talks to the broker alone, and a clock that stands still until it is moved."""

    def __init__(self, machine: M) -> None:
        self.now = START
        self.machine = machine

    def say(self, message: Any, payload: Sequence[Blob] = ()) -> list[Action]:
        """The broker says this, and a turn passes."""
        self.machine.receive(BROKER, message, payload, self.now)
        return self.turn()

    def turn(self, after: float = 0.0) -> list[Action]:
        """A turn, so many seconds later."""
        self.now += after
        actions = self.machine.advance(self.now)
        self.machine.check()
        return actions


class WorkerRig(_PeerRig[Worker]):
    """A worker of two slots."""

    def __init__(self, slots: int = 2) -> None:
        super().__init__(Worker("w", VERSIONS, slots, "host-w", 22, START, LIMITS))

    def joined(self) -> WorkerRig:
        """Welcomed by the broker, with its children started."""
        self.turn()
        self.say(welcome(1, 2))
        return self

    def granted(self, number: int, leases: dict[int, int], expected_us: int = 0) -> list[Action]:
        """The broker grants these leases, of tasks of the client ``c``."""
        bodies = [b"body %d" % task for task in leases.values()]
        return self.say(grants(number, leases, expected_us=expected_us), [b"function", SETUP, *bodies])

    def done(self, child: int, *seqs: int, kind: int = 0) -> list[Action]:
        """This child has ended these calls."""
        dones = [Done(seq, kind, 50) for seq in seqs]
        self.machine.child_reported(child, dones, [b"value %d" % seq for seq in seqs], self.now)
        return self.turn()

    def died(self, child: int, started_seq: int) -> list[Action]:
        """This child was killed while it ran that call."""
        self.machine.child_died(child, started_seq, 9, 0, "killed by SIGKILL", self.now)
        return self.turn()


class ClientRig(_PeerRig[Client]):
    """A client."""

    def __init__(self, limits: Settings = LIMITS) -> None:
        super().__init__(Client("c", VERSIONS, "host-c", 11, "", START, limits))

    def connected(self) -> ClientRig:
        """Welcomed by the broker."""
        self.turn()
        self.say(welcome(1, 2))
        return self

    def submit(self, token: object, items: int = 0) -> int:
        """Ask for one call; nothing is sent before the next turn."""
        return self.machine.submit(
            token, "f", b"function", SETUP, b"body %d" % (self.machine.open + 1), items
        )


def sent(actions: Sequence[Action], to: Any = BROKER) -> list[Any]:
    """The messages among these actions that go to this peer."""
    return [action.message for action in actions if isinstance(action, Send) and action.peer == to]
