"""What a client raises for a task that was lost: it claims nothing that nobody knows."""

from __future__ import annotations

from zfarm.endings import ending
from zfarm.errors import TaskLost
from zfarm.messages import LOST, Fate, Outcome


def text_of(*fates: Fate) -> str:
    error = ending("f", Outcome(1, LOST, deaths=fates))
    assert isinstance(error, TaskLost)
    assert error.maybe_ran
    return str(error)


def test_deaths_are_counted() -> None:
    death = Fate(host="here", worker="here/7", signal=9, text="killed by SIGKILL")

    assert text_of(death) == "f: what ran it died once: killed by SIGKILL on here"
    assert text_of(death, death) == "f: what ran it died 2 times: killed by SIGKILL on here (2 times)"


def test_of_a_call_that_no_worker_has_it_is_not_said_that_it_ran() -> None:
    text = text_of(Fate(host="", worker="", text="the broker was started anew, and no worker has it"))

    assert text == "f is lost, and may have run or not: the broker was started anew, and no worker has it"
