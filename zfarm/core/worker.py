"""The worker's state machine: the leases it holds, the children that run them, and the reports it still owes.

Rules of this file:
  1. A lease is held from its grant until it is reported or returned; a report is owed until the broker
     thanks for it.
  2. A child runs the calls that were sent to it in order. Its first call is the one that runs, the others
     wait in its
     pipe and can be taken back; so only the first is blamed when the child dies.
  3. A call that was sent to a child and is not proven void counts as started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from zfarm.core.feeding import feed, feed_ahead
from zfarm.core.kids import Duty, Kid, Owed, facts
from zfarm.core.machine import NOW, batches
from zfarm.messages import (
    BROKEN,
    BROKER,
    LOST,
    Action,
    Beat,
    Began,
    Blob,
    Connected,
    Done,
    Drain,
    Fate,
    Finished,
    Grants,
    Held,
    Join,
    Leave,
    Message,
    Payload,
    Peer,
    Refused,
    Rejected,
    Report,
    Reports,
    Return,
    Revoke,
    Room,
    Send,
    StartChild,
    StopChild,
    Stranger,
    TakeBack,
    Thanks,
    Versions,
    Vitals,
    Welcome,
)
from zfarm.settings import Settings, settings

__all__ = ["Worker"]

Handler = Callable[[Any, Payload, float], None]


class Worker:
    """Runs leases in the children of one host."""

    def __init__(
        self,
        session: str,
        versions: Versions,
        slots: int,
        host: str,
        pid: int,
        now: float,
        limits: Settings = settings,
    ) -> None:
        self.session = session
        self.slots = slots
        self.deadline = NOW
        self._versions = versions
        self._host = host
        self._pid = pid
        self._limits = limits
        self._joined = False
        self._join_at = now
        self._beat_at = inf
        self._seen = 0
        self._draining = False
        self._over = False
        self._room_told = slots
        self._vitals: Vitals | None = None
        self._leases: dict[int, Duty] = {}
        self._queue: deque[Duty] = deque()
        self._owed: dict[int, Owed] = {}
        self._kids: dict[int, Kid] = {}
        self._next_kid = 1
        self._init_deaths: dict[str, int] = {}
        # what this turn has for the broker
        self._reports: list[int] = []
        self._returns: list[int] = []
        self._begans: list[int] = []
        self._actions: list[Action] = []
        self._handlers: dict[type, Handler] = {
            Welcome: self._on_welcome,
            Stranger: self._on_stranger,
            Refused: self._on_refused,
            Grants: self._on_grants,
            Revoke: self._on_revoke,
            Thanks: self._on_thanks,
            Drain: self._on_drain,
        }
        for _ in range(slots):
            self._start_kid()

    # ------------------------------------------------------------ local inputs

    def child_started(self, child: int, now: float) -> None:
        """The process of this child exists."""

    def child_reported(self, child: int, dones: list[Done], payload: Payload, now: float) -> None:
        """Calls of this child have ended; what is reported twice is ignored."""
        kid = self._kids.get(child)
        if kid is None:
            return
        self.deadline = NOW
        for done, blob in zip(dones, payload, strict=True):
            duty = kid.ended(done.seq)
            if duty is None:
                continue
            if done.kind == BROKEN:
                kid.ending = True
            if self._leases.pop(duty.lease, None) is not None:
                self._owe(duty, Report(lease=duty.lease, kind=done.kind, run_us=done.run_us), blob)
        kid.head_since = now
        kid.head_began = False
        self._init_deaths.pop(kid.realm, None)

    def child_waits(self, child: int, waiting: bool, now: float) -> None:
        """The running call of this child waits for nested calls (its slot is free meanwhile), or goes on."""
        kid = self._kids.get(child)
        if kid is not None:
            kid.waiting = waiting
            self.deadline = NOW

    def child_took_back(self, child: int, started_seq: int, now: float) -> None:
        """Answer to TakeBack: the calls of this child after ``started_seq`` are void."""
        kid = self._kids.get(child)
        if kid is None:
            return
        self.deadline = NOW
        kid.taking_back = False
        for duty in reversed(kid.void_after(started_seq)):
            self._take_home(duty, now)
        for duty in kid.duties():
            if duty.stopping:
                self._stop_kid(kid, kill=True)
                break
            if duty.revoked:
                duty.revoked = False
                self._begin(duty)

    def child_died(
        self, child: int, started_seq: int, signal: int, exit_code: int, text: str, now: float
    ) -> None:
        """This child is gone; its calls after ``started_seq`` never ran, and what it had finished was
        reported before."""
        kid = self._kids.pop(child, None)
        if kid is None:
            return
        self.deadline = NOW
        had_calls = kid.calls > 0
        for duty in reversed(kid.void_after(started_seq)):
            self._take_home(duty, now)
        fate = Fate(
            host=self._host, worker=f"{self._host}/{self._pid}", signal=signal, exit_code=exit_code, text=text
        )
        blamed = [duty for duty in kid.duties() if duty.lease in self._leases]
        for duty in blamed:
            del self._leases[duty.lease]
            self._owe(duty, Report(lease=duty.lease, kind=LOST, fate=fate), b"")
        if had_calls and not (kid.proven or blamed or kid.ending):
            self._died_early(kid, fate)

    def vitals(self, vitals: Vitals, now: float) -> None:
        """Fresh vital stats, to go with the next beat."""
        self._vitals = vitals

    def drain(self, now: float) -> None:
        """Take nothing more, return what has not started, finish the rest, and leave."""
        self._draining = True
        self.deadline = NOW

    # ------------------------------------------------------------ the machine

    def receive(self, peer: Peer, message: Message, payload: Payload, now: float) -> None:
        """Note a message of the broker."""
        handler = self._handlers.get(type(message))
        if handler is not None and not self._over:
            handler(message, payload, now)
            self.deadline = NOW

    def advance(self, now: float) -> list[Action]:
        """Feed the children, watch the clock, and send what this turn has for the broker."""
        if not self._over:
            self._watch_kids(now)
            if self._draining:
                self._drain_more()
            if self._queue:
                self._feed(now)
            self._retire_kids()
            if not self._joined:
                if self._draining and not self._leases and not self._owed:
                    self._over = True
                    self._actions.append(Finished())
                else:
                    self._join(now)
            else:
                self._flush(now)
        actions, self._actions = self._actions, []
        self.deadline = inf if self._over else self._next_deadline()
        return actions

    def check(self) -> None:
        """Every lease is in the queue or with one child; busy children that do not wait fit the slots."""
        places = [duty.lease for duty in self._queue]
        for kid in self._kids.values():
            places.extend(duty.lease for duty in kid.duties() if duty.lease in self._leases)
            assert kid.expected_us == sum(duty.expected_us for duty in kid.duties())
        assert sorted(places) == sorted(self._leases), "a lease is nowhere, or in two places"
        assert not self._leases.keys() & self._owed.keys(), "a lease is held and owed at once"

    # ------------------------------------------------------------ messages of the broker

    def _on_welcome(self, message: Welcome, payload: Payload, now: float) -> None:
        self._joined = True
        self._seen = 0
        self._beat_at = now
        self._reports = list(self._owed)
        self._room_told = -1
        self._begans, self._returns = [], []
        for kid in self._kids.values():  # what was said on the old link may be lost
            kid.head_began = False
        self._actions.append(Connected(message))

    def _on_stranger(self, message: Stranger, payload: Payload, now: float) -> None:
        if self._joined:
            self._joined = False
            self._join_at = now

    def _on_refused(self, message: Refused, payload: Payload, now: float) -> None:
        self._over = True
        self._actions.append(Rejected(message.code, message.text))

    def _on_grants(self, message: Grants, payload: Payload, now: float) -> None:
        self._seen = message.number
        first_body = message.functions + message.setups
        functions = [bytes(payload[i]) for i in range(message.functions)]
        setups = [bytes(payload[i]) for i in range(message.functions, first_body)]
        known = [facts(setup) for setup in setups]
        owners = message.owners
        leases = self._leases
        for i, lease in enumerate(message.leases, first_body):
            number = lease.lease
            if number in leases or number in self._owed:
                continue  # repeated
            duty = Duty(
                number,
                owners[lease.owner],
                lease.task,
                lease.items,
                lease.expected_us,
                functions[lease.function],
                setups[lease.setup],
                payload[i],
                *known[lease.setup],
                now,
            )
            leases[number] = duty
            self._queue.append(duty)

    def _on_revoke(self, message: Revoke, payload: Payload, now: float) -> None:
        for lease in message.leases:
            duty = self._leases.get(lease)
            if duty is None:
                if not message.force and lease not in self._owed:
                    self._returns.append(lease)
                continue
            if message.force:
                duty.stopping = True
            else:
                duty.revoked = True
            if duty.kid is None:
                self._queue.remove(duty)
                self._take_home(duty, now)
            else:
                self._take_back(duty.kid)

    def _on_thanks(self, message: Thanks, payload: Payload, now: float) -> None:
        for lease in message.leases:
            self._owed.pop(lease, None)

    def _on_drain(self, message: Drain, payload: Payload, now: float) -> None:
        self.drain(now)

    # ------------------------------------------------------------ leases

    def _take_home(self, duty: Duty, now: float) -> None:
        """A call that has certainly not started: back into the queue, or away if it was revoked."""
        duty.kid = None
        if duty.lease not in self._leases:
            return
        if duty.stopping:
            del self._leases[duty.lease]
        elif duty.revoked or self._draining:
            del self._leases[duty.lease]
            self._returns.append(duty.lease)
        else:
            duty.queued_at = now
            self._queue.appendleft(duty)

    def _owe(self, duty: Duty, report: Report, blob: Blob) -> None:
        self._owed[report.lease] = Owed(report, blob, duty.owner, duty.task)
        self._reports.append(report.lease)

    def _begin(self, duty: Duty) -> None:
        if duty.lease in self._leases:
            self._begans.append(duty.lease)

    def _return_queue(self) -> None:
        for duty in self._queue:
            del self._leases[duty.lease]
            self._returns.append(duty.lease)
        self._queue.clear()

    def _drain_more(self) -> None:
        self._return_queue()
        for kid in self._kids.values():
            if kid.calls > 1:
                self._take_back(kid)

    # ------------------------------------------------------------ children

    def _start_kid(self) -> Kid:
        kid = Kid(self._next_kid)
        self._next_kid += 1
        self._kids[kid.number] = kid
        self._actions.append(StartChild(kid.number))
        return kid

    def _stop_kid(self, kid: Kid, kill: bool) -> None:
        """End a child; with ``kill`` the calls that it has started are dropped: whoever wanted this knows
        why."""
        kid.ending = True
        if kill:
            for duty in kid.duties():
                self._leases.pop(duty.lease, None)
        if not kid.stopped or kill:
            kid.stopped = True
            self._actions.append(StopChild(kid.number, kill))

    def _take_back(self, kid: Kid) -> None:
        if not kid.taking_back:
            kid.taking_back = True
            self._actions.append(TakeBack(kid.number))

    def _busy(self) -> int:
        """Slots in use: children with calls (or asked to give some back) that do not wait for nested ones."""
        return sum(1 for kid in self._kids.values() if (kid.calls or kid.taking_back) and not kid.waiting)

    def _idle_kid(self, realm: str) -> Kid:
        """An idle child for this realm: one that serves it, else a fresh one; too many idle ones of other
        realms are ended."""
        idle = [kid for kid in self._kids.values() if kid.idle]
        for wanted in (realm, ""):
            for kid in idle:
                if kid.realm == wanted:
                    return kid
        spare = [kid for kid in idle if kid.realm]
        if len(spare) >= self._limits.children_idle_max:
            self._stop_kid(spare[0], kill=False)
        return self._start_kid()

    def _feed(self, now: float) -> None:
        """Send queued calls to children: first to idle ones while there are free slots, then a little ahead
        of busy ones."""
        queue, limits = self._queue, self._limits
        free = self.slots - self._busy()
        while queue and free > 0:
            kid = self._idle_kid(queue[0].realm)
            self._actions.append(feed(kid, queue, limits, now, share=free))
            free -= 1
        if queue and free >= 0:  # below: calls that waited go on, and the slots they had given up are taken
            self._actions.extend(feed_ahead(self._kids.values(), queue, limits, now))

    def _watch_kids(self, now: float) -> None:
        """Say which calls have started for good; free what waits behind a long one."""
        limits = self._limits
        for kid in self._kids.values():
            if not kid.calls or kid.ending:
                continue
            since = now - kid.head_since
            if not kid.head_began and since >= limits.began_after_us / 1e6:
                kid.head_began = True
                self._begin(kid.head())
            if (
                kid.calls > 1
                and not kid.taking_back
                and (kid.waiting or since >= limits.stuck_after_us / 1e6)
            ):
                self._take_back(kid)
        queue = self._queue
        if queue and now - queue[0].queued_at >= limits.stuck_after_us / 1e6 and self._busy() >= self.slots:
            self._return_queue()

    def _retire_kids(self) -> None:
        """End children that have run as many tasks as their realm allows, or that are too many."""
        idle = 0
        for kid in self._kids.values():
            if kid.stopped or kid.calls:
                continue
            idle += 1
            if kid.ending or kid.worn_out or idle > self.slots + self._limits.children_idle_max:
                self._stop_kid(kid, kill=False)

    def _died_early(self, kid: Kid, fate: Fate) -> None:
        """A child died before it started its first call: after a few in a row its realm counts as broken."""
        deaths = self._init_deaths[kid.realm] = self._init_deaths.get(kid.realm, 0) + 1
        if deaths < self._limits.initializer_deaths_max:
            return
        del self._init_deaths[kid.realm]
        broken = [duty for duty in self._queue if duty.realm == kid.realm]
        self._queue = deque(duty for duty in self._queue if duty.realm != kid.realm)
        for duty in broken:
            del self._leases[duty.lease]
            kind = BROKEN if duty.initialized else LOST
            self._owe(duty, Report(lease=duty.lease, kind=kind, fate=fate), b"")

    # ------------------------------------------------------------ sending

    def _join(self, now: float) -> None:
        if now < self._join_at:
            return
        self._join_at = now + self._limits.beat_interval_s
        held = [Held(d.lease, d.owner, d.task, d.kid is not None) for d in self._leases.values()]
        held += [Held(lease, owed.owner, owed.task, True) for lease, owed in self._owed.items()]
        join = Join(self.session, self._versions, self.slots, self._host, self._pid, held)
        self._actions.append(Send(BROKER, join))

    def _room(self) -> int:
        if self._draining:
            return 0
        waiting = sum(1 for kid in self._kids.values() if kid.waiting and kid.calls)
        return self.slots + min(waiting, self._limits.blocked_children_max)

    def _flush(self, now: float) -> None:
        limits = self._limits
        send = self._actions.append
        for kind, numbers in ((Began, self._begans), (Return, self._returns)):
            for start in range(0, len(numbers), limits.batch_calls_max):
                part = numbers[start : start + limits.batch_calls_max]
                send(Send(BROKER, Began(tasks=part) if kind is Began else Return(leases=part)))
        self._begans, self._returns = [], []
        if self._reports:
            owed = self._owed
            pairs = [(owed[lease].report, owed[lease].blob) for lease in self._reports if lease in owed]
            self._reports = []
            for batch in batches(pairs, limits.batch_calls_max, limits.batch_bytes_max):
                send(
                    Send(
                        BROKER, Reports(reports=[report for report, _ in batch]), [blob for _, blob in batch]
                    )
                )
        room = self._room()
        if room != self._room_told:
            self._room_told = room
            send(Send(BROKER, Room(room=room)))
        if self._draining and not self._leases and not self._owed:
            self._over = True
            send(Send(BROKER, Leave()))
            send(Finished())
        elif now >= self._beat_at:
            self._beat_at = now + limits.beat_interval_s
            held = [*self._leases, *self._owed]
            send(Send(BROKER, Beat(seen=self._seen, held=held, room=room, vitals=self._vitals)))
            self._vitals = None

    def _next_deadline(self) -> float:
        limits = self._limits
        deadline = self._beat_at if self._joined else self._join_at
        for kid in self._kids.values():
            if kid.calls and not kid.ending:
                if not kid.head_began:
                    deadline = min(deadline, kid.head_since + limits.began_after_us / 1e6)
                elif kid.calls > 1 and not kid.taking_back:
                    deadline = min(deadline, kid.head_since + limits.stuck_after_us / 1e6)
        if self._queue:
            deadline = min(deadline, self._queue[0].queued_at + limits.stuck_after_us / 1e6)
        return deadline
