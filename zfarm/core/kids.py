"""What the worker's machine knows of one child and of the calls in its pipe; who decides about them is
zfarm.core.worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from math import inf
from typing import NamedTuple

import msgspec

from zfarm.core.named import Given
from zfarm.messages import Blob, Left, Report, Setup

__all__ = ["Duty", "Kid", "Owed", "facts", "limit_of", "starved"]

_SETUPS = msgspec.msgpack.Decoder(Setup)


@lru_cache(maxsize=256)
def facts(setup: bytes) -> tuple[str, int, bool]:
    """Realm, max_tasks_per_child and "has an initializer" of an encoded Setup.

    One that cannot be read is a realm of its own: its child will say why.
    """
    try:
        decoded = _SETUPS.decode(setup)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return "unreadable", 1, False
    return decoded.realm, decoded.max_tasks_per_child, bool(decoded.initializer)


class Duty(msgspec.Struct, gc=False, eq=False):
    """One lease as the worker holds it."""

    lease: int
    owner: str
    task: int
    items: int
    expected_us: int
    function: bytes
    setup: bytes
    body: Blob
    realm: str
    tasks_max: int
    initialized: bool
    queued_at: float
    kid: Kid | None = None
    timeout_us: int = 0
    memory_bytes: int = 0
    takes: tuple[tuple[str, int], ...] = ()  # of the worker's resources, from its start to its end
    needy: bool = False  # it needs files, which are in the store
    own: bool = False  # another call here waits for it: it runs here though the worker drains
    seq: int = 0
    held_s: float = 0.0  # for how long it had children that died before they could start it
    revoked: bool = False  # to be given back unless it has started
    stopping: bool = False  # to be stopped even if it has started
    grace_us: int = 0  # to be interrupted if it has started, and stopped so much later


class Owed(NamedTuple):
    """A report that the broker has not thanked for; ``owner`` and ``task`` let a restarted broker place
    it."""

    report: Report
    blob: Blob
    owner: str
    task: int


class Kid:
    """One child: the realm that it serves and the calls in its pipe, the running one first."""

    __slots__ = (
        "delivering",
        "ending",
        "expected_us",
        "given",
        "head_began",
        "head_from",
        "head_since",
        "heard_at",
        "limited",
        "number",
        "overshot",
        "owner",
        "proven",
        "realm",
        "runs",
        "sent",
        "seq",
        "setup",
        "stop_at",
        "stopped",
        "taking_back",
        "tasks_max",
        "used",
        "waiting",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.realm = ""  # of a fresh one
        self.owner = ""  # that of the first call in the last message to it
        self.setup = b""
        self.given = Given()  # functions that it has by name
        self.sent: deque[Duty] = deque()
        self.runs: deque[int] = deque()  # the last call of each message in the pipe
        self.seq = 0
        self.expected_us = 0
        self.used = 0
        self.tasks_max = 0
        self.head_since = 0.0
        self.head_from = 0.0  # the same, but as early as it can have been
        self.heard_at = 0.0  # when it last had its first call, or said that calls had ended
        self.head_began = False
        self.stop_at = inf  # when the running call will be stopped
        self.limited = False  # the running call is watched for the memory that it has in use
        self.overshot: Left | None = None  # it has had too much
        self.waiting = False
        self.taking_back = False
        self.delivering = 0  # the call whose result goes to its client now, or went last
        self.proven = False  # it has ended a call, so its initializer works
        self.ending = False  # gets no more calls
        self.stopped = False  # was told to end

    @property
    def speaks_for(self) -> str:
        """The client whose call is the first that has not ended, or was the last one."""
        return self.sent[0].owner if self.sent else self.owner

    @property
    def calls(self) -> int:
        """Calls that were sent to it and have not ended."""
        return len(self.sent)

    @property
    def idle(self) -> bool:
        """It can take calls; one that was asked to give calls back cannot: its answer would void them."""
        return not (self.sent or self.ending or self.worn_out or self.taking_back)

    @property
    def worn_out(self) -> bool:
        """It has had as many calls as its realm allows."""
        return bool(self.tasks_max) and self.used >= self.tasks_max

    def duties(self) -> Iterator[Duty]:
        """Its calls, the running one first."""
        return iter(self.sent)

    def delivers(self, seq: int) -> bool:
        """That call waits for its client to have its result; True: others wait behind it in the pipe."""
        self.delivering = seq
        return bool(self.sent) and self.sent[-1].seq > seq

    def head(self) -> Duty:
        """The call that runs."""
        return self.sent[0]

    def goes(self, now: float) -> None:
        """It is sent its first call."""
        self.head_since = self.head_from = self.heard_at = now
        self.head_began = False

    def went_on(self, now: float, ran_us: int) -> None:
        """It says that calls have ended, which ran for so long in all. That may be long ago: what had ended
        when it died is found only then."""
        self.head_from = min(now, self.heard_at + ran_us / 1e6)
        self.head_since = self.heard_at = now
        self.head_began = False

    def held_us(self, now: float) -> int:
        """For how long the running call has had this child, and others before it."""
        return int((now - self.head_from + self.head().held_s) * 1e6)

    def accepts_ahead(self, duty: Duty, window_us: int, runs: int) -> bool:
        """Whether ``duty`` may wait in its pipe behind the running call."""
        return (
            bool(self.sent)
            and self.realm == duty.realm
            and not (self.waiting or self.ending or self.taking_back or self.worn_out or self.head_began)
            and self.delivering < self.sent[0].seq
            and self.expected_us < window_us
            and len(self.runs) < runs
            and self.sent[-1].expected_us > 0
        )

    def adopt(self, duty: Duty) -> bool:
        """Take on the setup of ``duty``; True if the child must be told."""
        self.realm = duty.realm
        self.owner = duty.owner
        self.tasks_max = duty.tasks_max
        if self.setup == duty.setup:
            return False
        self.setup = duty.setup
        return True

    def take(self, duty: Duty) -> int:
        """Enter a call that is being sent and return its number in this child."""
        self.seq += 1
        self.used += 1
        duty.seq = self.seq
        duty.kid = self
        self.sent.append(duty)
        self.expected_us += duty.expected_us
        return self.seq

    def ended(self, seq: int) -> Duty | None:
        """Strike the call that has ended; None if this was known."""
        if not self.sent or self.sent[0].seq != seq:
            return None
        self.proven = True
        self.waiting = False
        return self._strike(self.sent.popleft())

    def gave_back(self, started_seq: int) -> list[Duty]:
        """As void_after; since when it runs what it still runs is not known, and so nothing should wait
        behind that."""
        self.taking_back = False
        self.head_since = -inf
        return self.void_after(started_seq)

    def void_after(self, started_seq: int) -> list[Duty]:
        """Strike the calls after ``started_seq``, and return them in order."""
        void: list[Duty] = []
        while self.sent and self.sent[-1].seq > started_seq:
            self.used -= 1
            void.append(self._strike(self.sent.pop()))
        void.reverse()
        while len(self.runs) > 1 and self.sent and self.runs[-2] >= self.sent[-1].seq:
            self.runs.pop()
        return void

    def _strike(self, duty: Duty) -> Duty:
        self.expected_us -= duty.expected_us
        while self.runs and (not self.sent or self.runs[0] < self.sent[0].seq):
            self.runs.popleft()
        return duty


def starved(duty: Duty, left: Left) -> bool:
    """Whether a call with a memory limit has died of that: it was refused memory, or the kernel killed it
    when it had all that it may have. Of what its nursery has killed, a word in what it had written tells
    nothing."""
    had_all = bool(left.oom) and left.peak_bytes >= duty.memory_bytes
    return bool(duty.memory_bytes) and not left.doomed and (left.starved or had_all)


def limit_of(duty: Duty, left: Left) -> str:
    """What a death under a call with a memory limit may have to do with that."""
    limit = f"memory limit of {duty.memory_bytes / 1e6:.1f} MB"
    if left.oom and not starved(duty, left):  # the kernel has killed it for another limit than its own
        return f", though it was below its {limit}" if left.peak_bytes else ""
    return f", with a {limit}: code that is refused memory may crash"
