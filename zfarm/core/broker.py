"""The broker's state machine: who asked for what, and which worker holds it.

Rules of this file:
  1. What decides about tasks, leases, clients or workers is here and in reception, ledger and dispatch.
  2. It never learns the time, a socket, a file or a pickle: those are arguments or actions.
  3. It may be wrong about the world, never about itself: check() holds after every turn.
  4. A message about a lease that is not in the books changes nothing. A living lease is repeated, never
     replaced.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final

from msgspec import structs

from zfarm.core import dispatch, leaving, pictures, placing, why
from zfarm.core.aside import Aside
from zfarm.core.books import ClientRecord, Task, WorkerRecord
from zfarm.core.crews import Crews
from zfarm.core.deaths import outcome_of
from zfarm.core.foyer import Foyer
from zfarm.core.greeting import LOCAL, book_key, principal_of
from zfarm.core.invariants import check_books
from zfarm.core.machine import NOW
from zfarm.core.orphans import Orphans
from zfarm.core.outbox import client_messages, worker_messages
from zfarm.core.reception import Handler, Reception
from zfarm.core.stall import Stall
from zfarm.messages import (
    AGAIN,
    BROKEN,
    CANCELLED,
    CUT,
    LOST,
    MEMORY,
    MISSING,
    TIMEOUT,
    VALUE,
    Action,
    Append,
    Attach,
    Beat,
    Began,
    Blob,
    Bye,
    Fate,
    Hello,
    Items,
    Join,
    Leave,
    Look,
    Message,
    Payload,
    Peer,
    Pinned,
    Printed,
    Progress,
    Publish,
    Record,
    Refused,
    Report,
    Reports,
    Return,
    Room,
    Sent,
    Stranger,
    Streams,
    Versions,
    Want,
    Why,
)
from zfarm.settings import Settings, settings

__all__ = ["Broker"]

LATE_SWEEPS_MAX: Final = 4
"""Of so many late sweeps in a row one judges all the same: this broker is not away now and then but slow."""


class Broker(Reception):
    """Keeps the books of one farm: takes tasks from clients and grants leases on them to workers."""

    def __init__(
        self, epoch: int, versions: Versions, now: float, limits: Settings = settings, journal: bool = False
    ) -> None:
        super().__init__(epoch, versions, limits, journal)
        self.deadline = NOW
        self.started_at = now
        self.orphans = Orphans(self, now)
        self.aside = Aside(self)
        self.crews = Crews(limits.worker_sessions_max)
        self.stall = Stall(self)
        self.foyer = Foyer(self)
        """Where what clients say may wait until it is received."""
        self._note_at = inf
        self._sweep_at = now + limits.beat_interval_s
        self._late_sweeps = 0  # in a row
        self.hold_until = 0.0
        self._from_worker: dict[type, Handler] = {
            Beat: self._on_beat,
            Reports: self._on_reports,
            Return: self._on_return,
            Began: self._on_began,
            Room: self._on_room,
            Leave: self._on_leave,
            Streams: self.routes.on_streams,
            Items: self.routes.on_items,
            Sent: self.routes.on_items,
            Progress: self.routes.on_progress,
            Printed: self.routes.on_printed,
            Want: self.routes.on_want,
            Pinned: self.pinboard.on_pinned,
        }

    # ------------------------------------------------------------ the machine

    def receive(
        self, peer: Peer, message: Message, payload: Payload, now: float, principal: str = LOCAL
    ) -> None:
        """Note a message of a client or worker; who is not known is told so, and changes nothing.

        ``principal`` is whose key the peer has shown, and never what it says itself.
        """
        self.deadline = NOW
        kind = type(message)
        if kind is Hello:
            self._on_hello(peer, message, now, principal)  # type: ignore[arg-type]
        elif kind is Join:
            self._on_join(peer, message, now, principal)  # type: ignore[arg-type]
        elif kind is Attach:
            self._on_attach(peer, message, now, principal)  # type: ignore[arg-type]
        elif kind is Look or kind is Why:  # also those may ask who are nobody's peer
            if peer in self.peers:
                self.peers[peer].heard_at = now
            if kind is Look:
                answer: Message = pictures.picture(self, now, message.tasks_max, principal)  # type: ignore[attr-defined]
            else:
                answer = why.answer(self, peer, message, now, principal)  # type: ignore[arg-type]
            self._send(peer, answer)
        else:
            record = self.peers.get(peer) or (self.lost_links.get(peer) if kind is Bye else None)
            if record is None:
                self.coming(peer, now)
                if kind is not Bye:
                    self._strangers[peer] = False
                return
            record.heard_at = now
            handlers = self._from_client if isinstance(record, ClientRecord) else self._from_worker
            handler = handlers.get(kind)
            if handler is None:
                self._refuse(peer, "ProtocolError", f"{kind.__name__} is not for a {type(record).__name__}")
            else:
                handler(record, message, payload, now)

    def coming(self, peer: Peer, now: float) -> None:
        """This peer lives: a large message of it goes on to come, or its link is not as dead as was said."""
        record = self.peers.get(peer) or self.lost_links.get(peer)
        if record is not None:
            record.heard_at = now

    def tunnelled(
        self, worker: Peer, channel: int, owner: str, message: Message, payload: Payload, now: float
    ) -> None:
        """Note what a client in child ``channel`` of a worker says, in the name of ``owner``.

        The key of a worker allows to submit nothing: but for clients whose calls it was given, and it can
        name the session of no other. They are that client's tasks, and it sees what that client may see.
        """
        peer = (worker, channel)
        self.deadline = NOW
        known = self.peers.get(peer)
        principal = principal_of(known.session if known is not None else owner)
        returns = isinstance(message, Hello) and book_key(principal, message.session) in self.clients
        if known is not None and not isinstance(message, Hello | Attach):
            self.receive(peer, message, payload, now, principal)
        elif not isinstance(self.peers.get(worker), WorkerRecord):
            self._strangers[peer] = False
        elif isinstance(message, Attach) or (isinstance(message, Hello) and message.job):
            self._refuse(peer, "AccessDenied", "a task cannot have a job: its program can")
        elif known is not None or returns or owner in self.clients:
            self.receive(peer, message, payload, now, principal)
        elif now - self.started_at < self.limits.client_lost_after_s + self.limits.client_grace_s:
            self._strangers[peer] = False  # the client itself may come back to a new broker later than we
        elif isinstance(message, Hello):
            self._strangers[peer] = True  # of its child the next call may be another client's
        elif not isinstance(message, Bye):
            self._strangers.setdefault(peer, False)  # who asks may be known, and says so by a Hello

    def restore(self, pairs: Iterable[tuple[Record, Payload]], now: float) -> None:
        """Take over what the journal of an earlier life holds, before anything else happens.

        What had not ended is held for a while, so that workers can come back with what they still run.
        """
        journal, self.journal = self.journal, False
        for record, payload in pairs:
            self.apply(record, payload, now)
        self.journal = journal
        for client in self.clients.values():
            for task in client.tasks.values():
                if task.exclusive and task.outcome is None and not task.spent:
                    self.park(task, max(task.until, now + self.exclusive_hold_s))
            if self.parked:
                client.sort_out()
            client.held = bool(client.queue or client.lines)
            client.ended = []  # it will ask
        self.touched.clear()
        self.hold_until = now + self.limits.restart_hold_s
        self.exclusive_until = now + self.exclusive_hold_s

    def watch(self, watched: bool, now: float) -> None:
        """Somebody subscribes to notes, or nobody does."""
        self.watched = watched
        self._note_at = now if watched else inf
        self.deadline = NOW

    def advance(self, now: float) -> list[Action]:
        """Expire, dispatch, and send what this turn has for each peer."""
        beat = now >= self._sweep_at
        if self.foyer.deadline <= now:
            self.foyer.advance(now)
        if beat:
            self._sweep(now)
            self._sweep_at = now + self.limits.beat_interval_s / 2
        if self.parked:
            self.unpark(now)
        if self.stalled:
            self.stall.count()
        if self.stall.full:
            pass  # outcomes would only pile up
        elif self.choosy and self.workers:
            placing.place(self, now)
        elif self.ready and self.workers:
            dispatch.dispatch(self, now)
        if self.leaving and not self.stall.full:
            leaving.finish(self, now)
        for peer, later in self._strangers.items():
            self._send(peer, Stranger(later))
        self._strangers.clear()
        if self.stalled:
            self.actions.extend(self.stall.say())
        elif self.touched:
            touched, self.touched = self.touched, {}
            for record in touched.values():
                if isinstance(record, ClientRecord):
                    self.actions.extend(client_messages(record, self.limits))
                elif beat or record.has_messages:
                    self.actions.extend(worker_messages(record, self.limits))
        if now >= self._note_at:
            self._note_at = now + self.limits.note_interval_s
            for note in pictures.notes(self, now):
                self.actions.append(Publish(note))
        actions, self.actions = self.actions, []
        if self.records and not self.stalled:  # before anything that rests on them is said
            actions.insert(0, Append(self.records))
            self.records = []
        self.deadline = min(self._sweep_at, self._note_at, self.foyer.deadline)
        if self.parked:
            self.deadline = min(self.deadline, self.parked[0][0])
        return actions

    # ------------------------------------------------------------ workers

    def _on_join(self, peer: Peer, message: Join, now: float, principal: str) -> None:
        if not self._fits(peer, message.versions):
            return
        key = book_key(principal, message.session)
        worker = self.workers.get(key)
        if worker is not None and worker.peer == peer:
            worker.heard_at = now
            return  # said again while the Welcome is on its way: the link is in order, so it will arrive
        if worker is not None and message.beat < worker.beat:
            return  # it comes late, from a link that was given up: what is held now was said on another
        if worker is None and (full := self.crews.full(key)):
            self.refusals["workers"] = self.crews.refused
            self._send(peer, Refused("FarmBusy", full))
            if self.crews.news(key):
                self.tell("warning", f"a worker waits: {full}")
            return
        if worker is None:
            worker = WorkerRecord(
                key, peer, message.slots, message.host, message.pid, now, message.resources, message.labels,
                message.session[:8],
            )  # fmt: skip
            worker.grants_number = self.grants_said  # what it has said long ago may arrive only now
            self.workers[key] = worker
            self.crews.enter(key)
            self.crew += 1
            self.tell("info", f"worker {worker.short_name} joined with {worker.slots} slots")
        else:
            worker.has_room(message.slots)
            self.routes.doubt(worker)
        worker.beat, worker.duct = message.beat, message.duct
        self._bind(worker, peer, now)
        self.touch(worker)
        worker.grants_number += 1
        unsaid = worker.unsaid()
        worker.repeated = {}
        worker.told.clear()
        worker.granted, worker.revokes, worker.stops, worker.thanks = [], [], [], []
        welcome = self._welcome(worker.grants_number)
        silence_us = int(self.limits.worker_lost_after_s * 1e6)
        self._send(peer, structs.replace(welcome, items=self.items_addresses[0], silence_us=silence_us))
        held = {h.lease for h in message.held}
        for lease, task in list(worker.leases.items()):
            if lease in unsaid:
                worker.granted.append(task)
            elif lease not in held:  # lost on the way to it: the same lease once more, never another
                self._repeat(worker, task, now)
            if task.cancelling and task.worker is worker:
                worker.revokes.append(lease)
        for h in message.held:
            if h.lease not in worker.leases:
                self.orphans.adopt(worker, h, now)

    def _on_beat(self, worker: WorkerRecord, message: Beat, payload: Payload, now: float) -> None:
        worker.has_room(0 if worker.draining else message.room)
        worker.waiting = frozenset(message.waiting)
        if message.vitals is not None:
            worker.vitals = message.vitals
        worker.beat = max(worker.beat, message.beat)
        if message.answer:
            worker.answer = True
            self.touch(worker)
        held = set(message.held)
        if message.seen == worker.grants_number:
            repeated, leases = worker.repeated, worker.leases
            worker.repeated = {n: at for n, at in repeated.items() if at > message.seen and n in leases}
            here = {task.lease for task in worker.granted}  # while the journal cannot be written
            for lease, task in list(worker.leases.items()):
                if lease not in held and lease not in here:
                    self._repeat(worker, task, now)
        told = worker.thanks if self.stalled else ()  # as soon as the journal can be written
        unwanted = sorted(held.difference(worker.leases, self.orphans.leases(), told))
        if unwanted:
            worker.stops.extend(unwanted)
            worker.thanks.extend(unwanted)
            self.touch(worker)

    def _repeat(self, worker: WorkerRecord, task: Task, now: float) -> None:
        if task.began and task.once:  # it was there: somebody has stopped it
            fate = Fate(host=worker.host, worker=worker.short_name, text="it was stopped there")
            self.charge(task, now)
            self.attempt_lost(task, fate)
            return
        worker.repeated[task.lease] = worker.grants_number + 1  # until the number of its Grants is known
        worker.granted.append(task)
        self.touch(worker)

    def _on_reports(self, worker: WorkerRecord, message: Reports, payload: Payload, now: float) -> None:
        self.touch(worker)
        worker.crowded = False
        leases = worker.leases
        thanks = worker.thanks
        large = self.limits.frame_share_max
        for report, blob in zip(message.reports, payload, strict=True):
            task = leases.get(report.lease)
            if task is not None:
                thanks.append(report.lease)
                self.report(worker, task, report, blob, now)
                if len(blob) > large:
                    worker.thank_now = True
            elif not self.orphans.keep(worker, report, blob):
                thanks.append(report.lease)

    def report(self, worker: WorkerRecord, task: Task, report: Report, blob: Blob, now: float) -> None:
        """Book how a lease of this worker has ended."""
        self.charge(task, now, max(report.run_us, report.held_us))
        if report.kind in (LOST, CUT):
            worker.deaths += report.kind == LOST
            fate = report.fate or Fate(host=worker.host, worker=worker.short_name, text="died")
            if report.kind == LOST:
                task.shuns, task.shuns_until = worker.session, 0.0
            self.attempt_lost(task, fate)
            if report.kind == LOST:  # else nothing is wrong with the worker
                self.aside.died(worker, task, now)
            return
        worker.done += task.items or 1
        if report.kind != VALUE:
            worker.failed += 1
        if report.kind == BROKEN and report.fate is not None:
            self.aside.failed_to_begin(worker, task, now)
        elif report.kind not in (BROKEN, CANCELLED, TIMEOUT, MEMORY, MISSING):
            self.aside.ended_well(worker, task, now)
        if report.kind not in (CANCELLED, MISSING):
            task.function.measured(report.run_us, task.items)
        if report.kind == AGAIN:
            self.attempt_failed(task, report, blob, now)
            return
        self.settle(task, outcome_of(task, report.kind, report), blob)

    def _on_return(self, worker: WorkerRecord, message: Return, payload: Payload, now: float) -> None:
        worker.told.lacked(message.lacks, message.seen)
        for lease in reversed(message.leases):  # they go to the front of the queue, the first one last
            task = worker.leases.get(lease)
            if (
                task is not None and worker.repeated.get(lease, 0) <= message.seen
            ):  # else it comes there again
                worker.crowded |= not (task.cancelling or message.lacks)
                if task.cancelling:  # it may have had a child, in whose initializer nothing can be taken back
                    self.charge(task, now)
                self.give_back(task)

    def _on_began(self, worker: WorkerRecord, message: Began, payload: Payload, now: float) -> None:
        for lease in message.tasks:
            task = worker.leases.get(lease)
            if task is not None:
                task.began = True
                task.cancelling = task.grace_us > 0
                task.client.began.append(task.number)
                self.touch(task.client)

    def _on_room(self, worker: WorkerRecord, message: Room, payload: Payload, now: float) -> None:
        worker.has_room(message.room)
        worker.waiting = frozenset(message.waiting)
        worker.draining = message.draining
        worker.own_room, worker.children = message.own, frozenset(message.children)
        if worker.draining and worker.children:
            self.leaving[worker.session] = worker
        else:
            self.leaving.pop(worker.session, None)

    def _on_leave(self, worker: WorkerRecord, message: Leave, payload: Payload, now: float) -> None:
        self.tell("info", f"worker {worker.short_name} left")
        begun = set(message.leases)
        for lease, task in list(reversed(worker.leases.items())):
            if lease not in begun:  # it was still waiting, or granted while the worker was leaving
                self.give_back(task)
        self.drop_worker(worker, f"worker {worker.short_name} was stopped", now)

    def drop_worker(self, worker: WorkerRecord, why: str, now: float) -> None:
        """Forget a worker; its leases are void, and their tasks lose an attempt."""
        del self.workers[worker.session]
        self.grants_said = max(self.grants_said, worker.grants_number)
        self.leaving.pop(worker.session, None)
        self.crews.leave(worker.session)
        self.crew += 1
        if worker.peer is not None:
            del self.peers[worker.peer]
        self.touched.pop(id(worker), None)
        self.orphans.lose(worker)
        self.routes.lose(worker)
        unsaid, fate = worker.unsaid(), Fate(host=worker.host, worker=worker.short_name, text=why)
        for task in list(reversed(worker.leases.values())):
            self.charge(task, min(now, worker.heard_at))  # nobody pays for its silence
            self.lose_lease(task, fate, unsaid)

    # ------------------------------------------------------------ time

    def _sweep(self, now: float) -> None:
        limits = self.limits
        if self.hold_until and now >= self.hold_until:
            self.hold_until = 0.0
            for client in self.clients.values():
                client.held = False
                self.make_ready(client)
        if now >= self.exclusive_until:
            self.exclusive_until = 0.0
        for worker in self.workers.values():
            if worker.thanks:
                self.touch(worker)
        late = now - self._sweep_at > limits.beat_interval_s / 2
        self._late_sweeps = self._late_sweeps + 1 if late else 0
        if self._late_sweeps % LATE_SWEEPS_MAX == 0:
            self._lose_silent(now)  # else we were away ourselves: first hear what they have said meanwhile
        self.orphans.sweep(now)
        self.aside.sweep(now)
        self.foyer.sweep(now)
        self.accounts.sweep(now, self.served_us)
        for level, text in self.flood.rest(now):
            self.tell(level, text)
        if self.choosy:
            why.warn_unmet(self, now)

    def _lose_silent(self, now: float) -> None:
        limits = self.limits
        for worker in list(self.workers.values()):
            silent = now - worker.heard_at
            if silent > limits.worker_lost_after_s:
                why = f"worker {worker.short_name} was lost: silent for {silent:.1f} s"
                self.tell("warning", f"{why}; its {len(worker.leases)} leases move")
                self.drop_worker(worker, why, now)
        for client in list(self.clients.values()):
            silent = now - client.heard_at
            if silent > limits.client_lost_after_s + (
                limits.job_kept_s if client.job and client.tasks else limits.client_grace_s
            ):
                who = f"client {client.host}/{client.pid}"
                text = f"{who} did not come back: its {len(client.tasks)} tasks are cancelled"
                self.tell("warning", text, "clients did not come back: their tasks are cancelled")
                self.drop_client(client, now)
            elif silent > limits.client_lost_after_s and not client.away:
                client.away = True
                self.tell("warning", f"client {client.host}/{client.pid} is away", "clients are away")

    def check(self) -> None:
        """The books do not contradict themselves."""
        check_books(self)
