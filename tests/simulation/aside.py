"""What must hold of workers that are set aside in a simulated farm: there is a reason, and another worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.people import Task
from zfarm import messages as m

if TYPE_CHECKING:
    from tests.simulation.farm import Farm

FIRST_EPOCH = 100


class Aside:
    """Deaths of children under workers, as the broker's end of the network hears of them."""

    farm: Farm
    granted: dict[int, tuple[Task, str]]
    living: dict[int, int]
    numbers: dict[tuple[str, int], Task]
    holds: dict[str, dict[int, Task]]

    def __init__(self) -> None:
        super().__init__()
        self.died_under: dict[str, set[object]] = {}
        """Calls under which children of a worker's life were reported to have died since one ended well."""
        self.died_most: dict[str, int] = {}
        """How many they were at most since the broker last decided."""
        self._were_open: set[str] = set()
        self.aside: set[str] = set()
        """Workers' lives that the broker has set aside."""

    def aside_again(self) -> None:
        """A new broker has heard of no deaths yet."""
        self.aside.clear()
        self.died_under.clear()

    def tells_of_deaths(self, session: str, report: m.Report) -> None:
        task, holder = self.granted.get(report.lease, (None, ""))
        under = self.died_under.setdefault(session, set())
        if task is None or holder != session:
            return
        if report.kind == m.LOST:
            under.add(task.token)
        elif report.kind == m.BROKEN and report.fate is not None:
            under.add(task.client)
        elif (
            report.kind in (m.VALUE, m.ERROR, m.MIXED, m.AGAIN)
            and self.living.get(task.token) == report.lease
        ):
            under.clear()
        self.died_most[session] = max(self.died_most.get(session, 0), len(under))

    def holds_still(self, session: str, message: m.Message) -> None:
        """A worker joins, and says what it holds: also what it has reported before, and was not kept."""
        for held in message.held if isinstance(message, m.Join) else ():
            task, holder = self.granted.get(held.lease, (None, ""))
            if task is not None and holder == session:
                self.holds.setdefault(session, {})[held.lease] = task

    def judge_aside(self) -> None:
        """A worker is set aside after deaths of different calls in a row, and while there is another one."""
        workers = self.farm.broker.machine.workers
        now_aside = {session for session, worker in workers.items() if worker.aside_until}
        now_open = {session for session, worker in workers.items() if worker.open}
        for session in now_aside - self.aside:
            died = self.died_most.get(session, 0)
            first = self.farm.broker.epoch == FIRST_EPOCH  # later it takes reports over, and counts them late
            least = self.farm.mix.settings.worker_deaths_max if first else 0
            assert died >= least, f"{session} is set aside after {died} deaths"
            assert (now_open | self._were_open) - {session}, f"{session} was the last one"
            self.farm.story.probe("set aside")
        if self.aside - now_aside:
            self.farm.story.probe("back from aside")
        self.aside = now_aside
        self._were_open = now_open
        self.died_most.clear()
