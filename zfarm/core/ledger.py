"""The farm's books and the only ways in which a task changes: leased, given back, lost, settled. It knows
no peer.

The broker's machine (zfarm.core.broker) is the ledger of one farm that listens to messages.
"""

from __future__ import annotations

from zfarm.core.books import ENDED, ClientRecord, Functions, Task, WorkerRecord
from zfarm.messages import (
    BROKEN,
    CANCELLED,
    ERROR,
    LOST,
    MIXED,
    VALUE,
    Action,
    Blob,
    Fate,
    Outcome,
    Publish,
    Tell,
    TextNote,
)
from zfarm.settings import Settings

__all__ = ["Ledger"]


class Ledger:
    """Tasks, leases, clients and workers of one farm."""

    def __init__(self, epoch: int, limits: Settings) -> None:
        self.epoch = epoch
        self.limits = limits
        self.clients: dict[str, ClientRecord] = {}
        self.workers: dict[str, WorkerRecord] = {}
        self.functions = Functions()
        self.ready: dict[str, ClientRecord] = {}  # clients with something in their queue, next one first
        self.counts = {VALUE: 0, ERROR: 0, MIXED: 0, CANCELLED: 0, LOST: 0, BROKEN: 0}  # items, not batches
        self.retried = 0
        self.tasks = 0
        self.notes = 0
        self.watched = False
        self.touched: dict[int, ClientRecord | WorkerRecord] = {}  # this turn has something for them
        self.actions: list[Action] = []
        self._next_lease = 1

    def slots(self) -> int:
        """All slots of all workers."""
        return sum(worker.slots for worker in self.workers.values())

    def touch(self, record: ClientRecord | WorkerRecord) -> None:
        """This turn has something for this record's peer."""
        self.touched[id(record)] = record

    def tell(self, level: str, text: str) -> None:
        """Say to the log, and to whoever watches, what happened."""
        self.actions.append(Tell(level, text))
        if self.watched:
            self.notes += 1
            self.actions.append(Publish(TextNote(number=self.notes, level=level, text=text)))

    def lease(self, task: Task, worker: WorkerRecord, lease: int, now: float) -> None:
        """Enter a lease into the books; 0 makes a fresh one."""
        if not lease:
            lease = self.epoch << 32 | self._next_lease
            self._next_lease += 1
        task.lease = lease
        task.worker = worker
        task.granted_at = now
        task.expected_us = task.function.expected_us(task.items)
        worker.leases[lease] = task
        worker.expected_us += task.expected_us
        task.client.leased += 1

    def unlease(self, task: Task) -> None:
        """Strike a lease from the books."""
        worker = task.worker
        assert worker is not None, "a task without a lease has none to lose"
        del worker.leases[task.lease]
        worker.expected_us -= task.expected_us
        task.worker = None
        task.lease = ENDED
        task.began = False
        task.client.leased -= 1

    def lose_lease(self, task: Task, fate: Fate) -> None:
        """The worker of this task is lost; should it come back with the lease, it may go on."""
        lease = task.lease
        self.attempt_lost(task, fate)
        task.lease = lease

    def requeue(self, task: Task) -> None:
        """Put a task to the front of its client's queue."""
        client = task.client
        client.queue.appendleft(task)
        self.ready.setdefault(client.session, client)

    def give_back(self, task: Task) -> None:
        """A lease ended without having started: nobody is blamed, the task waits again or is cancelled."""
        self.unlease(task)
        if task.cancelling:
            self.settle(task, Outcome(task=task.number, kind=CANCELLED, deaths=task.deaths), b"")
        else:
            self.requeue(task)

    def attempt_lost(self, task: Task, fate: Fate) -> None:
        """A lease ended with a death: the task runs again while it has attempts left."""
        self.unlease(task)
        task.deaths = (*task.deaths, fate)
        if task.cancelling:
            self.settle(task, Outcome(task=task.number, kind=CANCELLED, deaths=task.deaths), b"")
        elif task.items > 1 or len(task.deaths) >= task.max_attempts:
            self.settle(task, Outcome(task=task.number, kind=LOST, deaths=task.deaths), b"")
        else:
            self.retried += 1
            self.tell("warning", f"{task.function.name} runs again: {fate.text} on {fate.host}")
            self.requeue(task)

    def settle(self, task: Task, outcome: Outcome, blob: Blob) -> None:
        """Give a task its one outcome, and show it to its client."""
        assert task.outcome is None, "a task has one outcome"
        if task.worker is not None:
            self.unlease(task)
        task.outcome = outcome
        task.blob = blob
        task.body = b""
        function = task.function
        function.refs -= 1
        if not function.refs:
            self.functions.rest(function)
        client = task.client
        client.ended_count += 1
        client.unforgotten += 1
        client.ended.append((outcome, blob))
        self.touch(client)
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
