"""A farm at rest: what its machines may still hold then, and what they may still say.

It looks into the machines in a general way: any container that is not on the short list below must be empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING, Any

from tests.simulation.revocation import remains

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.process import Process
    from tests.simulation.processes import ClientProcess

KEPT = {
    "Broker.clients",
    "Broker.clients[].account.sessions",
    "Broker.clients[].pinned",
    "Broker.peers[].pinned",
    "Broker.accounts._accounts[].sessions[].pinned",
    "Broker.accounts._accounts",
    "Broker.accounts._accounts[].sessions",
    "Broker.accounts._jobs",
    "Broker._left",
    "Broker.crews._sessions",
    "Broker.crews._told",
    "Broker.workers",
    "Broker.peers",
    "Broker.functions._known",
    "Broker.counts",
    "Broker.refusals",
    "Broker.peers[].suspects",
    "Broker.workers[].suspects",
    "Broker.peers[].resources",
    "Broker.workers[].resources",
    "Broker.peers[].taken",
    "Broker.workers[].taken",
    "Broker.clients[].names",
    "Broker.clients[].functions",
    "Broker.peers[].names",
    "Broker.peers[].functions",
    "Broker.accounts._accounts[].sessions[].names",
    "Broker.accounts._accounts[].sessions[].functions",
    "Broker.workers[].told._numbers",
    "Broker.peers[].told._numbers",
    "Client._told._numbers",
    "Worker._bodies._bodies",
    "Worker._kids[].given._sizes",
    "Worker._outflow.ducts._vain",
    "Client.inflow.dialling._broke",
    "Client.inflow.dialling._shunned",
    "Worker.resources",
    "Worker.labels",
    "Worker.tether._sent",
    "Worker._kids",
    "Worker._init_deaths",
}
"""Containers that may hold something at rest: who is there, which children live, and measured functions."""

RESTLESS = {
    "Submit",
    "Grants",
    "Reports",
    "Ended",
    "Unknown",
    "Thanks",
    "Return",
    "Revoke",
    "Stranger",
    "Ask",
    "Listen",
    "Fetch",
    "Items",
    "Streams",
    "Sent",
    "Want",
    "Chunks",
    "Pin",
    "Pinned",
}
"""What a farm at rest has no reason to say."""
CONTAINERS = (dict, list, deque, set)
_SLOTS: dict[type, tuple[str, ...]] = {}
"""Of a class and its bases: they stay the same, and are asked for often."""
_OURS: dict[type, bool] = {}
"""Whether a class is of the core and no mere message or setting: asked for as often."""


def busy(farm: Farm) -> bool:
    """Something is still to come: a farm of which that is true is not at rest, and need not be looked at."""
    return bool(farm.books.pending or farm.books.unread) or farm.plans_until >= farm.now


class Rest:
    """Whether a farm is at rest, for who asks again and again until it is."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._restless: Process | None = None
        """Who held something when last asked: so it mostly does still, and nobody else need be seen."""

    def reached(self) -> bool:
        """Nothing is to come, and there is no unrest."""
        if busy(self._farm):
            return False
        processes = [*_processes(self._farm)]
        if self._restless in processes and next(_holds(self._restless), None):
            return False
        self._restless = next((one for one in processes if next(_holds(one), None)), None)
        return self._restless is None and not unrest(self._farm)


def unrest(farm: Farm) -> list[str]:
    """Why this farm is not at rest, one line each."""
    found = [f"task {token} is open: {farm.tasks[token]}" for token in sorted(farm.books.pending)]
    found += [f"the stream of task {token} is not over" for token in sorted(farm.books.unread)]
    if farm.plans_until >= farm.now:
        found.append(f"people have plans until {farm.plans_until}")
    if found:
        return found
    if not farm.broker.alive:
        return ["there is no broker"]
    broker = farm.broker.machine
    clients = [client for client in _clients(farm) if client.alive]
    workers = farm.all_workers()
    found += [f"{client.name} speaks for a job that is another's" for client in farm.former if client.alive]
    if sorted(broker.clients) != sorted(client.session for client in clients):
        found.append(f"the broker knows the clients {sorted(broker.clients)}")
    if sorted(broker.workers) != sorted(worker.session for worker in workers):
        found.append(f"the broker knows the workers {sorted(broker.workers)}")
    for process in (*workers, *clients):
        if process.link is not None and not process.link.healthy:
            found.append(f"the link of {process.name} is broken or stalled")
    for connection in farm.network.routes.values():
        if connection.link.connection is not connection:
            found.append(f"the broker's end still believes in {connection.peer}")
    if len(broker.peers) != len(broker.clients) + len(broker.workers):
        found.append(f"the broker knows the peers {list(broker.peers)}")
    if found:
        return found
    for process in (farm.broker, *workers, *clients):
        process.machine.check()
        found += _holds(process)
    found += remains(farm)
    found += farm.books.kept_in_vain()
    found += farm.ducts.unrest()
    for worker in workers:
        if worker.shelf.pins:
            found.append(f"{worker.name} keeps the files {worker.shelf.pins}")
        most = worker.slots + farm.mix.settings.children_idle_max + 1
        if len(worker.children.all) > most or worker.children.busy:
            found.append(
                f"{worker.name} has {len(worker.children.all)} children, {worker.children.busy} busy"
            )
    return found


def _clients(farm: Farm) -> Iterator[ClientProcess]:
    yield from farm.clients.values()
    for worker in farm.all_workers():
        for child in worker.children.all.values():
            if child.client is not None and child.client.machine.deadline < inf:
                yield child.client  # else it has nobody to speak for, and keeps silent


def _processes(farm: Farm) -> Iterator[Process]:
    return (one for one in (farm.broker, *farm.all_workers(), *_clients(farm)) if one.alive)


def _holds(process: Process) -> Iterator[str]:
    """What its machine may not hold at rest, one line each."""
    machine = process.machine
    for path, container in _containers(machine, type(machine).__name__, set()):
        if container and path not in KEPT and "handlers" not in path and "_from_" not in path:
            yield f"{process.name} holds {path} = {str(container)[:200]}"


def _containers(thing: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Every container that hangs on a machine, with the attributes that lead to it."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    slots = _slots(type(thing))
    for name in (*vars(thing), *slots) if hasattr(thing, "__dict__") else slots:
        value = getattr(thing, name, None)
        if isinstance(value, CONTAINERS):
            yield f"{path}.{name}", value
            for part in value.values() if isinstance(value, dict) else value:
                if _ours(part):
                    yield from _containers(part, f"{path}.{name}[]", seen)
        elif _ours(value):
            yield from _containers(value, f"{path}.{name}", seen)


def _ours(thing: Any) -> bool:
    kind = type(thing)
    if kind not in _OURS:
        _OURS[kind] = kind.__module__.startswith("zfarm.core")
    return _OURS[kind]


def _slots(kind: type) -> tuple[str, ...]:
    if kind not in _SLOTS:
        _SLOTS[kind] = tuple(name for base in kind.__mro__ for name in getattr(base, "__slots__", ()))
    return _SLOTS[kind]
