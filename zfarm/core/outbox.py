"""What one turn has for one peer of the broker, cut into messages. It empties the lists of a record, and
decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import structs

from zfarm.core.accounts import Kit
from zfarm.core.books import ClientRecord, Task, WorkerRecord
from zfarm.core.deaths import words_of_outcome
from zfarm.core.leaving import is_own
from zfarm.core.machine import Indexed, batches
from zfarm.messages import (
    Began,
    Booked,
    Demand,
    Ended,
    Grants,
    Lease,
    Need,
    Noted,
    Revoke,
    Send,
    Thanks,
    Unknown,
)
from zfarm.settings import Settings

__all__ = ["client_messages", "worker_messages"]


def client_messages(
    client: ClientRecord, limits: Settings, waits: Callable[[int], bool] | None = None
) -> Iterator[Send]:
    """What this turn has for a client; dropped when it has no link, since it asks again when it has one.

    ``waits``: what rests on records that are not written stays where it is, and this tells whether those of a
    task are.
    """
    ended, began, unknown, lacks = client.ended, client.began, client.unknown, client.lacks
    client.ended, client.began, client.unknown, client.lacks = [], [], [], []
    booked, client.booked = client.booked, []
    refused, client.refused = client.refused, []
    peer = client.peer
    if peer is None:
        return
    if waits is not None:
        client.unknown, client.lacks, unknown = unknown, lacks, []
        client.ended = [pair for pair in ended if waits(pair[0].task)]
        ended = [pair for pair in ended if not waits(pair[0].task)]
        client.booked = [number for number in booked if waits(number)]
        booked = [number for number in booked if not waits(number)]
    if refused:
        ended = refused + ended
    words = words_of_outcome if [1 for outcome, _ in ended if outcome.deaths] else None
    for batch in batches(ended, limits.batch_calls_max, limits.batch_bytes_max, words):
        yield Send(peer, Ended(outcomes=[outcome for outcome, _ in batch]), [blob for _, blob in batch])
    for kind, numbers in ((Booked, booked), (Began, began)):
        for part in _parts(numbers, limits):
            yield Send(peer, kind(tasks=part))
    if unknown:
        tasks = client.tasks
        still = [number for number in unknown if number not in tasks]  # some came in this very turn
        for part in _parts(still, limits):
            yield Send(peer, Unknown(part, client.submit_seen, lacks))


def worker_messages(
    worker: WorkerRecord, limits: Settings, waits: Callable[[str, int], bool] | None = None
) -> Iterator[Send]:
    """What this turn has for a worker; dropped when it has no link, since its next Join brings it up
    again.

    ``waits``: of a client's task, whether records of it are not written; what rests on them stays where it
    is. None: all are.
    """
    granted, revokes, stops, thanks = worker.granted, worker.revokes, worker.stops, worker.thanks
    worker.granted, worker.revokes, worker.stops, worker.thanks = [], [], [], []
    worker.thank_now = False
    peer = worker.peer
    if peer is None:
        return
    if waits is not None:
        worker.thanks, thanks = thanks, []
        worker.granted = [
            task
            for task in granted
            if task.worker is worker and task.written_first and waits(task.client.session, task.number)
        ]
        late = {task.lease for task in worker.granted}
        granted = [task for task in granted if task.lease not in late]
        worker.revokes = [lease for lease in revokes if lease in late]
        revokes = [lease for lease in revokes if lease not in late]
    for part in _parts(thanks, limits):
        yield Send(peer, Thanks(leases=part))
    for part in _parts(stops, limits):
        yield Send(peer, Revoke(leases=part, force=True))
    for batch in _batches([task for task in granted if task.worker is worker], limits, worker):
        yield _grants(worker, batch)
    graces: dict[int, list[int]] = {}
    for lease in revokes:
        task = worker.leases.get(lease)
        graces.setdefault(task.grace_us if task is not None else 0, []).append(lease)
    for grace_us, leases in graces.items():  # after the grants: what is revoked must have been granted
        for part in _parts(leases, limits):
            yield Send(peer, Revoke(leases=part, force=grace_us > 0, grace_us=grace_us))
    if worker.answer:  # after the stops: who has this has those, too
        worker.answer = False
        yield Send(peer, Noted(worker.beat))


def _parts(numbers: list[int], limits: Settings) -> Iterator[list[int]]:
    for start in range(0, len(numbers), limits.batch_calls_max):
        yield numbers[start : start + limits.batch_calls_max]


def _batches(tasks: list[Task], limits: Settings, worker: WorkerRecord) -> Iterator[list[Task]]:
    """Cut what is granted into messages of limited calls and bytes, with the functions and setups that each
    of them takes along."""
    calls_max, bytes_max = limits.batch_calls_max, limits.batch_bytes_max
    batch: list[Task] = []
    size = 0
    last_kit = None
    taken: set[int] = set()  # the identities of the blobs in this batch
    for task in tasks:
        length = len(task.body)
        kit = task.kit
        if kit is not last_kit:
            length += sum(len(blob) for blob in _carried(kit, worker) if id(blob) not in taken)
        if batch and (len(batch) >= calls_max or size + length > bytes_max):
            yield batch
            batch, size, last_kit = [], 0, None
            taken.clear()
            length = len(task.body) + sum(map(len, _carried(kit, worker)))
        if kit is not last_kit:
            last_kit = kit
            taken.update((id(kit.function.blob), id(kit.setup)))
        batch.append(task)
        size += length
    if batch:
        yield batch


def _carried(kit: Kit, worker: WorkerRecord) -> tuple[bytes, ...]:
    """What a message takes along for this kit."""
    function = kit.function
    told = function.digest and function.digest in worker.told
    return (kit.setup,) if told else (function.blob, kit.setup)


def _grants(worker: WorkerRecord, tasks: list[Task]) -> Send:
    functions: Indexed[bytes] = Indexed()
    digests: list[bytes] = []
    setups: Indexed[bytes] = Indexed()
    owners: Indexed[str] = Indexed()
    leases: list[Lease] = []
    demands: Indexed[Demand] = Indexed()
    needs: Indexed[tuple[Need, ...]] = Indexed()
    last_kit = last_client = None
    function = setup = owner = 0
    for task in tasks:  # most are like the one before: looked up only when they are not
        if task.kit is not last_kit:
            last_kit = task.kit
            function = functions[last_kit.function.blob]
            if function == len(digests):
                digests.append(last_kit.function.digest)
            setup = setups[last_kit.setup]
        if task.client is not last_client:
            last_client = task.client
            owner = owners[last_client.session]
        leases.append(Lease(task.lease, owner, task.number, function, setup, task.items, task.expected_us))
        if task.timeout_us or task.memory_bytes:
            leases[-1] = structs.replace(
                leases[-1], timeout_us=task.timeout_us, memory_bytes=task.memory_bytes
            )
        if task.demand is not None:
            leases[-1] = structs.replace(leases[-1], demand=demands[task.demand] + 1)
        if task.needs:
            leases[-1] = structs.replace(leases[-1], needs=needs[task.needs] + 1)
    worker.grants_number += 1
    if worker.repeated:
        again = [task.lease for task in tasks if task.lease in worker.repeated]
        worker.repeated.update(dict.fromkeys(again, worker.grants_number))
    own = [task.lease for task in tasks if is_own(worker, task.client)] if worker.children else []
    carried, digests = worker.told.carry(functions, digests, worker.grants_number)
    grants = Grants(
        number=worker.grants_number,
        leases=leases,
        owners=list(owners),
        functions=len(functions),
        setups=len(setups),
        demands=list(demands),
        needs=list(needs),
        beat=worker.beat,
        digests=digests,
        own=own,
    )
    return Send(worker.peer, grants, [*carried, *setups, *(task.body for task in tasks)])
