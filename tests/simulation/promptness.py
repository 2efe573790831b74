"""What must hold of a simulated farm in which nothing goes wrong: no call waits beside a free slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.placement import Placement
from zfarm import messages as m

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.people import Task
    from tests.simulation.processes import ClientProcess

PRIORITY_MAX = 5
"""Of tasks, in farms where they have one."""


class Promptness(Placement):
    """How long calls wait, as an onlooker sees it."""

    farm: Farm
    waiting: int
    busy: int
    pending: set[int]
    by_peer: dict[Any, str]
    numbers: dict[tuple[str, int], Task]
    _idle_since: float | None
    _asked_alone: Task | None

    def changed(self) -> None:
        """Judge late binding: while calls wait, no slot stays free for long."""
        if not self.farm.mix.calm:
            return
        self.judge_choosy()
        idle = self.waiting > len(self.choosy) and self.busy + self._forks() < self._capacity()
        if not idle:
            if self._idle_since is not None:
                took = self.farm.now - self._idle_since
                assert took < self.farm.mix.idle_bound_s, f"calls waited beside a free slot for {took} s"
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = self.farm.now

    def waits_no_more(self, task: Task) -> None:
        """It starts, or ends without."""
        self.waiting -= task.waits
        if task.waits and self.choosy.pop(task.token, None) is not None:
            self._able_since = None  # one of them goes: the others wait for their turn

    def _capacity(self) -> int:
        """Slots of the workers that have had the time to join."""
        return sum(worker.slots for worker in self.farm.workers.values() if self.farm.now > worker.born + 0.5)

    def _forks(self) -> int:
        """Slots at most that wait for a child. Where many die there is always one, and each time another."""
        children = (child for worker in self.farm.workers.values() for child in worker.children.all.values())
        return sum(not child.ready for child in children)

    def _between_runs(self) -> bool:
        """A call has raised and is about to run again: what is submitted now may find it in its way."""
        tasks = (self.farm.tasks[token] for token in self.pending)
        return self.farm.mix.flaky_share > 0 and any(task.runs and task.runs[-1].raised for task in tasks)

    def is_prompt(self, client: ClientProcess, task: Task) -> None:
        """A task is submitted: has it to start at once? Not if another client submits one right after it."""
        if self._asked_alone is not None and self._asked_alone.asked_by is not client:
            self._asked_alone.prompt = False
        idle = not (self.waiting or self.busy or self._between_runs()) and self.farm.now > 1.0
        task.prompt = idle and self.goes_first(task)
        self._asked_alone = task if task.prompt else None

    def goes_first(self, task: Task) -> bool:
        """It may run anywhere, and nothing that is submitted after it goes before it."""
        return task.demand is None and task.priority >= (PRIORITY_MAX if self.farm.mix.choosy_share else 0)

    def is_put_off(self, peer: Any, message: m.Unknown | m.Refused) -> None:
        """A client has to say something again: calls that are submitted meanwhile go first."""
        self.farm.story.probe(type(message).__name__)
        for number in message.tasks if isinstance(message, m.Unknown) else ():
            task = self.numbers.get((self.by_peer.get(peer, ""), number))
            if task is not None:
                task.prompt = False

    def _prompt(self, what: str, task: Task) -> None:
        """Judge promptness: on an idle farm a call starts at once."""
        if self.farm.mix.calm and task.prompt and not task.runs:
            took = self.farm.now - task.submitted_at
            assert took < self.farm.mix.start_bound_s, f"{what} took {took} s to start on an idle farm"
