"""Which workers are set aside because their children keep dying; it knows no child and grants nothing.

What tells a bad worker from a bad call: several died there one after the other, none ended well meanwhile,
and none of them has died elsewhere too. All calls of one function of one client count as one, unless that
function has ended well on another worker, and has not died there since: then each of them counts. And where
calls of others end well, those of one key set nobody aside.
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

    def ended_well(self, worker: WorkerRecord, task: Task, now: float) -> None:
        """A call has ended here as it does on any good worker."""
        if worker.suspects:
            worker.suspects.clear()
        function = task.function
        if function.well != worker.session:
            function.ended_well(worker.session)
        account = task.client.account.name
        if worker.well[0] != account:
            worker.well_before = worker.well
        worker.well = account, now

    def died(self, worker: WorkerRecord, task: Task, now: float) -> None:
        """A child of this worker has died under this task; the last of its deaths tells how."""
        function = task.function
        function.died(worker.session)
        if task.items > 1:
            return  # its pieces will tell
        session = task.client.session
        each, all_alike = (session, task.number, b""), (session, 0, function.blob)
        if any(fate.worker != worker.short_name for fate in task.deaths[:-1]):
            for other in self._broker.workers.values():  # it kills children wherever it runs
                other.suspects.pop(each, None)
                other.suspects.pop(all_alike, None)
        else:
            proven = bool(function.well)  # elsewhere: here it is so no more
            for known, (_, blob) in list(worker.suspects.items()):
                if known[0] == session and blob == function.blob and not (proven and known[1]):
                    del worker.suspects[known]  # else its calls would be counted in two ways
            self._suspect(worker, each if proven else all_alike, task, function.blob, now)

    def failed_to_begin(self, worker: WorkerRecord, task: Task, now: float) -> None:
        """Children of this worker died in the initializer of this task's client: that counts once."""
        self._suspect(worker, (task.client.session, 0, b""), task, b"", now)

    def _suspect(
        self, worker: WorkerRecord, key: tuple[str, int, bytes], task: Task, function: bytes, now: float
    ) -> None:
        limits = self._broker.limits
        worker.suspects[key] = task.client.account.name, function
        if len(worker.suspects) > limits.worker_deaths_max:  # who is alone may see very many of them
            del worker.suspects[next(iter(worker.suspects))]
        if len(worker.suspects) < limits.worker_deaths_max or worker.aside_until:
            return
        if not self._others(worker):
            return  # better a bad worker than none
        if self._well_for_others(worker, now):
            return
        self._broker.tell(
            "warning",
            f"worker {worker.short_name} is set aside for {limits.worker_aside_s:g} s: "
            f"its children died under {len(worker.suspects)} different calls in a row",
        )
        worker.aside_until = now + limits.worker_aside_s
        worker.revokes.extend(lease for lease, task in worker.leases.items() if not task.began)
        self._broker.touch(worker)

    def _well_for_others(self, worker: WorkerRecord, now: float) -> bool:
        """Only one account has suspects here, and calls of another one have ended well here lately."""
        blamers = {account for account, _ in worker.suspects.values()}
        return len(blamers) == 1 and any(
            account and account not in blamers and now - ended_at < self._broker.limits.worker_aside_s
            for account, ended_at in (worker.well, worker.well_before)
        )

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
