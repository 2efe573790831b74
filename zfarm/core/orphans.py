"""Leases that workers hold from before the broker was started, or from before they were given up for lost.

A worker that comes back names what it holds. If the task still waits here the lease is taken over, so that
nothing
runs twice; if its client has not come back yet, the lease (and its report, if it ends meanwhile) is kept
for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from zfarm.core.books import ANY_LEASE, ClientRecord, Task, WorkerRecord
from zfarm.messages import Blob, Held, Report

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["Orphans"]

CANCELLED_MAX: Final = 100_000
"""Cancelled tasks that are remembered: some ten megabytes. Leases of others are kept for longer in vain."""


class Orphan:
    """A lease whose client has not come back yet."""

    __slots__ = ("blob", "lease", "report", "started", "until", "worker")

    def __init__(self, worker: WorkerRecord, lease: int, started: bool, until: float) -> None:
        self.worker = worker
        self.lease = lease
        self.started = started
        self.until = until
        self.report: Report | None = None
        self.blob: Blob = b""


class Orphans:
    """All such leases of one broker, by client session and task number."""

    def __init__(self, broker: Broker, now: float) -> None:
        self._broker = broker
        self._kept: dict[tuple[str, int], Orphan] = {}
        self._cancelled: set[tuple[str, int]] = set()  # of these none is kept for long
        self._cancelled_until = now + broker.limits.client_grace_s

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self) -> Iterable[tuple[str, int]]:
        """Whose leases are kept here: session and task number of each."""
        return self._kept.keys()

    def leases(self) -> set[int]:
        """The leases kept here."""
        return {orphan.lease for orphan in self._kept.values()}

    def adopt(self, worker: WorkerRecord, held: Held, now: float) -> None:
        """``worker`` holds a lease that is not in its books: take it over, keep it for its client, or stop
        it."""
        broker = self._broker
        client = broker.clients.get(held.owner)
        task = client.tasks.get(held.task) if client is not None else None
        ours = held.lease >> 32 == broker.epoch  # granted by this very broker: it would know task and client
        if task is None and not ours and broker.knows(held.owner):
            key = held.owner, held.task
            limits = broker.limits
            unwanted = key in self._cancelled or self._seems_over(held, client)
            until = now + (limits.restart_hold_s if unwanted else limits.client_grace_s)
            before = self._kept.get(key)
            if before is not None:
                before.worker.give(before.lease)
            self._kept[key] = Orphan(worker, held.lease, held.started, until)
            worker.take(held.lease, held.takes)
        elif task is None or not self._may_live(task, held.lease, ours):
            self._stop(worker, held.lease)
        else:
            task.stray = True
            broker.lease(task, worker, held.lease, now, held.takes)
            task.began = held.started
            if task.cancelling:
                worker.revokes.append(held.lease)
                broker.touch(worker)

    def _seems_over(self, held: Held, client: ClientRecord | None) -> bool:
        """Whether books of its client that are as old as the lease have no such task: its outcome was booked,
        and has arrived. That is not certain, so its client has time to ask for it: a task with retries is
        granted in the turn that a full disk does not take, and a client that was given up may have come back
        to the same broker. A journal knows nothing of a lease from brokers that did not have it."""
        broker, epoch = self._broker, held.lease >> 32
        return broker.journal and client is not None and client.books >> 32 <= epoch < broker.epoch

    def _may_live(self, task: Task, lease: int, ours: bool) -> bool:
        """Whether the task waits, and this lease is the one with which it may go on."""
        if task.outcome is not None or task.worker is not None:
            return False
        if task.spent:  # one that was stopped in this very life of the broker may be stopped only now
            return task.spent in (lease, ANY_LEASE) and not ours
        if lease == task.lease:
            return True
        return not ours and self._from_before(task, lease)  # else reported before, and the thanks were lost

    def _from_before(self, task: Task, lease: int) -> bool:
        """Whether an earlier broker's lease may be alive: none was granted here, nor ended after it there."""
        ended = -task.lease
        return ended >> 32 != self._broker.epoch and 0 <= ended < lease

    def claimed(self, client: ClientRecord, numbers: list[int], now: float) -> None:
        """The client has come back with these tasks."""
        broker = self._broker
        for number in numbers:
            orphan = self._kept.pop((client.session, number), None)
            if orphan is None:
                continue
            task = client.tasks.get(number)
            if task is None or task.outcome is not None or task.worker is not None:
                self._stop(orphan.worker, orphan.lease)
                continue
            task.stray = True
            broker.lease(task, orphan.worker, orphan.lease, now, ())  # what it takes was noted when it came
            task.began = orphan.started
            if orphan.report is not None:
                orphan.worker.thanks.append(orphan.lease)
                broker.touch(orphan.worker)
                broker.report(orphan.worker, task, orphan.report, orphan.blob, now)

    def cancelled(self, client: ClientRecord, number: int, now: float) -> None:
        """The client has cancelled a task that no worker has here. One that comes with it from an earlier
        broker, or has come, keeps it only until the client had time to ask for it even so."""
        key = client.session, number
        if key in self._kept:
            orphan = self._kept[key]
            orphan.until = min(orphan.until, now + self._broker.limits.restart_hold_s)
        elif now < self._cancelled_until and len(self._cancelled) < CANCELLED_MAX:
            self._cancelled.add(key)

    def keep(self, worker: WorkerRecord, report: Report, blob: Blob) -> bool:
        """Keep a report until its client comes back; False if it is about no lease kept here."""
        for orphan in self._kept.values():
            if orphan.lease == report.lease and orphan.worker is worker:
                orphan.report, orphan.blob = report, blob
                worker.give(orphan.lease)
                return True
        return False

    def lose(self, worker: WorkerRecord) -> None:
        """The worker is gone, and its leases with it."""
        self._kept = {key: orphan for key, orphan in self._kept.items() if orphan.worker is not worker}

    def stop_of(self, session: str) -> None:
        """The client is gone for good."""
        self._stop_where([key for key in self._kept if key[0] == session])

    def stop_unknown(self) -> None:
        """Keys were taken away: stop what their owners had."""
        self._stop_where([key for key in self._kept if not self._broker.knows(key[0])])

    def sweep(self, now: float) -> None:
        """Stop what no client came back for in time."""
        if now >= self._cancelled_until:
            self._cancelled.clear()
        self._stop_where([key for key, orphan in self._kept.items() if now >= orphan.until])

    def _stop_where(self, keys: list[tuple[str, int]]) -> None:
        for key in keys:
            orphan = self._kept.pop(key)
            self._stop(orphan.worker, orphan.lease)

    def _stop(self, worker: WorkerRecord, lease: int) -> None:
        if lease not in worker.leases:
            worker.give(lease)
        worker.stops.append(lease)
        worker.thanks.append(lease)
        self._broker.touch(worker)
