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

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from msgspec import structs

from zfarm.core.brood import NO_WORD, NOTHING
from zfarm.core.deaths import words_of_report
from zfarm.core.delivering import Delivering
from zfarm.core.farewell import Farewell
from zfarm.core.kids import Duty, facts, limit_of, starved
from zfarm.core.machine import NOW, batches
from zfarm.core.named import Bodies
from zfarm.core.printouts import Printouts
from zfarm.core.tether import Tether
from zfarm.messages import (
    BROKEN,
    BROKER,
    CUT,
    LOST,
    MEMORY,
    MISSING,
    Action,
    Beat,
    Began,
    Blob,
    Chunks,
    Connected,
    Done,
    Drain,
    Fetch,
    Finished,
    Grants,
    Held,
    Join,
    Leave,
    Left,
    LimitChild,
    Listen,
    Message,
    Noted,
    PauseChild,
    Payload,
    Peer,
    Pin,
    Progress,
    Refused,
    Rejected,
    Report,
    Reports,
    Return,
    Revoke,
    Room,
    Send,
    Stranger,
    Tell,
    Thanks,
    Versions,
    Vitals,
    Welcome,
)
from zfarm.settings import Settings, settings

__all__ = ["Worker"]

Handler = Callable[[Any, Payload, float], None]


class Worker(Delivering):
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
        resources: dict[str, int] | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        """``resources`` are what there is for calls that demand some, in thousandths."""
        super().__init__(slots, host, pid, limits, resources)
        self.session = session
        self.labels = list(labels)
        self._versions = versions
        self._joined = False
        self._farewell = Farewell(limits)
        self._join_at = now
        self._beat_at = inf
        self._seen = 0
        self._over = False
        self._room_told: Room | None = Room(slots)
        self._vitals: Vitals | None = None
        self._printouts = Printouts(limits)
        self.tether = Tether(self)
        self._bodies = Bodies(limits.named_kept_bytes)
        self._nameless: list[int] = []  # leases of functions that are not here, and those functions
        self._lacks: list[bytes] = []
        self._handlers: dict[type, Handler] = {
            Welcome: self._on_welcome,
            Stranger: self._on_stranger,
            Refused: self._on_refused,
            Grants: self._on_grants,
            Revoke: self._on_revoke,
            Thanks: self._on_thanks,
            Noted: self._on_noted,
            Drain: self._on_drain,
            Listen: self._on_listen,
            Fetch: self._on_fetch,
            Chunks: self._on_chunks,
            Pin: self._on_pin,
        }

    # ------------------------------------------------------------ local inputs

    def child_started(self, child: int, now: float) -> None:
        """The process of this child exists."""

    def child_reported(self, child: int, dones: list[Done], payload: Payload, now: float) -> None:
        """Calls of this child have ended; what is reported twice is ignored."""
        kid = self._kids.get(child)
        if kid is None:
            return
        self.deadline = NOW
        held_us = 0 if kid.proven or not kid.calls else kid.held_us(now)
        ran_us = held_us  # of the first one, if the child was started for it
        for done, blob in zip(dones, payload, strict=True):
            duty = kid.ended(done.seq)
            if duty is None:
                continue
            if done.kind == BROKEN:
                kid.ending = True
            if self._leases.pop(duty.lease, None) is not None:
                self._owe(duty, Report(duty.lease, done.kind, done.run_us, held_us=held_us), blob)
            held_us = 0  # it began with the first one
            ran_us += done.run_us
        if kid.limited:
            self._lift_limit(kid)
        kid.went_on(now, ran_us)
        if not kid.sent:
            kid.stop_at = inf
        self._init_deaths.pop(kid.realm, None)

    def child_starts(self, child: int, seq: int, now: float) -> None:
        """A call with a timeout or a memory limit has started in this child."""
        kid = self._kids.get(child)
        if kid is not None and kid.calls and kid.head().seq == seq:
            duty = kid.head()
            if duty.timeout_us:
                kid.stop_at = now + duty.timeout_us / 1e6
            if duty.memory_bytes:
                kid.limited = True
                self._actions.append(LimitChild(child, duty.memory_bytes))
            self.deadline = NOW

    def child_overshot(self, child: int, left: Left, now: float) -> None:
        """The running call of this child has more memory in use than it may: ``left`` tells how much."""
        kid = self._kids.get(child)
        if kid is not None and kid.limited:
            kid.overshot = left
            self.deadline = NOW

    def child_waits(self, child: int, waiting: bool, now: float) -> None:
        """The running call of this child waits for nested calls (its slot is free meanwhile), or goes on."""
        kid = self._kids.get(child)
        if kid is not None:
            kid.waiting = waiting
            self.deadline = NOW

    def child_emitted(
        self, child: int, seq: int, blobs: Payload, latest: bool, files: bool, now: float
    ) -> None:
        """Call ``seq`` of this child has emitted items, one of which only the ``latest`` counts, or pieces of
        ``files``."""
        duty = self._duty(child, seq)
        if duty is not None:
            sign = -1 if files else 1
            self._outflow.emitted(sign * duty.lease, duty.owner, sign * duty.task, blobs, now, latest)
            self.deadline = NOW

    def child_advanced(self, child: int, progress: Progress, now: float) -> None:
        """A call of this child says how far it is."""
        duty = self._duty(child, progress.number)
        if duty is not None:
            self._outflow.advanced(duty.lease, progress)
            self.deadline = NOW

    def child_printed(self, child: int, seq: int, source: int, blob: Blob, dropped: int, now: float) -> bool:
        """Call ``seq`` of this child has printed this. False: it is no call whose client wants to know."""
        duty = self._duty(child, seq)
        if duty is not None:
            self._printouts.add(duty.lease, source, blob, dropped)
            self.deadline = NOW
        return duty is not None

    def child_took_back(self, child: int, started_seq: int, now: float) -> None:
        """Answer to TakeBack: the calls of this child after ``started_seq`` are void."""
        kid = self._kids.get(child)
        if kid is None:
            return
        self.deadline = NOW
        for duty in reversed(kid.gave_back(started_seq)):
            self._take_home(duty, now)
        for duty in kid.duties():
            if duty.stopping:
                self._stop_kid(kid, kill=True)
                break
            if duty.grace_us:
                self._interrupt(kid, now + duty.grace_us / 1e6)
            elif duty.revoked:
                duty.revoked = False
                kid.head_began = True
                self._begin(duty)

    def child_died(
        self,
        child: int,
        started_seq: int,
        signal: int,
        exit_code: int,
        text: str,
        now: float,
        left: Left = NOTHING,
    ) -> None:
        """This child is gone; its calls after ``started_seq`` never ran, and what it had finished was
        reported before."""
        kid = self._kids.pop(child, None)
        if kid is None:
            return
        self.deadline = NOW
        self._short_until = 0.0  # there is room for another one
        had_calls = kid.calls > 0
        held_us = kid.held_us(now) if had_calls else 0
        if had_calls:
            kid.head().held_s = held_us / 1e6
        for duty in reversed(kid.void_after(started_seq)):
            self._take_home(duty, now)
        fate = self._fate(signal, exit_code, NO_WORD if left.doomed else text, left)
        blamed = [duty for duty in kid.duties() if duty.lease in self._leases]
        for duty in blamed:
            del self._leases[duty.lease]
            if duty.memory_bytes and not left.doomed:
                fate = structs.replace(fate, text=fate.text + limit_of(duty, left))
            stopped = left.doomed or duty.grace_us > 0  # by its nursery, or when we interrupted it
            kind = MEMORY if starved(duty, left) else CUT if stopped else LOST
            self._owe(duty, Report(duty.lease, kind, fate=fate, held_us=held_us), b"")
            held_us = 0  # of the one that ran
        if had_calls and not (kid.proven or blamed or kid.ending or left.doomed):
            self._died_early(kid, fate)

    def child_unborn(self, child: int, text: str, now: float) -> None:
        """This child could not be started: its calls wait, or run elsewhere, and nobody is blamed. So many
        children as there are must do for a while."""
        kid = self._kids.pop(child, None)
        if kid is None:
            return
        self.deadline = NOW
        for duty in reversed(kid.void_after(0)):
            self._take_home(duty, now)
        if not self._short_until:
            self._actions.append(Tell("warning", f"a child {text}"))
        self._short_until = now + self._limits.child_retry_s

    def vitals(self, vitals: Vitals, now: float) -> None:
        """Fresh vital stats, to go with the next beat."""
        self._vitals = vitals

    def owner_of(self, child: int) -> str:
        """The client whose calls run in that child; empty: none has yet."""
        kid = self._kids.get(child)
        return kid.speaks_for if kid is not None else ""

    def drain(self, now: float) -> None:
        """Take nothing more, return what has not started, finish the rest, and leave."""
        self._draining = True
        self.deadline = NOW

    def stop(self, now: float) -> None:
        """Leave at once: what children have been given ends with them, and counts as begun."""
        self._draining = self._stopping = True
        self.deadline = NOW

    # ------------------------------------------------------------ the machine

    def receive(self, peer: Peer, message: Message, payload: Payload, now: float) -> None:
        """Note a message of the broker."""
        handler = self._handlers.get(type(message))
        if handler is not None and not self._over:
            self._farewell.heard(now)
            handler(message, payload, now)
            self.deadline = NOW

    def advance(self, now: float) -> list[Action]:
        """Feed the children, watch the clock, and send what this turn has for the broker."""
        if not self._over:
            if self.tether.leases:
                self.tether.watch(now)
            self._watch_kids(now)
            if self._lacking:
                self._supply(now, self._joined)
            if self._draining:
                self._drain_more()
            if self._queue or self._short:
                self._feed(now)
            if self.tether.leases:
                self.tether.arm()
            self._retire_kids()
            if not self._joined:
                if self._stopping or (self._draining and self._is_to_leave(now)):
                    self._over = True
                    self._actions.append(Finished())
                else:
                    self._join(now)
            else:
                self._printouts.flush(self._actions)
                self._flush(now)
            self._pause_kids(now)
        actions, self._actions = self._actions, []
        self.deadline = inf if self._over else self._next_deadline()
        return actions

    def check(self) -> None:
        """Every lease is in the queue or with one child; busy children that do not wait fit the slots."""
        places = [duty.lease for duty in (*self._queue, *self._short, *self._unsupplied.values())]
        for kid in self._kids.values():
            places.extend(duty.lease for duty in kid.duties() if duty.lease in self._leases)
            assert kid.expected_us == sum(duty.expected_us for duty in kid.duties())
        assert sorted(places) == sorted(self._leases), "a lease is nowhere, or in two places"
        assert not self._leases.keys() & self._owed.keys(), "a lease is held and owed at once"
        self._outflow.check()
        self._lacking.check()
        self._bodies.check()

    # ------------------------------------------------------------ messages of the broker

    def _on_welcome(self, message: Welcome, payload: Payload, now: float) -> None:
        self._joined = True
        self._farewell.welcome()
        self._seen = message.grants
        self._obey(message)
        self.tether.allow(message.silence_us / 1e6)
        self._beat_at = now
        self._reports = list(self._owed)
        self._room_told = None
        self._begans, self._returns = [], []
        self._nameless, self._lacks = [], []
        self._outflow.welcome(now)
        self._lacking.welcome()
        for kid in self._kids.values():  # what was said on the old link may be lost
            kid.head_began = False
        self._actions.append(Connected(message))

    def _on_stranger(self, message: Stranger, payload: Payload, now: float) -> None:
        if self._joined:
            self._joined = False
            self._join_at = now

    def _on_refused(self, message: Refused, payload: Payload, now: float) -> None:
        if message.code == "FarmBusy":  # its key has too many workers for now, maybe dead ones: it asks again
            if self._farewell.refused(now):
                self._actions.append(Tell("warning", f"not let in yet: {message.text}"))
            return
        self._over = True
        self._actions.append(Rejected(message.code, message.text))

    def _on_grants(self, message: Grants, payload: Payload, now: float) -> None:
        self._seen = message.number
        self.tether.heard(message.beat)
        first_body = message.functions + message.setups
        functions = self._bodies.all_of(message.digests, payload[: message.functions], self._lacks)
        setups = [bytes(payload[i]) for i in range(message.functions, first_body)]
        known = [facts(setup) for setup in setups]
        owners = message.owners
        leases = self._leases
        own = set(message.own)
        for i, lease in enumerate(message.leases, first_body):
            number = lease.lease
            if number in leases or number in self._owed:
                continue  # repeated
            function = functions[lease.function]
            if function is None:
                self._nameless.append(number)
                continue
            duty = Duty(
                number,
                owners[lease.owner],
                lease.task,
                lease.items,
                lease.expected_us,
                function,
                setups[lease.setup],
                payload[i],
                *known[lease.setup],
                now,
            )
            if lease.timeout_us or lease.memory_bytes:  # alone, like a call of which nothing is known
                duty.timeout_us, duty.memory_bytes = lease.timeout_us, lease.memory_bytes
                duty.expected_us = 0
            if lease.demand:
                demand = message.demands[lease.demand - 1]
                duty.takes, duty.expected_us = demand.resources, 0
                if demand.exclusive and self.tether.take(duty, self._beat_at + self._limits.beat_interval_s):
                    self._beat_at = now
            duty.own = bool(own) and number in own
            leases[number] = duty
            if not lease.needs or self._has_all(duty, message.needs[lease.needs - 1]):
                self._queue.append(duty)

    def _on_revoke(self, message: Revoke, payload: Payload, now: float) -> None:
        for lease in message.leases:
            duty = self._leases.get(lease)
            if duty is None:
                if (message.grace_us or not message.force) and lease not in self._owed:
                    self._returns.append(lease)
                continue
            if message.force and not message.grace_us:
                duty.stopping = True
            else:
                duty.revoked = True
                duty.grace_us = message.grace_us
            if duty.kid is None:
                self._end_shortage()
                if self._unsupplied.pop(lease, None) is None:
                    self._queue.remove(duty)
                self._take_home(duty, now)
            else:
                self._take_back(duty.kid)

    def _on_thanks(self, message: Thanks, payload: Payload, now: float) -> None:
        for lease in message.leases:
            self._owed.pop(lease, None)

    def _on_noted(self, message: Noted, payload: Payload, now: float) -> None:
        self.tether.heard(message.beat)

    def _on_drain(self, message: Drain, payload: Payload, now: float) -> None:
        self.drain(now)

    def _on_listen(self, message: Listen, payload: Payload, now: float) -> None:
        self._outflow.listen(message.listens, now, message.key)

    def _on_fetch(self, message: Fetch, payload: Payload, now: float) -> None:
        self._outflow.fetch(message)

    # ------------------------------------------------------------ streams

    def _owe(self, duty: Duty, report: Report, blob: Blob) -> None:
        if self._outflow.paused(duty.lease) and duty.kid is not None:
            self._actions.append(PauseChild(duty.kid.number, False))
        died = report.kind in (LOST, CUT)
        emitted, filed = self._outflow.end(duty.lease, died), self._outflow.end_files(duty.lease, died)
        if emitted or filed:
            report = structs.replace(report, emitted=emitted, filed=filed)
        super()._owe(duty, report, blob)

    def _pause_kids(self, now: float) -> None:
        if self._outflow.delivered or self._outflow.voided:
            self._end_deliveries(now)
        for lease, paused in self._outflow.pauses(now):
            duty = self._leases.get(lease)
            if duty is not None and duty.kid is not None:
                self._actions.append(PauseChild(duty.kid.number, paused))

    # ------------------------------------------------------------ sending

    def _is_to_leave(self, now: float) -> bool:
        return self._farewell.is_due(len(self._leases), len(self._owed), now, self._actions)

    def _join(self, now: float) -> None:
        if now < self._join_at:
            return
        self._join_at = now + self._limits.beat_interval_s
        held = [Held(d.lease, d.owner, d.task, d.kid is not None, d.takes) for d in self._leases.values()]
        # no child ever had what lacks a file
        held += [Held(n, o.owner, o.task, o.report.kind != MISSING) for n, o in self._owed.items()]
        join = Join(
            self.session, self._versions, self.slots, self._host, self._pid, held, self.resources,
            self.labels, self.tether.beat(now), self.duct,
        )  # fmt: skip
        self._actions.append(Send(BROKER, join))

    def _room(self) -> Room:
        """What it can take; who drains takes no more than what its own calls wait for."""
        slots = self.slots
        if self._short_until:  # a call in a child that ends will not need that one's slot for another
            slots = min(slots, sum(1 for kid in self._kids.values() if not kid.waiting))
        children = [kid.number for kid in self._kids.values() if kid.waiting and kid.calls]
        del children[self._limits.blocked_children_max :]
        room = slots + len(children)
        if not self._draining:
            return Room(room)
        return Room(0, [], True, room if children else 0, children)

    def _waiting(self) -> list[int]:
        return [kid.head().lease for kid in self._kids.values() if kid.waiting and kid.calls]

    def _flush(self, now: float) -> None:
        limits = self._limits
        send = self._actions.append
        for kind, numbers in ((Began, self._begans), (Return, self._returns)):
            for start in range(0, len(numbers), limits.batch_calls_max):
                part = numbers[start : start + limits.batch_calls_max]
                send(Send(BROKER, Began(tasks=part) if kind is Began else Return(part, self._seen)))
        self._begans, self._returns = [], []
        for start in range(0, len(self._nameless), limits.batch_calls_max):
            nameless = self._nameless[start : start + limits.batch_calls_max]
            send(Send(BROKER, Return(nameless, self._seen, self._lacks)))
        self._nameless, self._lacks = [], []
        self._outflow.reap(self._leases)
        if now >= self._outflow.deadline:
            self._outflow.advance(now, self._actions)
        if self._reports:
            owed = self._owed
            pairs = [(owed[lease].report, owed[lease].blob) for lease in self._reports if lease in owed]
            self._reports = []
            words = words_of_report if [1 for report, _ in pairs if report.fate is not None] else None
            for batch in batches(pairs, limits.batch_calls_max, limits.batch_bytes_max, words):
                send(
                    Send(
                        BROKER, Reports(reports=[report for report, _ in batch]), [blob for _, blob in batch]
                    )
                )
        room = self._room()
        if room != self._room_told:
            self._room_told = room
            send(Send(BROKER, structs.replace(room, waiting=self._waiting())))
        if self._stopping or (self._draining and not self._outflow.wanted and self._is_to_leave(now)):
            self._over = True
            given = [duty.lease for duty in self._leases.values() if duty.kid is not None]
            send(Send(BROKER, Leave(given)))
            send(Finished())
        elif now >= self._beat_at:
            self._beat_at = now + limits.beat_interval_s
            held = [*self._leases, *self._owed]
            beat = self.tether.beat(now), bool(self.tether.leases)
            send(Send(BROKER, Beat(self._seen, held, room.room, self._vitals, self._waiting(), *beat)))
            self._vitals = None

    def _next_deadline(self) -> float:
        if not self._joined:
            return min(self._join_at, self._kids_deadline(), self._lacking.deadline, self.tether.deadline)
        others = self._outflow.deadline, self._lacking.deadline, self.tether.deadline
        return min(self._beat_at, self._kids_deadline(), *others)
