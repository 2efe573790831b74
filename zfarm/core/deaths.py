"""What is kept of a task's deaths and its end, and how much of a message it takes; pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import structs

from zfarm.messages import Fate, Outcome, Report

if TYPE_CHECKING:
    from zfarm.core.books import Task

__all__ = ["outcome_of", "with_death", "words_of_outcome", "words_of_report"]

LAST_WORDS: Final = 3
"""Deaths of one task whose last lines of stderr are kept, the latest: a task may have a thousand."""


def with_death(deaths: tuple[Fate, ...], fate: Fate) -> tuple[Fate, ...]:
    """These deaths and one more."""
    if len(deaths) >= LAST_WORDS and deaths[-LAST_WORDS].stderr:
        shorter = structs.replace(deaths[-LAST_WORDS], stderr="")
        deaths = (*deaths[:-LAST_WORDS], shorter, *deaths[1 - LAST_WORDS :])
    return (*deaths, fate)


def words_of_report(report: Report) -> int:
    """Characters of a report that counts as text in the header."""
    return _words(report.fate) if report.fate is not None else 0


def words_of_outcome(outcome: Outcome) -> int:
    """Characters of an outcome that counts as text in the header."""
    return sum(map(_words, outcome.deaths))


def _words(fate: Fate) -> int:
    return 100 + len(fate.text) + len(fate.stderr) + len(fate.oom)


def outcome_of(task: Task, kind: int, report: Report) -> Outcome:
    """What a report makes of its task."""
    deaths = task.deaths if report.fate is None else with_death(task.deaths, report.fate)
    lease = report.lease if report.emitted or report.filed else 0
    return Outcome(task.number, kind, report.run_us, deaths, task.tries, lease, report.emitted, report.filed)
