"""What a worker that drains still takes: calls that its own running calls wait for, and no others. It knows
clients by the child they speak from, and no message.

Such a call may run anywhere else, and does as soon as there is room; but on a farm without another worker the
call that waits would never end, and so the worker would never leave.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from zfarm.core.books import ClientRecord, Task, WorkerRecord
from zfarm.core.dispatch import grant
from zfarm.core.turns import head

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["finish", "is_own", "room_for"]


def is_own(worker: WorkerRecord, client: ClientRecord) -> bool:
    """This client is in a child of this worker, which drains, and whose call there waits."""
    peer = client.peer
    return (
        bool(worker.children)
        and isinstance(peer, tuple)
        and peer[0] == worker.peer
        and peer[1] in worker.children
    )


def room_for(worker: WorkerRecord, client: ClientRecord) -> int:
    """How many leases this worker may hold if the next one is a call of that client; 0: it takes none."""
    if worker.open:
        return worker.room
    return 0 if worker.aside_until or not is_own(worker, client) else worker.own_room


def finish(broker: Broker, now: float) -> None:
    """Grant to workers that drain what their own calls wait for; the calls take turns with theirs."""
    for worker in broker.leaving.values():
        found = [broker.peers.get((worker.peer, child)) for child in worker.children]
        waiting = deque(one for one in found if isinstance(one, ClientRecord) and not one.held)
        while waiting and len(worker.leases) < room_for(worker, waiting[0]):
            client = waiting.popleft()
            task = _next(broker, worker, client)
            if task is not None:
                grant(broker, task, worker, now)
                waiting.append(client)


def _next(broker: Broker, worker: WorkerRecord, client: ClientRecord) -> Task | None:
    """Take the next call of this client that can run there out of its queue or line."""
    plain = head(client)
    for priority, number, line in client.lines.prune():
        if plain is not None and (-plain.priority, plain.number) < (priority, number):
            break
        if worker.suits(line.demand) and worker.affords(line.demand):
            return line.take()
    if plain is None:
        return None
    client.queue.popleft()
    if client.others:
        client.refill()
    if not client.queue:
        broker.ready.pop(client.session, None)
    return plain
