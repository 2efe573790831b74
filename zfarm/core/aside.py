"""Which workers are set aside because their children keep dying; it knows no child and grants nothing.

What tells a bad worker from a bad call: many different calls died there one after the other, none ended well
meanwhile, and none of them has died elsewhere too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfarm.core.books import Task, WorkerRecord

if TYPE_CHECKING:
    from zfarm.core.broker import Broker

__all__ = ["Aside"]


class Aside:
    """Suspects among the workers of one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def died(self, worker: WorkerRecord, task: Task, now: float) -> None:
        """A child of this worker has died under this task; the last of its deaths tells how."""
        if task.items > 1:
            return  # its pieces will tell
        key = task.client.session, task.number
        elsewhere = any(fate.worker != worker.short_name for fate in task.deaths[:-1])
        if elsewhere:  # it kills children wherever it runs
            for other in self._broker.workers.values():
                other.suspects.pop(key, None)
        else:
            self._suspect(worker, key, now)

    def failed_to_begin(self, worker: WorkerRecord, task: Task, now: float) -> None:
        """Children of this worker died in the initializer of this task's client: that counts once."""
        self._suspect(worker, (task.client.session, 0), now)

    def _suspect(self, worker: WorkerRecord, key: tuple[str, int], now: float) -> None:
        limits = self._broker.limits
        worker.suspects[key] = None
        if len(worker.suspects) > limits.worker_deaths_max:  # who is alone may see very many of them
            del worker.suspects[next(iter(worker.suspects))]
        if len(worker.suspects) < limits.worker_deaths_max or worker.aside_until:
            return
        if not self._others(worker):
            return  # better a bad worker than none
        self._broker.tell(
            "warning",
            f"worker {worker.short_name} is set aside for {limits.worker_aside_s:g} s: "
            f"its children died under {len(worker.suspects)} different calls in a row",
        )
        worker.aside_until = now + limits.worker_aside_s
        worker.revokes.extend(lease for lease, task in worker.leases.items() if not task.began)
        self._broker.touch(worker)

    def sweep(self, now: float) -> None:
        """Let those back whose time is over; all of them if nobody else is left."""
        for worker in self._broker.workers.values():
            if worker.aside_until and (now >= worker.aside_until or not self._others(worker)):
                worker.aside_until = 0.0
                worker.suspects.clear()
                self._broker.tell("info", f"worker {worker.short_name} gets calls again")

    def _others(self, worker: WorkerRecord) -> bool:
        """Whether there is anybody else to do the work."""
        return any(other.open for other in self._broker.workers.values() if other is not worker)
