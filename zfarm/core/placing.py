"""Which calls that do not run anywhere go to which worker: those that demand resources or labels. Pure, like
dispatch, and before it: the calls without demands keep their own, quicker way.

Clients take turns here too, as zfarm.core.turns says. Of one client the call of highest priority goes first
and among equals the oldest; one that fits nowhere now is passed over, by those with other demands and by
those with none. Nothing is granted ahead of a free slot, and where a call waits for nothing but a slot
nothing else is granted ahead of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfarm.core import elsewhere
from zfarm.core.books import ClientRecord, Task, WorkerRecord
from zfarm.core.dispatch import dispatch, grant
from zfarm.core.lines import Line
from zfarm.core.nearness import host_of, roomy
from zfarm.core.turns import Round, head

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["place", "suited"]

Heads = list[tuple[int, int, Line]]
"""Priority, negative, and number of who is first in each line."""


def suited(broker: Broker, line: Line) -> list[WorkerRecord]:
    """The workers that could run what waits in this line."""
    if line.crew != broker.crew:
        line.crew = broker.crew
        line.suited = [worker for worker in broker.workers.values() if worker.suits(line.demand)]
    return line.suited


def place(broker: Broker, now: float) -> None:
    """Grant what can be granted now, calls with demands and without."""
    waiting: dict[str, Heads] = {}
    for session, client in list(broker.choosy.items()):
        heads = client.lines.prune()
        if heads:
            waiting[session] = heads
        else:
            del broker.choosy[session]
    able = {session: [h for h in heads if _room_for(broker, h[2])] for session, heads in waiting.items()}
    able = {session: heads for session, heads in able.items() if heads}
    if able:
        _take_turns(broker, able, now)
    wanted: set[WorkerRecord] = set()
    for session in waiting:
        wanted.update(_wanted(broker, broker.clients[session]))
    dispatch(broker, now, wanted)


def _room_for(broker: Broker, line: Line) -> WorkerRecord | None:
    """The emptiest worker with a free slot and all that such a call takes."""
    best, least = None, 2.0
    first = line.head()
    host = host_of(first) if first is not None and first.needs else ""
    shunned = first.shuns if first is not None else ""
    for worker in suited(broker, line):
        if worker.open and len(worker.leases) < worker.room and worker.affords(line.demand):
            load = len(worker.leases) / worker.room
            if worker.session == shunned:
                load += 1.0  # after all others
            elif host and host == worker.host:
                load -= 1.0  # before all others
            if load < least:
                best, least = worker, load
    return best


def _wanted(broker: Broker, client: ClientRecord) -> list[WorkerRecord]:
    """The workers of which this client's next calls need nothing but a slot."""
    plain = head(client)
    found: list[WorkerRecord] = []
    for priority, number, line in client.lines.prune():
        if plain is None or (priority, number) < _place(plain):
            for worker in suited(broker, line):
                if worker.open and len(worker.leases) >= worker.room and worker.affords(line.demand):
                    found.append(worker)
    return found


def _place(task: Task) -> tuple[int, int]:
    return -task.priority, task.number


def _take_turns(broker: Broker, able: dict[str, Heads], now: float) -> None:
    """Let clients take turns as long as one of them has a call with demands that fits."""
    clients = {**broker.ready, **{session: broker.clients[session] for session in able}}
    turns = Round(broker, clients.values())
    while able and turns:
        if _serve(broker, turns.client, able, now):
            turns.served()
        else:
            turns.leave()


def _serve(broker: Broker, client: ClientRecord, able: dict[str, Heads], now: float) -> bool:
    """Grant the next call of this client; False: none of them fits."""
    plain = head(client)
    heads = able.get(client.session, [])
    while heads:
        priority, number, line = heads[0]
        if plain is not None and _place(plain) < (priority, number):
            break
        worker = _room_for(broker, line)
        if worker is not None:
            _grant_or_hold(broker, line.take(), worker, now)
            _advance(heads, line)
            _forget_empty(able, client)
            return True
        del heads[0]
    _forget_empty(able, client)
    if plain is None:
        return False
    free = [w for w in broker.workers.values() if w.open and len(w.leases) < w.room]
    if not free:
        return False
    client.queue.popleft()
    if client.others:
        client.refill()
    there = roomy(plain, free) if plain.needs else None
    if plain.shuns and there is None:
        there = elsewhere.another(plain, free)
    worker = there or min(free, key=lambda worker: len(worker.leases) / worker.room)
    _grant_or_hold(broker, plain, worker, now)
    if not client.queue:
        del broker.ready[client.session]
    return True


def _grant_or_hold(broker: Broker, task: Task, worker: WorkerRecord, now: float) -> None:
    """Grant this call, unless it has died there and may yet go to another worker."""
    if task.shuns == worker.session and elsewhere.hold(broker, task, now):
        broker.park(task, now + elsewhere.LOOK_AGAIN_S)
    else:
        grant(broker, task, worker, now)


def _advance(heads: Heads, line: Line) -> None:
    """The first of this line, which was the first of all, is gone."""
    following = line.head()
    if following is None:
        del heads[0]
    else:
        heads[0] = (*_place(following), line)
        heads.sort(key=lambda first: first[:2])


def _forget_empty(able: dict[str, Heads], client: ClientRecord) -> None:
    if not able.get(client.session, True):
        del able[client.session]
