"""How a progress bar over futures looks: rich draws it; it submits and waits for nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import ceil
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

__all__ = ["Bars", "Display", "Pace"]

TASKS_MAX: Final = 8
"""Tasks with progress of their own that are shown at once."""
LABEL_MIN: Final = 20
"""Characters of a task's name and note that are shown in the narrowest terminal."""
LOOKED_AT: Final = 1000
"""Futures that one refresh looks at, of those that have not ended."""
REFRESH_PER_S: Final = 10


PERIOD_S: Final = 30.0
"""A rate is that of so many seconds: long enough to be read, and it follows when the calls change."""


class Pace:
    """How many end per second, of what was looked at in the last seconds up to now.

    rich counts from when the first of them ended to when the last one did, which is no time at all where
    several end together, as the calls on equal slots do: a thousand a second, and all will be over at once.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def see(self, now: float, done: float) -> None:
        """So many have ended by now."""
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - PERIOD_S:
            self._seen.popleft()

    @property
    def per_s(self) -> float | None:
        """None: nothing has ended in that time."""
        if len(self._seen) < 2:
            return None
        (since, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - since) if done > before and now > since else None


class Rate(ProgressColumn):
    """How many end per second."""

    def render(self, task: Task) -> Text:
        """The text of one bar."""
        speed = task.fields["pace"].per_s if "pace" in task.fields else None
        if speed is None:
            return Text("")
        return Text(f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s", style="progress.data.speed")


class Left(TimeRemainingColumn):
    """How long it takes until all have ended."""

    def render(self, task: Task) -> Text:
        """The text of one bar."""
        if "pace" not in task.fields or task.total is None or task.finished:
            return super().render(task)
        speed = task.fields["pace"].per_s
        if speed is None:
            return Text("-:--:--", style="progress.remaining")
        minutes, seconds = divmod(ceil((task.total - task.completed) / speed), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours:d}:{minutes:02d}:{seconds:02d}", style="progress.remaining")


class Failures(ProgressColumn):
    """How many have failed."""

    def render(self, task: Task) -> Text:
        """The text of one bar."""
        failed = task.fields.get("failed")
        return Text(f"{failed:,} failed", style="red") if failed else Text("")


class Display(Progress):
    """Bars that a notebook shows to their end, too: there rich leaves what it has drawn last, and nothing at
    all where ipywidgets is not installed, which it says."""

    def stop(self) -> None:
        """Show how it has ended. Harmless when done before."""
        in_notebook = self.console.is_jupyter and self.live.is_started
        if in_notebook:
            self.refresh()
        super().stop()
        if in_notebook and self.live.ipy_widget is None:
            self.console.print(self.get_renderable())


class Bars(Display):
    """One bar for the loop, and one for each task that says how far it is."""

    def __init__(self, futures: list[Any], console: Console) -> None:
        self._own: dict[int, TaskID] = {}
        self._looking = True  # rich draws already while it makes this
        self._waiting = deque(futures)
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            Left(),
            Failures(),
            console=console,
            refresh_per_second=REFRESH_PER_S,
        )
        self._looking = False

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
        """Look at what has ended, and at what the tasks say."""
        for task in self.tasks:
            if "pace" in task.fields and not task.finished:
                task.fields["pace"].see(self.get_time(), task.completed)
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
            name = "  " + _line(f"{getattr(future, '_name', '') or 'task'} {told.note}", self.console.width)
            if key not in self._own:
                self._own[key] = self.add_task(name, total=told.total)
            self.update(self._own[key], description=name, completed=told.done, total=told.total)


def _line(text: str, width: int) -> str:
    """What is said in a note as one short line: the count and the time left need their room, too."""
    line = "".join(one for one in " ".join(text.split()) if one.isprintable())
    most = max(LABEL_MIN, width // 3)
    return line if len(line) <= most else line[: most - 1] + "…"
