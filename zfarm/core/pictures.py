"""What the broker shows of itself: pictures for who asks and notes for who watches. It reads the books and
changes none."""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from zfarm.core.books import ClientRecord
from zfarm.core.greeting import LOCAL, bare, sees
from zfarm.core.placing import suited
from zfarm.core.why import unmet
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
    ClientPicture,
    FarmNote,
    FarmPicture,
    Note,
    Picture,
    TaskPicture,
    WorkerPicture,
    WorkersNote,
)

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["notes", "picture"]

QUEUE_SAMPLE = 1000
"""Queued tasks of a client that are looked at to say what waits; the rest is assumed to be alike."""
QUEUE_NAMES = 8
"""Function names listed in a picture of the queue."""

FAILED: Final = (ERROR, MIXED, BROKEN, TIMEOUT, MEMORY, MISSING, OVERSIZED)


def picture(broker: Broker, now: float, tasks_max: int, principal: str = LOCAL) -> Picture:
    """All that there is to see for ``principal``: a client sees no other client and nothing of its tasks."""
    tasks_max = max(0, min(tasks_max, broker.limits.picture_tasks_max))
    queue, first = _queue(broker, principal)
    return Picture(
        farm=_farm(broker, now),
        workers=_workers(broker, now),
        clients=_clients(broker, principal),
        running=_running(broker, now, tasks_max, principal),
        queue=queue,
        versions=broker.versions,
        refusals=dict(broker.refusals),
        unmet=_unmet(broker, principal),
        first=first,
    )


def notes(broker: Broker, now: float) -> list[Note]:
    """What has become of the farm since the last notes; each has the next number."""
    broker.notes += 2
    farm = _farm(broker, now)
    running = _running(broker, now, broker.limits.picture_tasks_max)
    queue, first = _queue(broker)
    return [
        WorkersNote(number=broker.notes - 1, workers=_workers(broker, now)),
        FarmNote(farm, running, queue, _clients(broker), _unmet(broker), first),
    ]


def _queued(client: ClientRecord) -> int:
    return len(client.tasks) - client.leased - client.unforgotten


def _farm(broker: Broker, now: float) -> FarmPicture:
    counts = broker.counts
    return FarmPicture(
        number=broker.notes,
        uptime_s=now - broker.started_at,
        epoch=broker.epoch,
        queued=sum(_queued(client) for client in broker.clients.values()),
        leased=sum(len(worker.leases) for worker in broker.workers.values()),
        values=counts[VALUE],
        errors=sum(counts[kind] for kind in FAILED),
        cancelled=counts[CANCELLED],
        lost=counts[LOST],
        retried=broker.retried,
        workers=len(broker.workers),
        slots=broker.slots(),
        clients=len(broker.clients),
        refusing=broker.stalled or broker.refusing,
    )


def _workers(broker: Broker, now: float) -> list[WorkerPicture]:
    return [
        WorkerPicture(
            worker=worker.name,
            host=worker.host,
            pid=worker.pid,
            slots=worker.slots,
            room=worker.room,
            leases=len(worker.leases),
            done=worker.done,
            failed=worker.failed,
            deaths=worker.deaths,
            draining=worker.draining,
            last_seen_s=now - worker.heard_at,
            uptime_s=now - worker.joined_at,
            vitals=worker.vitals,
            aside_s=max(0.0, worker.aside_until - now),
            duct=worker.duct.partition(" ")[0],
        )
        for worker in broker.workers.values()
    ]


def _clients(broker: Broker, principal: str = LOCAL) -> list[ClientPicture]:
    return [
        ClientPicture(
            client=bare(session)[:8],
            host=client.host,
            pid=client.pid,
            name=client.name,
            queued=_queued(client),
            leased=client.leased,
            ended=client.ended_count,
            away=client.away,
        )
        for session, client in broker.clients.items()
        if sees(principal, session)
    ]


def _running(broker: Broker, now: float, tasks_max: int, principal: str = LOCAL) -> list[TaskPicture]:
    """The oldest leases of each worker, as many as it can run at once."""
    running: list[TaskPicture] = []
    for worker in broker.workers.values():
        for task in islice(worker.leases.values(), worker.room):
            if not sees(principal, task.client.session):
                continue
            running.append(
                TaskPicture(
                    owner=bare(task.client.session)[:8],
                    task=task.number,
                    name=task.function.name,
                    worker=worker.short_name,
                    age_s=now - task.granted_at,
                    items=task.items,
                    attempts=task.attempts + 1,
                    began=task.began,
                )
            )
            if len(running) >= tasks_max:
                return running
    return running


def _unmet(broker: Broker, principal: str = LOCAL) -> dict[str, int]:
    """What no worker has, and how many tasks wait for it; the largest first, a few."""
    total: Counter[str] = Counter()
    for client in broker.choosy.values():
        if not broker.workers or not sees(principal, client.session):
            continue
        for line in client.lines:
            if not suited(broker, line):
                total[unmet(broker, line.demand)] += len(line)
    return dict(total.most_common(QUEUE_NAMES))


def _queue(broker: Broker, principal: str = LOCAL) -> tuple[dict[str, int], dict[str, str]]:
    """Names of the functions that wait, by how many of their tasks do; estimated from the head of each
    queue. And one task of each, to ask why."""
    total: Counter[str] = Counter()
    first: dict[str, str] = {}
    for client in broker.clients.values():
        queued = _queued(client)
        if not queued or not sees(principal, client.session):
            continue
        names: Counter[str] = Counter()
        for task in islice(chain(client.queue, *client.others.values(), *client.lines), QUEUE_SAMPLE):
            if task.worker is None and task.outcome is None:
                name = task.function.name
                names[name] += 1
                if name not in first:
                    first[name] = f"{bare(client.session)[:8]}/{task.number}"
        looked_at = names.total() or 1
        for name, count in names.items():
            total[name] += round(count * queued / looked_at)
    queue = dict(total.most_common(QUEUE_NAMES))
    return queue, {name: first[name] for name in queue}
