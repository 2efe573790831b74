"""What must hold of calls that have killed their children in a simulated farm: they go to another worker if
one has room for them."""

from __future__ import annotations

from tests.simulation.aside import Aside
from zfarm import messages as m


class Elsewhere(Aside):
    """Where calls have died, as the broker's end of the network hears of it."""

    def __init__(self) -> None:
        super().__init__()
        self._died_at: dict[int, str] = {}
        """Under which worker's life a child has died last, by the token of its call."""
        self._highest = 0
        """The last lease of this broker that was looked at."""

    def aside_again(self) -> None:
        """A new broker does not know where calls have died."""
        super().aside_again()
        self._died_at.clear()
        self._highest = 0

    def tells_of_deaths(self, session: str, report: m.Report) -> None:
        """A worker says how a lease has ended."""
        super().tells_of_deaths(session, report)
        task, holder = self.granted.get(report.lease, (None, ""))
        known = self.farm.broker.machine.workers.get(session)
        held = known is not None and report.lease in known.leases
        if task is not None and holder == session and held and report.kind == m.LOST:
            self._died_at[task.token] = session

    def judge_aside(self) -> None:
        """Right after a turn of the broker."""
        super().judge_aside()
        if not self._died_at:
            return
        workers = self.farm.broker.machine.workers.values()
        new = [(n, worker) for worker in workers for n in worker.leases if n > self._highest]
        self._highest = max([self._highest, *(n for n, _ in new)])
        for lease, worker in new:
            task = worker.leases[lease]
            token = self.numbers[task.client.session, task.number].token
            died_at = self._died_at.get(token)
            if died_at is None or not task.deaths or lease >> 32 != self.farm.broker.epoch:
                continue  # or it was given up with its client, and submitted anew
            if died_at != worker.session:
                self.farm.story.probe("died, and went to another worker")
                continue
            roomy = [
                other.session
                for other in workers
                if other is not worker and other.open and len(other.leases) < other.room
                if task.demand is None or (other.suits(task.demand) and other.affords(task.demand))
            ]
            assert not roomy, f"task {token} is sent again to {died_at}, where it died, beside {roomy}"
