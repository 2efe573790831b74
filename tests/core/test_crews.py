"""A key has so many workers, and one that comes back is not kept out by those of it that died."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.rigs import LIMITS, VERSIONS, BrokerRig, WorkerRig, sent, welcome
from zfarm.messages import (
    BROKER,
    Action,
    Beat,
    Finished,
    Join,
    Leave,
    Refused,
    Rejected,
    Stranger,
    Tell,
    Welcome,
)
from zfarm.settings import Settings


class Crew(BrokerRig):
    """A broker, and workers of which each has a key."""

    def __init__(self, most: int) -> None:
        super().__init__(Settings(worker_sessions_max=most))

    def join(self, peer: str, session: str, key: str = "worker:w") -> list[Any]:
        self.machine.receive(peer, Join(session, VERSIONS, 1, "h", 2), (), self.now, key)
        self.actions = self.turn()
        return sent(self.actions, peer)

    def told(self) -> list[str]:
        return [action.text for action in self.actions if isinstance(action, Tell)]


def test_a_key_has_a_limited_number_of_workers() -> None:
    rig = Crew(2)
    for n in range(2):
        assert isinstance(rig.join(f"W{n}", f"s{n}")[0], Welcome)
    (no,) = rig.join("W2", "s2")
    assert isinstance(no, Refused)
    assert (no.code, "ZFARM_WORKER_SESSIONS_MAX" in no.text) == ("FarmBusy", True)
    assert "2 workers with this key" in rig.told()[0]
    assert isinstance(rig.join("W2", "s2")[0], Refused)
    assert rig.told() == [], "it is said once"
    assert rig.machine.refusals["workers"] == 2
    assert isinstance(rig.join("X", "s0", "worker:x")[0], Welcome), "another key has its own"
    assert isinstance(rig.join("Y", "s0")[0], Welcome), "who is known may come back, on another link, too"
    assert len(rig.machine.workers) == 3


def test_one_link_that_joins_in_ever_other_names_fills_no_books() -> None:
    rig = Crew(3)
    for n in range(100):
        rig.join("W", f"s{n}")
    assert len(rig.machine.workers) == 3


def test_who_was_killed_comes_back_as_soon_as_its_dead_session_is_lost() -> None:
    rig = Crew(1)
    rig.join("W", "s0")
    rig.machine.gone("W", rig.now)
    waited = 0
    while isinstance(rig.join("V", "s1")[0], Refused):
        rig.turn(LIMITS.beat_interval_s)
        waited += 1
    assert 0 < waited <= LIMITS.worker_lost_after_s + 2
    assert list(rig.machine.workers) == ["worker:w/s1"]


def test_one_that_leaves_makes_room_at_once() -> None:
    rig = Crew(1)
    rig.join("W", "s0")
    rig.machine.receive("W", Leave(), (), rig.now, "worker:w")
    assert isinstance(rig.join("V", "s1")[0], Welcome)


def joins(actions: list[Action]) -> int:
    return sum(isinstance(message, Join) for message in sent(actions, BROKER))


def test_a_worker_that_is_not_let_in_asks_again_until_it_is() -> None:
    rig = WorkerRig()
    assert joins(rig.turn()) == 1
    texts = []
    for _ in range(3):
        actions = rig.say(Refused("FarmBusy", "there are 2"))
        texts += [action.text for action in actions if isinstance(action, Tell)]
        assert not any(isinstance(action, Rejected | Finished) for action in actions)
        assert joins(rig.turn(LIMITS.beat_interval_s)) == 1
    assert texts == ["not let in yet: there are 2"], "it is said once"
    rig.say(welcome(1, 2))
    assert any(isinstance(message, Beat) for message in sent(rig.turn(LIMITS.beat_interval_s), BROKER))


def test_a_worker_that_waits_can_be_drained() -> None:
    rig = WorkerRig()
    rig.turn()
    rig.say(Refused("FarmBusy", "there are 2"))
    rig.machine.drain(rig.now)
    assert any(isinstance(action, Finished) for action in rig.turn())


@pytest.mark.parametrize("ends", [False, True])
def test_a_worker_that_drains_and_is_not_let_in_leaves_with_what_it_has(ends: bool) -> None:
    rig = WorkerRig().joined()
    rig.granted(1, {1: 1})
    rig.say(Stranger())
    rig.say(Refused("FarmBusy", "there are 2"))
    rig.machine.drain(rig.now)
    if ends:
        rig.done(1, 1)
    assert not any(isinstance(action, Finished) for action in rig.turn(LIMITS.worker_lost_after_s - 0.1))
    actions = rig.turn(0.1)
    assert any(isinstance(action, Finished) for action in actions)
    assert [action.text for action in actions if isinstance(action, Tell)] == [
        "leaves with 1 calls: it is not let in any more"
    ]
