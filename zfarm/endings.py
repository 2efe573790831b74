"""What a client raises for a task that ended without a value or an exception of its own."""

from __future__ import annotations

from collections import Counter

from zfarm.errors import Death, TaskLost
from zfarm.messages import Outcome

__all__ = ["task_lost"]


def task_lost(name: str, outcome: Outcome) -> TaskLost:
    """The error of a task under which children or workers died: how often, and how each time."""
    deaths = tuple(
        Death(fate.host, fate.worker, fate.signal, fate.exit_code, fate.text) for fate in outcome.deaths
    )
    counted = Counter(map(str, deaths))
    ways = ", ".join(f"{way} ({count} times)" if count > 1 else way for way, count in counted.items())
    times = "once" if len(deaths) == 1 else f"{len(deaths)} times"
    return TaskLost(f"{name}: what ran it died {times}: {ways or 'no word how'}", deaths)
