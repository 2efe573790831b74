"""Where a call that has killed its child is granted next: rather not where that was. A preference with an
end: while another worker could have it, it waits a moment for a slot there, and lets others pass. It grants
nothing.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from zfarm.core.books import Task, WorkerRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zfarm.core.broker import Broker

__all__ = ["LOOK_AGAIN_S", "another", "hold", "passing"]

LOOKED_AT: Final = 16
"""Calls of a queue that are looked at for one that may pass."""
LOOK_AGAIN_S: Final = 0.25
"""How long such a call leaves the queue where no other call may pass it."""


def another(task: Task, workers: Iterable[WorkerRecord]) -> WorkerRecord | None:
    """The emptiest of these where it has not died last, with a free slot and all that it demands."""
    demand = task.demand
    fit = [
        worker
        for worker in workers
        if _would_do(task, worker) and len(worker.leases) < worker.room
        and (demand is None or worker.affords(demand))
    ]  # fmt: skip
    return min(fit, key=lambda worker: len(worker.leases) / worker.room, default=None)


def passing(task: Task) -> int:
    """The place in its queue of a call that may go where this one, the first there, has died; 0: none."""
    for at, other in enumerate(islice(task.client.queue, 1, LOOKED_AT), 1):
        if other.worker is None and other.outcome is None and other.shuns != task.shuns and not other.needs:
            return at
    return 0


def hold(broker: Broker, task: Task, now: float) -> bool:
    """Whether it still waits for another worker: there is one, and it has not waited for long."""
    if not task.shuns_until:
        task.shuns_until = now + broker.limits.elsewhere_wait_s
    if now >= task.shuns_until:
        return False
    return any(_would_do(task, worker) for worker in broker.workers.values())


def _would_do(task: Task, worker: WorkerRecord) -> bool:
    """It is another worker, and could have this call once it has a slot for it."""
    suits = task.demand is None or worker.suits(task.demand)
    return worker.open and worker.session != task.shuns and suits
