"""Which task goes to which worker: late binding over one queue per client. Pure; it changes leases only
through the broker.

A task is granted when a slot is free for it. Beyond that, calls that are known to be short may wait beside a
busy slot, a few milliseconds of work at most, so that a slot never idles for a round trip; see
Settings.lookahead_us. Whose task is next is for zfarm.core.turns to say.
"""

from __future__ import annotations

from collections.abc import Collection
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING

from zfarm.core import elsewhere
from zfarm.core.books import ClientRecord, Task, WorkerRecord
from zfarm.core.nearness import host_of, nearer, roomy
from zfarm.core.turns import Turns

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["dispatch", "grant"]

HANDFUL_US = 250
"""Work granted ahead to one worker, from one client, before the next worker and client have their turn."""


def dispatch(broker: Broker, now: float, wanted: Collection[WorkerRecord] = ()) -> None:
    """Grant what can be granted now; nothing is granted ahead to workers that are ``wanted`` for something
    else."""
    open_workers = [worker for worker in broker.workers.values() if worker.open]
    if not open_workers:
        return
    turns = Turns(broker)
    _fill_slots(broker, open_workers, turns, now)
    if broker.ready:
        if wanted:
            open_workers = [worker for worker in open_workers if worker not in wanted]
        _fill_ahead(broker, open_workers, turns, now)


def _fill_slots(broker: Broker, workers: list[WorkerRecord], turns: Turns, now: float) -> None:
    """Give each free slot a task, the emptiest worker first."""
    free = [(len(w.leases) / w.room, n, w) for n, w in enumerate(workers) if len(w.leases) < w.room]
    if not free:
        return
    heapify(free)
    while free:
        load, n, worker = free[0]
        if len(worker.leases) >= worker.room:
            if load >= 1.0:
                return  # the emptiest worker is full
            heapreplace(free, (1.0, n, worker))  # it was granted something out of its turn
            continue
        task = turns.first()
        if task is None:
            return
        client = task.client
        if task.shuns == worker.session:
            _where_it_did_not_die(broker, task, worker, workers, now)
        elif task.needs and (host := host_of(task)) and host != worker.host:
            task, chosen = _rather(task, worker, workers)
            grant(broker, task, chosen, now)
        else:
            client.queue.popleft()
            grant(broker, task, worker, now)
        if client.others:
            client.refill()
        turns.served()
        heapreplace(free, (len(worker.leases) / worker.room, n, worker))


def _where_it_did_not_die(
    broker: Broker, task: Task, worker: WorkerRecord, workers: list[WorkerRecord], now: float
) -> None:
    """Take the first call out of its queue for another worker than this one, where it has killed its child.
    While it waits for one, others pass it; after that this one gets it."""
    queue = task.client.queue
    there = elsewhere.another(task, workers)
    if there is None and elsewhere.hold(broker, task, now):
        at = elsewhere.passing(task)
        if at:
            grant(broker, queue[at], worker, now)
            del queue[at]
        else:
            queue.popleft()
            broker.park(task, now + elsewhere.LOOK_AGAIN_S)
    else:
        queue.popleft()
        grant(broker, task, there or worker, now)


def _rather(task: Task, worker: WorkerRecord, workers: list[WorkerRecord]) -> tuple[Task, WorkerRecord]:
    """Take a call out of the queue whose first one is near to another host than this worker's; and who gets
    it."""
    queue = task.client.queue
    there = roomy(task, workers)
    if there is None:
        at = nearer(task.client, worker, workers)
        task = queue[at]
        del queue[at]
        return task, worker
    queue.popleft()
    return task, there


def _fill_ahead(broker: Broker, workers: list[WorkerRecord], turns: Turns, now: float) -> None:
    """Let short calls wait beside busy slots, a handful at a time for the least loaded worker."""
    lookahead = broker.limits.lookahead_us
    contended = now < broker.accounts.contended_until
    loads = [(_load_us(w, contended), n, w) for n, w in enumerate(workers) if not w.crowded]
    if not loads:
        return
    heapify(loads)
    while True:
        load, n, worker = loads[0]
        if load >= lookahead:
            return
        task = turns.first()
        if task is None:
            return
        until = min(worker.expected_us + HANDFUL_US, lookahead * worker.room)
        if not _grant_handful(broker, task.client, worker, until, now):
            return
        turns.served()
        heapreplace(loads, (_load_us(worker, contended), n, worker))


def _load_us(worker: WorkerRecord, contended: bool) -> float:
    """The work that waits there for each slot: what it will run. While others wait too, not less than for how
    long slots were held for the like of it lately: of very short calls that is far more, and many of them
    would keep everybody else out for as long."""
    meter = worker.meter
    work_us = max(worker.expected_us, meter.sharing * meter.mean_us) if contended else worker.expected_us
    return work_us / worker.room


def _grant_handful(
    broker: Broker, client: ClientRecord, worker: WorkerRecord, until: float, now: float
) -> bool:
    """Grant short calls from the head of one client's queue until the worker expects that much work."""
    queue = client.queue
    granted = worker.granted
    short = broker.limits.short_call_us
    lease = broker.lease
    some = False
    while queue and worker.expected_us < until:
        task = queue[0]
        if task.worker is None and task.outcome is None:
            if not 0 < task.function.expected_us(task.items) <= short:
                break
            if task.needs and host_of(task) not in ("", worker.host):
                break  # a free slot is worth more to it
            if task.shuns == worker.session and elsewhere.hold(broker, task, now):
                break
            lease(task, worker, 0, now)
            granted.append(task)
            some = True
        queue.popleft()
    if not queue and client.others:
        client.refill()
    if some:
        broker.touch(worker)
    return some


def grant(broker: Broker, task: Task, worker: WorkerRecord, now: float) -> None:
    """Give this worker a fresh lease on a task."""
    broker.lease(task, worker, 0, now)
    worker.granted.append(task)
    broker.touch(worker)
