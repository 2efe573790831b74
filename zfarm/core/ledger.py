"""The farm's books, and the ways in which a task changes: leased, given back, lost, settled; no peers.

The broker's machine (zfarm.core.broker) is the ledger of one farm that listens to messages.
"""

from __future__ import annotations

from collections.abc import Container
from heapq import heappop, heappush
from typing import Final

from zfarm.core.accounts import Accounts, Kit
from zfarm.core.books import ANY_LEASE, Amounts, ClientRecord, Functions, Task, WorkerRecord
from zfarm.core.deaths import outcome_of, with_death
from zfarm.core.flood import Flood
from zfarm.messages import (
    BROKEN,
    CANCELLED,
    ERROR,
    LOST,
    MEMORY,
    MISSING,
    MIXED,
    OVERSIZED,
    TIMEOUT,
    VALUE,
    Accepted,
    Action,
    Begun,
    Blob,
    Call,
    Demand,
    Dropped,
    Enrolled,
    Fate,
    Forgotten,
    Need,
    Outcome,
    Payload,
    Peer,
    Publish,
    Record,
    Report,
    Retried,
    Settled,
    Struck,
    Tell,
    TextNote,
)
from zfarm.settings import Settings

__all__ = ["Ledger"]

GOLDEN = 0x9E37_79B9_7F4A_7C15
"""Multiplied by it, numbers that follow each other lie far apart."""


FORMER_MAX: Final = 16
"""Lives of a job that are remembered as taken over: what they still say must not take it back."""


class Ledger:
    """Tasks, leases, clients and workers of one farm."""

    def __init__(self, epoch: int, limits: Settings, journal: bool = False) -> None:
        self.journal = journal
        """Whether what happens is recorded, to be synced before it is said."""
        self.records: list[tuple[Record, Payload]] = []
        self.stalled = ""
        """Why the journal takes no records, which wait; empty: it does. See zfarm.core.stall."""
        self.dropped: set[str] = set()
        """Sessions that have ended, and the journal does not know it yet, since it takes nothing."""
        self.epoch = epoch
        self.limits = limits
        self.clients: dict[str, ClientRecord] = {}
        self.accounts = Accounts()
        self.workers: dict[str, WorkerRecord] = {}
        self.leaving: dict[str, WorkerRecord] = {}  # those that drain, and have calls that wait for others
        self.functions = Functions(limits.named_from_bytes)
        self.ready: dict[str, ClientRecord] = {}  # clients with something in their queue, next one first
        self.choosy: dict[str, ClientRecord] = {}  # clients with something in their lines
        self.crew = 0  # counts the comings and goings of workers
        self.grants_said = epoch << 32  # no number of Grants to whoever left or was before us is higher
        self.served_us = 0.0  # what the account had been served with that had the last turn
        # items, not batches
        kinds = VALUE, ERROR, MIXED, CANCELLED, LOST, BROKEN, TIMEOUT, MEMORY, MISSING, OVERSIZED
        self.counts = dict.fromkeys(kinds, 0)
        self.retried = 0
        self.tasks = 0
        self.notes = 0
        self.flood = Flood()
        self.watched = False
        self.refusals: dict[str, int] = {}
        """What was refused and how often, by the name of the limit or rule; the shell adds its own."""
        self.touched: dict[int, ClientRecord | WorkerRecord] = {}  # this turn has something for them
        self.actions: list[Action] = []
        self.parked: list[tuple[float, int, Task]] = []
        """What has no lease and gets none for a while, the first to end its wait on top; stale entries are
        passed over."""
        self._parkings = 0
        self.exclusive_until = 0.0  # until then others may run exclusive calls than who came back with them
        self._enrolled = 0
        self._next_lease = 1

    def slots(self) -> int:
        """All slots of all workers."""
        return sum(worker.slots for worker in self.workers.values())

    def touch(self, record: ClientRecord | WorkerRecord) -> None:
        """This turn has something for this record's peer."""
        self.touched[id(record)] = record

    def tell(self, level: str, text: str, kind: str = "") -> None:
        """Say to the log, and to whoever watches, what happened; of many of one ``kind`` only how many."""
        if kind and self.flood.holds_back(level, kind):
            return
        self.actions.append(Tell(level, text))
        if self.watched:
            self.notes += 1
            self.actions.append(Publish(TextNote(number=self.notes, level=level, text=text)))

    # ------------------------------------------------------------ what is recorded, and replayed alike

    def apply(self, record: Record, payload: Payload, now: float) -> None:
        """Do again what a record of the journal says; what it says about something unknown is ignored."""
        if isinstance(record, Enrolled):
            known = self.clients.get(record.client)
            if known is None:
                known = self.enroll(
                    record.client, None, record.host, record.pid, record.name, record.job, now
                )
                known.books = record.books
            known.life, known.lives, known.former = record.life, record.lives, record.former
            return
        client = self.clients.get(record.client)
        if client is None:
            return
        if isinstance(record, Accepted):
            function = self.functions.intern(bytes(payload[0]), record.name)
            kit = self.accounts.kit(client, function, bytes(payload[1]))
            self.accept(client, record, kit, payload[2], demand=record.demand, needs=record.needs)
        elif isinstance(record, Forgotten):
            self.forget(client, record.tasks)
        elif isinstance(record, Dropped):
            self.drop(client, now)
        else:
            number = record.outcome.task if isinstance(record, Settled) else record.task
            task = client.tasks.get(number)
            if task is None or task.outcome is not None:
                return
            if isinstance(record, Struck):
                task.deaths = with_death(task.deaths, record.fate)
                task.lease = -record.lease
            elif isinstance(record, Retried):
                task.tries += 1
                task.lease = -record.lease
                self.park(task, now + record.delay_us / 1e6)
            elif isinstance(record, Begun):
                task.spent = record.lease
                task.until = 0.0
                if record.lease:
                    self.park(task, now + self.limits.restart_hold_s)
            else:
                self.settle(task, record.outcome, payload[0])

    def enroll(
        self, session: str, peer: Peer, host: str, pid: int, name: str, job: str, now: float, life: str = ""
    ) -> ClientRecord:
        """Open the books of a client."""
        client = self.clients[session] = ClientRecord(session, peer, host, pid, name, job, now)
        self._enrolled += 1
        client.books = self.epoch << 32 | self._enrolled
        client.account = self.accounts.open(client, now)
        self.hand_over(client, life)
        return client

    def hand_over(self, client: ClientRecord, life: str) -> None:
        """From now on this life speaks for the client, and for its job if it has one."""
        if client.life:
            client.former = (*client.former, client.life)[-FORMER_MAX:]
        client.life = life
        client.hello_seen = 0
        if self.stalled:  # many may come and go meanwhile
            client.unrecorded = True
        elif self.journal:
            self.record(client)

    def record(self, client: ClientRecord) -> None:
        """Record who this client is."""
        client.unrecorded = False
        host, pid, name, job = client.host, client.pid, client.name, client.job
        now = client.books, client.life, client.lives, client.former
        self.records.append((Enrolled(client.session, host, pid, name, job, *now), ()))

    def accept(
        self,
        client: ClientRecord,
        call: Call | Accepted,
        kit: Kit,
        body: Blob,
        queued: bool = True,
        demand: Demand | None = None,
        needs: tuple[Need, ...] = (),
    ) -> Task:
        """Enter a task, and queue it."""
        kit.refs += 1
        number = call.task
        task = Task(client, number, kit.function, kit, body, call.items, call.max_attempts)
        if call.timeout_us:
            task.timeout_us = call.timeout_us
        if call.memory_bytes:
            task.memory_bytes = call.memory_bytes
        client.tasks[number] = task
        task.priority = call.priority
        task.demand = demand
        if needs:
            task.needs = needs
        if not queued:
            pass
        elif demand is not None:
            client.enqueue(task)
        elif call.priority == client.rank:
            client.queue.append(task)
        else:
            client.enqueue(task)
        account = client.account
        account.bytes += len(body)
        account.tasks += 1
        self.accounts.bytes += len(body)
        self.tasks += 1
        if self.journal:
            accepted = Accepted(
                client.session, number, kit.function.name, call.items, call.max_attempts, call.timeout_us,
                call.priority, call.memory_bytes, demand, needs,
            )  # fmt: skip
            self.records.append((accepted, (kit.function.blob, kit.setup, body)))
            client.booked.append(number)
        return task

    def forget(self, client: ClientRecord, numbers: list[int]) -> None:
        """Strike tasks whose outcome has arrived."""
        tasks = client.tasks
        gone: list[int] = []
        size = 0
        for number in numbers:
            task = tasks.get(number)
            if task is not None and task.outcome is not None:
                del tasks[number]
                size += len(task.blob)
                gone.append(number)
                kit = task.kit
                kit.refs -= 1
                if not kit.refs:
                    self._discard(client, kit)
        client.account.bytes -= size
        client.account.tasks -= len(gone)
        self.accounts.bytes -= size
        client.unforgotten -= len(gone)
        self.tasks -= len(gone)
        if self.journal and gone:
            self.records.append((Forgotten(client.session, gone), ()))

    def _discard(self, client: ClientRecord, kit: Kit) -> None:
        if self.accounts.discard(client, kit):
            self.functions.rest(kit.function)

    def unname(self, client: ClientRecord, digests: list[bytes]) -> None:
        """This client would have to send these functions again."""
        for digest in digests:
            function = self.accounts.unname(client, digest)
            if not function.refs:
                self.functions.rest(function)

    def drop(self, client: ClientRecord, now: float) -> None:
        """Close the books of a client: what it has in the queue is dropped, what runs is stopped."""
        size = 0
        for task in client.tasks.values():
            if task.worker is not None:
                task.worker.stops.append(task.lease)
                self.touch(task.worker)
                self.charge(task, now)
                self.unlease(task)
            size += len(task.body) + len(task.blob)
        client.account.bytes -= size
        client.account.tasks -= len(client.tasks)
        self.accounts.bytes -= size
        for kit in list(client.kits.values()):
            self._discard(client, kit)
        self.unname(client, list(client.names))
        self.accounts.close(client, now, self.served_us)
        self.tasks -= len(client.tasks)
        client.tasks.clear()
        client.queue.clear()
        client.others.clear()
        client.lines.clear()
        self.ready.pop(client.session, None)
        self.choosy.pop(client.session, None)
        self.touched.pop(id(client), None)
        del self.clients[client.session]
        if self.journal and not client.unrecorded:
            self.records.append((Dropped(client.session), ()))
            if self.stalled:
                self.dropped.add(client.session)

    # ------------------------------------------------------------ leases and outcomes

    def lease(
        self, task: Task, worker: WorkerRecord, lease: int, now: float, takes: Amounts | None = None
    ) -> None:
        """Enter a lease into the books; 0 makes a fresh one. ``takes``: of the worker's resources, if that is
        not what the task demands."""
        if not lease:
            lease = self.epoch << 32 | self._next_lease
            self._next_lease += 1
            task.paid_us = 0.0
        task.lease = lease
        task.worker = worker
        task.until = 0.0
        if task.max_attempts == 1 and task.spent != lease:
            self._spend(task, lease)
        expected_us = task.expected_us = task.function.expected_us(task.items)
        worker.meter.enter(task, 0 < expected_us <= self.limits.short_call_us, now)
        if task.demand is not None:
            worker.take(lease, task.demand.resources if takes is None else takes)
        worker.leases[lease] = task
        worker.expected_us += expected_us
        client = task.client
        client.leased += 1
        self.accounts.leases(client, now + self.limits.contention_kept_s)
        task.advance_us = max(expected_us, self.limits.charge_least_us)
        client.pay(task.advance_us)

    def unlease(self, task: Task) -> None:
        """Strike a lease from the books."""
        worker = task.worker
        assert worker is not None, "a task without a lease has none to lose"
        del worker.leases[task.lease]
        if worker.takes:
            worker.give(task.lease)
        worker.expected_us -= task.expected_us
        worker.meter.leave(task)
        task.worker = None
        task.lease = -task.lease
        task.began = False
        client = task.client
        client.leased -= 1
        client.pay(-task.advance_us)  # nothing, where it was charged

    def lose_lease(self, task: Task, fate: Fate, unsaid: Container[int]) -> None:
        """The worker of this task is lost; should it come back with the lease, it may go on. A task that was
        not known to run there is not blamed, unless that happens to it again and again."""
        lease = task.lease
        if lease in unsaid:
            self.give_back(task)
            return
        if task.began or task.once or task.losses >= self.limits.unstarted_losses_max:
            self.attempt_lost(task, fate)
        else:
            task.losses += 1
            self.give_back(task)
        task.lease = lease

    def requeue(self, task: Task, behind: int = 0) -> None:
        """Put a task to the front of its client's queue, ``behind`` so many others."""
        client = task.client
        if self._may_run_elsewhere(task):
            self.park(task, self.exclusive_until)
            return
        if task.demand is None and task.priority == client.rank:
            client.queue.insert(behind, task)
        else:
            client.enqueue(task, front=True)
        self.make_ready(client)

    def make_ready(self, client: ClientRecord) -> None:
        """The client has something in its queue: it takes part in the round, unless it is held."""
        if client.held:
            return
        if client.session not in self.ready and client.session not in self.choosy:
            account = client.account
            account.served_us = max(account.served_us, self.served_us)
            client.served_us = max(client.served_us, account.turn_us)
        if client.queue:
            self.ready.setdefault(client.session, client)
        if client.lines:
            self.choosy.setdefault(client.session, client)

    def charge(self, task: Task, now: float, run_us: int = 0) -> None:
        """A lease ends now, however it does: whose it is pays for the slot that it held. ``run_us``: if that
        is known, for how long it ran, or had its child. Only what has certainly not started is free."""
        assert task.worker is not None, "a task without a lease holds no slot"
        if task.shares and (run_us or not task.began):
            held_us = task.worker.meter.part_us(task, now)
        else:
            held_us = 0.0 if run_us else (now - task.granted_at) * 1e6
        us = max(held_us, run_us - task.paid_us, self.limits.charge_least_us)
        task.paid_us += us
        task.client.pay(us - task.advance_us)
        task.advance_us = 0.0

    def give_back(self, task: Task) -> None:
        """A lease ended without having started: nobody is blamed, the task waits again or is cancelled."""
        self.unlease(task)
        if task.spent:
            self._spend(task, 0)
        if task.cancelling:
            self.settle(task, Outcome(task=task.number, kind=CANCELLED, deaths=task.deaths), b"")
        else:
            self.requeue(task)

    def attempt_lost(self, task: Task, fate: Fate) -> None:
        """A lease ended with a death: the task runs again while it has attempts left."""
        self.unlease(task)
        task.deaths = with_death(task.deaths, fate)
        if task.cancelling and (task.grace_us or not task.once):  # else it would say that it never ran
            self.settle(task, Outcome(task=task.number, kind=CANCELLED, deaths=task.deaths), b"")
        elif task.items > 1 or task.attempts >= task.max_attempts:
            outcome = Outcome(task=task.number, kind=LOST, deaths=task.deaths, tries=task.tries)
            self.settle(task, outcome, b"")
        else:
            self.retried += 1
            if self.journal:
                self.records.append((Struck(task.client.session, task.number, fate, -task.lease), ()))
            text = f"{task.function.name} runs again: {fate.text} on {fate.host}"
            self.tell("warning", text, "calls run again")
            self.requeue(task, self.slots())  # the slot that is free at once is where it died

    def attempt_failed(self, task: Task, report: Report, blob: Blob, now: float) -> None:
        """A lease ended in an error for which the call wants to be run again: it is, later, while it has
        attempts left; else the error is its outcome."""
        if task.cancelling or task.attempts + 1 >= task.max_attempts:
            kind = MIXED if task.items else ERROR
            self.settle(task, outcome_of(task, kind, report), blob)
            return
        lease = task.lease
        self.unlease(task)
        task.tries += 1
        self.retried += 1
        delay_us = self._backoff_us(lease, task.tries)
        if self.journal:
            self.records.append((Retried(task.client.session, task.number, lease, delay_us), ()))
        self.park(task, now + delay_us / 1e6)
        if self._may_run_elsewhere(task) and task.until < self.exclusive_until:
            self.park(task, self.exclusive_until)

    def _backoff_us(self, lease: int, tries: int) -> int:
        """How long to wait after so many errors; what failed together is scattered by its leases."""
        limits = self.limits
        longest = min(limits.retry_backoff_max_s, limits.retry_backoff_s * 2.0 ** min(tries - 1, 60))
        jitter = (lease * GOLDEN >> 32 & 0xFFFF) / 0x1_0000
        return int(longest * (1.0 + jitter) / 2 * 1e6)

    # ------------------------------------------------------------ what begins once only, and what has to wait

    def _spend(self, task: Task, lease: int) -> None:
        """Note with which lease a task that may begin once only may have begun; 0: it has not."""
        task.spent = lease
        if self.journal:
            self.records.append((Begun(task.client.session, task.number, lease), ()))

    def doubt(self, task: Task, now: float) -> None:
        """A new task, not queued, may have begun under an earlier broker: wait for whoever has it."""
        if not task.once:
            self.exclusive_until = now + self.exclusive_hold_s
            self.park(task, self.exclusive_until)
            return
        self._spend(task, ANY_LEASE)
        self.park(task, now + self.limits.restart_hold_s)

    @property
    def exclusive_hold_s(self) -> float:
        """After so long whoever ran an exclusive call and is not heard of has stopped it."""
        return max(self.limits.restart_hold_s, self.limits.worker_lost_after_s)

    def _may_run_elsewhere(self, task: Task) -> bool:
        """An earlier broker had granted the lease that has ended, and maybe a later one to somebody else."""
        return self.exclusive_until > 0.0 and task.exclusive and abs(task.lease) >> 32 != self.epoch

    def park(self, task: Task, until: float) -> None:
        """Grant this task to nobody until then. A replay takes it out of the queue later, once for all."""
        task.until = until
        if task.stray:
            task.client.sort_out()
            task.stray = False
        self._parkings += 1
        heappush(self.parked, (until, self._parkings, task))

    def unpark(self, now: float) -> None:
        """The wait of some tasks is over: they go into the queue, unless they may have begun already."""
        parked = self.parked
        while parked and (parked[0][0] <= now or self._is_stale(parked[0][0], parked[0][2])):
            until, _, task = heappop(parked)
            if self._is_stale(until, task):
                continue
            client = task.client
            task.until = 0.0
            if task.spent:
                text = "the broker was started anew or had given its client up, and no worker has it"
                lost = f"{task.function.name} may have begun, and is lost: {text}"
                self.tell("warning", lost, "calls may have begun, and are lost")
                self.settle(task, Outcome(task.number, LOST, deaths=(Fate("", "", text=text),)), b"")
            else:
                client.enqueue(task)
                self.make_ready(client)

    def _is_stale(self, until: float, task: Task) -> bool:
        """Whether this task waits for that no more: it was cancelled or taken over, or its client is gone."""
        client = task.client
        alive = self.clients.get(client.session) is client and client.tasks.get(task.number) is task
        return not alive or task.until != until or task.worker is not None or task.outcome is not None

    def settle(self, task: Task, outcome: Outcome, blob: Blob) -> None:
        """Give a task its one outcome, and show it to its client."""
        assert task.outcome is None, "a task has one outcome"
        if task.worker is not None:
            self.unlease(task)
        task.outcome = outcome
        task.deaths = outcome.deaths
        client = task.client
        growth = len(blob) - len(task.body)
        client.account.bytes += growth
        self.accounts.bytes += growth
        task.blob = blob
        task.body = b""
        client.ended_count += 1
        client.unforgotten += 1
        client.ended.append((outcome, blob))
        self.touch(client)
        if self.journal:
            self.records.append((Settled(client.session, outcome), (blob,)))
        if outcome.kind == MIXED:  # how many of its items failed only the client will know: at least one
            self.counts[MIXED] += 1
            self.counts[VALUE] += task.items - 1
        else:
            self.counts[outcome.kind] += task.items or 1

    def show(self, task: Task) -> None:
        """Tell the client (again) how a task has ended."""
        assert task.outcome is not None, "only what has ended can be shown"
        client = task.client
        client.ended.append((task.outcome, task.blob))
        self.touch(client)
