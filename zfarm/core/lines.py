"""Where the calls of one client wait that do not run anywhere: one line for each demand; it knows no worker's
books.

A line may also hold tasks that wait no more; they are passed over, as in the queue of a client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from zfarm.messages import Demand

if TYPE_CHECKING:
    from zfarm.core.books import Task, WorkerRecord

__all__ = ["Line", "Lines"]


class Line:
    """Tasks of one client with one demand, those of higher priority first."""

    __slots__ = ("crew", "demand", "ranks", "said", "suited", "unmet_since")

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.ranks: dict[int, deque[Task]] = {}
        self.suited: list[WorkerRecord] = []  # who could run them
        self.crew = -1  # the number of the broker's crew as of then
        self.unmet_since = 0.0  # nobody suits since then; 0: not known to be so
        self.said = False  # its client was told so

    def __iter__(self) -> Iterator[Task]:
        for rank in sorted(self.ranks, reverse=True):
            yield from self.ranks[rank]

    def __len__(self) -> int:
        return sum(len(rank) for rank in self.ranks.values())

    def head(self) -> Task | None:
        """The first task that still waits; what waits no more before it is dropped."""
        ranks = self.ranks
        while ranks:
            highest = max(ranks)
            rank = ranks[highest]
            while rank:
                task = rank[0]
                if task.worker is None and task.outcome is None:
                    return task
                rank.popleft()
            del ranks[highest]
        return None

    def take(self) -> Task:
        """Take the head out."""
        task = self.head()
        assert task is not None, "a line without a head was asked for it"
        self.ranks[task.priority].popleft()
        return task

    def place_of(self, task: Task, most: int) -> int:
        """How many tasks that wait stand before this one; at most ``most`` are looked at."""
        before = 0
        for other in islice(self, most):
            if other is task:
                break
            before += other.worker is None and other.outcome is None
        return before


class Lines:
    """All lines of one client."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[Demand, Line] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines.values())

    def __contains__(self, demand: Demand) -> bool:
        return demand in self._lines

    def get(self, demand: Demand) -> Line | None:
        """The line with this demand, if anything waits there."""
        return self._lines.get(demand)

    def put(self, task: Task, demand: Demand, front: bool = False) -> None:
        """Let a task wait: behind its like, or before them."""
        line = self._lines.get(demand)
        if line is None:
            line = self._lines[demand] = Line(demand)
        rank = line.ranks.setdefault(task.priority, deque())
        if front:
            rank.appendleft(task)
        else:
            rank.append(task)

    def prune(self) -> list[tuple[int, int, Line]]:
        """Lines by who is first in them: priority, negative, and number of that task. Empty ones are gone."""
        heads: list[tuple[int, int, Line]] = []
        for demand, line in list(self._lines.items()):
            task = line.head()
            if task is None:
                del self._lines[demand]
            else:
                heads.append((-task.priority, task.number, line))
        heads.sort(key=lambda head: head[:2])
        return heads

    def sort_out(self) -> None:
        """Take out the tasks that are parked."""
        for line in self._lines.values():
            kept = {rank: deque(t for t in tasks if not t.until) for rank, tasks in line.ranks.items()}
            line.ranks = {rank: tasks for rank, tasks in kept.items() if tasks}
        self.prune()

    def clear(self) -> None:
        """Nothing waits any more."""
        self._lines.clear()
