"""Keys that are taken away: what becomes of their owners' sessions. It knows principals, and no key.

A principal is role, name and fingerprint of a key: who gets a new key of an old name is somebody else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from msgspec import structs

from zfarm.core.greeting import bare, book_key, principal_of
from zfarm.core.machine import NOW
from zfarm.messages import Dropped, Enrolled, Payload, Record

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["expel", "renamed"]


def expel(broker: Broker, known: Collection[str], now: float) -> None:
    """From now on only the ``known`` principals have sessions.

    Of clients whose key is not known any more what waits is cancelled, what runs is stopped by force, and
    jobs end; the leases of such workers move.
    """
    broker.known = known
    broker.foyer.expel(known)
    for client in list(broker.clients.values()):
        if not broker.knows(client.session):
            who = f"client {client.host}/{client.pid}"
            broker.tell("warning", f"the key of {who} was revoked: its {len(client.tasks)} tasks are dropped")
            broker.drop_client(client, now)
    for worker in list(broker.workers.values()):
        if not broker.knows(worker.session):
            why = f"the key of worker {worker.short_name} was revoked"
            broker.tell("warning", f"{why}; its {len(worker.leases)} leases move")
            exclusive = [task for task in worker.leases.values() if task.exclusive]
            broker.drop_worker(worker, why, now)
            for task in exclusive:  # they may run there until it has noticed
                if task.outcome is None and task.worker is None:
                    task.stray = True
                    broker.park(task, now + broker.exclusive_hold_s)
    broker.orphans.stop_unknown()
    broker.deadline = NOW


def renamed(
    pairs: Iterable[tuple[Record, Payload]],
    known: Collection[str],
    written: list[tuple[Record, Payload]],
) -> Iterator[tuple[Record, Payload]]:
    """These records of a journal, with the owners of today.

    Journals of earlier versions name owners without their fingerprints. Such a session becomes that of the
    key which has this role and name now; ``written`` gets what has to be appended for that, in one turn.
    Where there is no such key it keeps its owner, who is known to nobody.
    """
    today = {principal.rpartition(":")[0]: principal for principal in known}
    for record, payload in pairs:
        owner = principal_of(record.client)
        if owner.count(":") != 1 or owner not in today:
            yield record, payload
            continue
        if isinstance(record, Enrolled):
            written.append((Dropped(record.client), ()))
        pair = structs.replace(record, client=book_key(today[owner], bare(record.client))), payload
        written.append(pair)
        yield pair
