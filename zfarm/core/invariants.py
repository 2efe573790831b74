"""What must hold in the broker's books after every turn; for tests and the simulator. It reads and never
changes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zfarm.core.books import ClientRecord, WorkerRecord
    from zfarm.core.broker import Broker

__all__ = ["check_books"]


def check_resources(broker: Broker, worker: WorkerRecord) -> None:
    """What a worker has is given to leases that it holds, once and no more than there is."""
    for name, has in worker.resources.items():
        taken = sum(amount for takes in worker.takes.values() for what, amount in takes if what == name)
        assert taken == worker.taken[name], f"{name}: {taken} taken, {worker.taken[name]} in the books"
        assert 0 <= taken <= has, f"{name}: {taken} taken of {has}"
    unheld = worker.takes.keys() - worker.leases.keys() - broker.orphans.leases()
    assert not unheld, f"leases {unheld} have ended, and what they took is not free"


def check_kits(client: ClientRecord) -> None:
    """What tasks have in common is there while one of them needs it, and no longer."""
    uses = Counter(id(task.kit) for task in client.tasks.values())
    assert uses == {id(kit): kit.refs for kit in client.kits.values()}
    named = list(client.names.values())
    assert client.functions == Counter([*(kit.function for kit in client.kits.values()), *named])
    assert all(function.digest == digest for digest, function in client.names.items())
    assert client.named_bytes == sum(len(function.blob) for function in named)
    copies = Counter(kit.setup for kit in client.kits.values())
    assert client.setups == {setup: (setup, count) for setup, count in copies.items()}


def check_books(broker: Broker) -> None:
    """Raise AssertionError when the books contradict themselves."""
    broker.crews.check(broker.workers)
    for worker in broker.workers.values():
        assert worker.expected_us == sum(task.expected_us for task in worker.leases.values())
        check_resources(broker, worker)
        for lease, task in worker.leases.items():
            assert task.lease == lease and task.worker is worker and task.outcome is None
            assert broker.clients.get(task.client.session) is task.client, "a lease outlived its client"
    tasks = 0
    parked = {(until, id(task)) for until, _, task in broker.parked}
    for session, client in broker.clients.items():
        queued = {id(task) for queue in (client.queue, *client.others.values()) for task in queue}
        lined = {id(task) for line in client.lines for task in line}
        assert client.queue or not client.others, "tasks of low priority are out of reach"
        assert all(rank < client.rank for rank in client.others), "a low priority comes first"
        leased = 0
        for number, task in client.tasks.items():
            assert task.number == number and task.client is client and task.attempts <= task.max_attempts
            if task.worker is not None:
                leased += 1
                assert task.outcome is None and task.worker.leases.get(task.lease) is task
                assert broker.workers.get(task.worker.session) is task.worker, "a lease outlived its worker"
            elif task.until and task.outcome is None:
                assert id(task) not in queued | lined, "what is parked is not to be granted"
                assert (task.until, id(task)) in parked, "what is parked must come back"
            elif task.outcome is None:
                assert not task.spent, "what may have begun is never granted again"
                place, ready = (queued, broker.ready) if task.demand is None else (lined, broker.choosy)
                assert id(task) in place, "a task that nobody holds must be in the queue"
                assert client.held or session in ready, "a client with queued tasks must be ready"
        assert leased == client.leased
        assert client.unforgotten == sum(task.outcome is not None for task in client.tasks.values())
        check_kits(client)
        most = broker.limits.named_kept_bytes
        assert client.named_bytes <= most or len(client.names) == 1, "a client can name too much"
        tasks += len(client.tasks)
    assert tasks == broker.tasks
    assert sum(len(client.functions) for client in broker.clients.values()) == broker.functions.referenced()
    broker.accounts.check(broker.clients)
    broker.routes.check()
    broker.foyer.check()
    for peer, record in broker.peers.items():
        assert record.peer == peer
