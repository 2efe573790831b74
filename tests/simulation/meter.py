"""Calls with a memory limit on a simulated farm: who watches them, when they have too much, what becomes of
them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zfarm.messages import ChildCall, Left

if TYPE_CHECKING:
    from tests.simulation.children import Child
    from tests.simulation.people import Run, Task

NOTICED_S = 0.3
"""Where nothing goes wrong a worker knows of a call within this."""
LEAVES_SHARE = 0.2
SIGABRT = 6


class Meter:
    """What a worker sees of the memory of one child."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.limit = 0

    def leaves_it_to_another(self, call: ChildCall) -> bool:
        """What earlier calls left is so much that the child ends before it begins a call with a limit."""
        child = self.child
        farm = child.farm
        if not call.memory_bytes or not child.started_seq or farm.mix.calm:
            return False
        return farm.rng.random() < LEAVES_SHARE

    def check(self, call: ChildCall, task: Task) -> None:
        """A call comes with its own limit, whichever way it went."""
        assert call.memory_bytes == task.memory, f"{task.token} has another limit: {call.memory_bytes}"
        assert call.timed == bool(task.timeout_s or task.memory), f"{task.token}: nobody hears of its start"

    def begun(self) -> None:
        """A call begins: nobody watches it yet."""
        assert not self.limit, "a call is held to the limit of another"

    def set(self, limit: int) -> None:
        """The worker watches from now on, or no more."""
        self.limit = limit
        run, farm = self.child.running, self.child.farm
        if limit and run is not None and run.task.hungry:
            at = run.started_at + run.task.hungry * run.task.run_s
            farm.after(max(0.0, at - farm.now), partial(self._has_too_much, run))

    def _has_too_much(self, run: Run) -> None:
        child = self.child
        if not (child.alive and child.running is run and self.limit == run.task.memory):
            return
        run.overshot_at = child.farm.now
        if child.farm.rng.random() < 0.2:
            child.farm.story.probe("refused memory, and died")
            child.die(SIGABRT, 0, left=Left("std::bad_alloc", 0, "", True))
        else:
            left = Left("", self.limit + 1)
            child.owner.worker.hand("call", "child_overshot", child.number, left)

    def ended(self, run: Run) -> None:
        """A call has come to its end: where nothing goes wrong it was watched, and had not too much."""
        farm, task = self.child.farm, run.task
        if not farm.mix.calm:
            return
        if task.memory and farm.now - run.started_at > NOTICED_S and not self.child.has_waited:
            assert self.limit == task.memory, f"task {task.token} runs, and nobody watches its memory"
        if run.overshot_at is not None:
            late = farm.now - run.overshot_at
            assert late < NOTICED_S, f"task {task.token} had too much memory, and runs on for {late} s"
