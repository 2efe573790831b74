"""Calls that never come to their end: whoever cancels one, or is gone, must not leave it running.

A farm is at rest when no child is busy, so one that goes on for ever is found. Their users insist: a program
that is told to cancel may die before it has asked.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.simulation.people import Person, Task

AGAIN_S: Final = 5.0
"""After this a user asks again."""
FARMS: Final = 0.1
"""Share of the farms that have such calls."""
_DICE: Final = "endless 13772"
"""A number with which the seeds that hints and regressions name have none: they go on as they were."""


def may_last(person: Person, task: Task) -> None:
    """Let this task be endless if the dice say so, and its user lose patience some time."""
    farm = Random(f"{_DICE} {person.farm.mix.seed}")
    if task.items or farm.random() >= FARMS:
        return
    dice = Random(f"{_DICE} {person.farm.mix.seed} {task.token}")
    if dice.random() >= farm.choice((0.02, 0.3)):
        return
    task.endless = True
    task.grace_s = dice.choice((0.0, 0.01, 0.5))
    person.farm.after(dice.choice((0.01, 1.0, 10.0)) * dice.random(), partial(_insist, person, task))


def _insist(person: Person, task: Task) -> None:
    client = person.client
    if task.outcome is not None or (task.abandoned and not client.job):
        return
    if client.alive and not client.attaching:
        client.hand("cancel", task)
    person.farm.after(AGAIN_S, partial(_insist, person, task))  # a job is not over when its programs are
