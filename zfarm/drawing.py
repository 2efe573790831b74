"""How a progress bar over futures looks: rich draws it; it submits and waits for nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Bars"]

TASKS_MAX: Final = 8
"""Tasks with progress of their own that are shown at once."""
LOOKED_AT: Final = 1000
"""Futures that one refresh looks at, of those that have not ended."""
REFRESH_PER_S: Final = 10


class Rate(ProgressColumn):
    """How many end per second."""

    def render(self, task: Task) -> Text:
        """The text of one bar."""
        speed = task.finished_speed or task.speed
        if speed is None or "failed" not in task.fields:
            return Text("")
        return Text(f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s", style="progress.data.speed")


class Failures(ProgressColumn):
    """How many have failed."""

    def render(self, task: Task) -> Text:
        """The text of one bar."""
        failed = task.fields.get("failed")
        return Text(f"{failed:,} failed", style="red") if failed else Text("")


class Bars(Progress):
    """One bar for the loop, and one for each task that says how far it is."""

    def __init__(self, futures: list[Any], console: Console) -> None:
        self._own: dict[int, TaskID] = {}
        self._looking = False
        self._waiting = deque(futures)
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            Failures(),
            console=console,
            refresh_per_second=REFRESH_PER_S,
        )

    def get_renderables(self) -> Iterable[Any]:
        """What is shown now; in the thread that refreshes."""
        if not self._looking:  # a bar that is added is drawn at once, which comes here again
            self._looking = True
            try:
                self.look()
            finally:
                self._looking = False
        return super().get_renderables()

    def look(self) -> None:
        """Look at what the tasks say."""
        for _ in range(min(LOOKED_AT, len(self._waiting))):
            future = self._waiting.popleft()
            key = id(future)
            if future.done():
                if key in self._own:
                    self.remove_task(self._own.pop(key))
                continue
            self._waiting.append(future)
            told = getattr(future, "progress", None)
            if told is None or (key not in self._own and len(self._own) >= TASKS_MAX):
                continue
            name = f"  {getattr(future, '_name', '') or 'task'} {told.note}".rstrip()
            if key not in self._own:
                self._own[key] = self.add_task(name, total=told.total)
            self.update(self._own[key], description=name, completed=told.done, total=told.total)
