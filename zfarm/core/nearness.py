"""Calls that need what is on one host: they rather run there. A preference, and never a reason to wait:
whoever finds no free slot there runs where there is one, but lets some calls pass which are near to that.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from zfarm.core.books import ClientRecord, Task, WorkerRecord

__all__ = ["host_of", "nearer", "roomy"]

LOOKED_AT: Final = 16
"""Calls of a queue that are looked at for one that is near to a free slot."""
PASSES_MAX: Final = 32
"""Calls that may pass the same one in a row."""


def host_of(task: Task) -> str:
    """Where what it needs is; empty: anywhere."""
    return next((need.near for need in task.needs if need.near), "")


def roomy(task: Task, workers: Iterable[WorkerRecord]) -> WorkerRecord | None:
    """The emptiest of these on the host where what it needs is, which has a free slot and where it has not
    died."""
    host = host_of(task)
    there = [w for w in workers if w.host == host and len(w.leases) < w.room and w.session != task.shuns]
    return min(there, key=lambda worker: len(worker.leases) / worker.room, default=None)


def nearer(client: ClientRecord, worker: WorkerRecord, workers: Iterable[WorkerRecord]) -> int:
    """The place in the queue of the call that this worker gets instead of the first one, which is near to
    another host: one that is near to this worker; 0: the first one all the same."""
    if client.passed < PASSES_MAX:
        first = host_of(client.queue[0])
        for at, task in enumerate(islice(client.queue, LOOKED_AT)):
            waits = task.worker is None and task.outcome is None and task.shuns != worker.session
            if waits and host_of(task) == worker.host and any(other.host == first for other in workers):
                client.passed += 1
                return at
    client.passed = 0
    return 0
