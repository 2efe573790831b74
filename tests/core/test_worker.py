"""The worker's machine, input by input: whole action lists, and what must change nothing."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from tests.core.rigs import FIRST, JOIN, LIMITS, SETUP, VERSIONS, WorkerRig, grants, sent, welcome
from zfarm.messages import (
    BROKEN,
    BROKER,
    LOST,
    VALUE,
    Beat,
    Began,
    ChildCall,
    Connected,
    Done,
    Drain,
    Fate,
    Finished,
    Held,
    Join,
    Leave,
    Refused,
    Rejected,
    Report,
    Reports,
    Return,
    Revoke,
    Room,
    Run,
    RunCalls,
    Send,
    StartChild,
    StopChild,
    Stranger,
    TakeBack,
    Tell,
    Thanks,
)

KILLED = Fate("host-w", "host-w/22", 9, 0, "killed by SIGKILL")


@pytest.fixture
def rig() -> WorkerRig:
    return WorkerRig().joined()


def of(actions: list[Any], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


# ---------------------------------------------------------------- joining


def test_it_joins_and_starts_a_child_per_slot() -> None:
    assert WorkerRig().turn() == [StartChild(1), StartChild(2), Send(BROKER, JOIN)]


def test_it_joins_again_until_it_is_welcome() -> None:
    rig = WorkerRig()
    rig.turn()

    assert rig.turn() == []
    assert rig.machine.deadline == rig.now + 1.0
    assert rig.turn(after=1.0) == [Send(BROKER, structs.replace(JOIN, beat=2))]
    assert rig.say(welcome(1, 2, grants=4)) == [
        Connected(welcome(1, 2, grants=4)),
        Send(BROKER, Room(2)),
        Send(BROKER, Beat(4, [], 2, beat=3)),
    ]


def test_it_beats_with_all_that_it_holds_and_owes(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST: 1, FIRST + 1: 2})
    rig.done(1, 1)

    assert sent(rig.turn(after=1.0))[-1] == Beat(1, [FIRST + 1, FIRST], 2, beat=3)


def test_a_stranger_joins_anew_with_what_it_holds_and_says_again_what_it_owes(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST: 1, FIRST + 1: 2})
    rig.done(1, 1)

    held = [Held(FIRST + 1, "c", 2, True), Held(FIRST, "c", 1, True)]
    join = Join("w", VERSIONS, 2, "host-w", 22, held, beat=3)
    assert rig.say(Stranger()) == [Send(BROKER, join)]
    assert sent(rig.say(welcome(1, 2))) == [
        Reports([Report(FIRST, VALUE, 50)]),
        Room(2),
        Beat(0, [FIRST + 1, FIRST], 2, beat=4),
    ]


def test_a_refusal_ends_it(rig: WorkerRig) -> None:
    assert rig.say(Refused("VersionMismatch", "why")) == [Rejected("VersionMismatch", "why")]
    assert rig.granted(1, {FIRST: 1}) == []


# ---------------------------------------------------------------- calls


def test_a_lease_runs_in_a_child_and_is_reported_until_thanked(rig: WorkerRig) -> None:
    run = Run([ChildCall(1, 0, 0)], 1, True)

    assert rig.granted(1, {FIRST: 1}) == [RunCalls(1, run, [b"function", SETUP, b"body 1"])]
    assert rig.done(1, 1) == [Send(BROKER, Reports([Report(FIRST, VALUE, 50)]), [b"value 1"])]
    assert sent(rig.turn(after=1.0)) == [Beat(1, [FIRST], 2, beat=3)]
    assert rig.say(Thanks([FIRST])) == []
    assert sent(rig.turn(after=1.0)) == [Beat(1, [], 2, beat=4)]


def test_a_repeated_grant_runs_once(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST: 1})

    assert rig.granted(2, {FIRST: 1}) == []
    rig.done(1, 1)
    assert rig.granted(3, {FIRST: 1}) == []


def test_the_setup_travels_once_per_child(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST: 1})
    rig.done(1, 1)

    (again,) = rig.granted(2, {FIRST + 1: 2})
    assert again == RunCalls(1, Run([ChildCall(2, 0, 0)], 1, False), [b"function", b"body 2"])


def test_what_a_child_says_twice_or_about_nothing_is_ignored(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST: 1})
    rig.done(1, 1)

    assert rig.done(1, 1) == []
    assert rig.done(1, 7) == []
    assert rig.done(99, 1) == []
    assert rig.died(99, 1) == []
    rig.machine.child_took_back(99, 1, rig.now)
    rig.machine.child_waits(99, True, rig.now)
    assert rig.turn() == []


def test_a_call_that_runs_for_a_while_is_reported_as_begun(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST: 1})

    assert rig.machine.deadline == pytest.approx(rig.now + 0.01)
    assert rig.turn(after=0.0101) == [Send(BROKER, Began([FIRST]))]
    assert rig.turn(after=0.01) == []


def test_short_calls_share_a_message(rig: WorkerRig) -> None:
    leases = {FIRST + n: n for n in range(6)}

    runs = of(rig.granted(1, leases, expected_us=100), RunCalls)
    assert sum(len(run.run.calls) for run in runs) == 6
    assert len(runs) < 6


# ---------------------------------------------------------------- deaths


def test_only_the_call_that_ran_is_blamed_and_the_rest_go_to_others(rig: WorkerRig) -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST: 1, FIRST + 1: 2, FIRST + 2: 3}, expected_us=100)
    rig.machine.child_reported(1, [Done(1, VALUE, 50)], [b"value"], rig.now)

    actions = rig.died(1, started_seq=2)
    (reports,) = sent(actions)
    assert reports == Reports([Report(FIRST, VALUE, 50), Report(FIRST + 1, LOST, 0, KILLED)])
    (run,) = of(actions, RunCalls)
    assert (run.child, run.payload[-1]) == (2, b"body 3")
    assert of(actions, StartChild) == [StartChild(2)]


def test_a_child_that_dies_before_its_first_call_costs_nothing_at_first(rig: WorkerRig) -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST: 1})

    for child in (1, 2):
        actions = rig.died(child, started_seq=0)
        assert sent(actions) == []
        assert [run.child for run in of(actions, RunCalls)] == [child + 1]
    (reports,) = sent(rig.died(3, started_seq=0))
    assert reports == Reports([Report(FIRST, LOST, 0, KILLED)])


def test_a_broken_realm_ends_its_child(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST: 1})

    actions = rig.done(1, 1, kind=BROKEN)
    assert of(actions, StopChild) == [StopChild(1, kill=False)]
    assert sent(actions) == [Reports([Report(FIRST, BROKEN, 50)])]


# ---------------------------------------------------------------- taking back


def test_a_revoked_call_that_waits_here_is_returned(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST: 1, FIRST + 1: 2, FIRST + 2: 3})

    assert rig.say(Revoke([FIRST + 2])) == [Send(BROKER, Return([FIRST + 2], 1))]


def test_a_revoked_call_in_a_child_is_taken_back_and_its_answer_decides(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST: 1})

    assert rig.say(Revoke([FIRST])) == [TakeBack(1)]
    assert rig.say(Revoke([FIRST])) == []  # it is being asked
    rig.machine.child_took_back(1, 0, rig.now)
    assert rig.turn() == [Send(BROKER, Return([FIRST], 1))]


def test_a_revoked_call_that_has_started_is_told_as_begun(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST: 1})
    rig.say(Revoke([FIRST]))
    rig.machine.child_took_back(1, 1, rig.now)

    assert rig.turn() == [Send(BROKER, Began([FIRST]))]


def test_force_kills_the_child_of_a_call_that_has_started(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST: 1})
    rig.say(Revoke([FIRST], force=True))
    rig.machine.child_took_back(1, 1, rig.now)

    assert of(rig.turn(), StopChild) == [StopChild(1, kill=True)]
    assert sent(rig.died(1, 1)) == []  # nobody wants to hear of it


def test_a_revoke_of_what_is_not_here_is_answered_with_a_return(rig: WorkerRig) -> None:
    assert rig.say(Revoke([FIRST])) == [Send(BROKER, Return([FIRST], 0))]
    assert rig.say(Revoke([FIRST], force=True)) == []


def test_no_call_goes_to_a_child_that_gives_others_back(rig: WorkerRig) -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST: 1})
    rig.say(Revoke([FIRST]))
    rig.done(1, 1)

    assert of(rig.granted(2, {FIRST + 1: 2}), RunCalls) == []
    rig.machine.child_took_back(1, 1, rig.now)
    assert [run.child for run in of(rig.turn(), RunCalls)] == [1]


def test_calls_behind_a_long_one_are_taken_back_and_run_elsewhere(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST + n: n + 1 for n in range(4)}, expected_us=400)

    assert of(rig.turn(after=0.0201), TakeBack)


def test_calls_behind_one_that_delivers_its_result_are_taken_back_at_once(rig: WorkerRig) -> None:
    rig.granted(1, {FIRST + n: n + 1 for n in range(4)}, expected_us=400)

    rig.machine.child_delivers(1, 1, False, rig.now)
    assert of(rig.turn(), TakeBack) == [TakeBack(1)]
    rig.machine.child_took_back(1, 1, rig.now)
    assert [run.child for run in of(rig.turn(), RunCalls)] == [2], "and go where nothing is in their way"


def test_a_child_speaks_in_the_name_of_the_client_whose_call_runs_there() -> None:
    rig = WorkerRig(slots=1).joined()
    for number, owner in ((1, "c"), (2, "d")):  # of one realm, so that the second call is sent ahead
        message = grants(number, {FIRST + number: number}, owner, expected_us=400)
        assert of(rig.say(message, [b"function", SETUP, b"body"]), RunCalls)

    assert rig.machine.owner_of(1) == "c"
    rig.done(1, 1)
    assert rig.machine.owner_of(1) == "d"
    rig.done(1, 2)
    assert rig.machine.owner_of(2) == ""


def test_nothing_is_sent_ahead_behind_a_call_that_delivers_its_result() -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST: 1}, expected_us=400)
    rig.machine.child_delivers(1, 1, False, rig.now)

    assert of(rig.granted(2, {FIRST + 1: 2}, expected_us=400), RunCalls) == []
    assert [run.child for run in of(rig.done(1, 1), RunCalls)] == [1]


def test_nothing_is_sent_ahead_behind_what_was_left_when_calls_were_taken_back(rig: WorkerRig) -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST + n: n + 1 for n in range(4)}, expected_us=400)
    rig.turn(after=0.0201)
    rig.machine.child_reported(1, [Done(1, 0, 50)], [b"value"], rig.now)
    rig.machine.child_took_back(1, 2, rig.now)

    actions = rig.turn()
    assert of(actions, RunCalls) == [], "the second one may have run for all that time"
    assert Began([FIRST + 1]) in sent(actions)


# ---------------------------------------------------------------- waiting and leaving


def test_a_call_that_waits_frees_its_slot_and_makes_room(rig: WorkerRig) -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST: 1})
    rig.machine.child_waits(1, True, rig.now)

    assert rig.turn() == [Send(BROKER, Room(2, [FIRST]))]
    actions = rig.granted(2, {FIRST + 1: 2})
    assert [run.child for run in of(actions, RunCalls)] == [2]
    rig.machine.child_waits(1, False, rig.now)
    assert rig.turn() == [Send(BROKER, Room(1))]


def test_nothing_is_sent_ahead_while_more_calls_run_than_there_are_slots() -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST: 1}, expected_us=400)
    rig.machine.child_waits(1, True, rig.now)
    rig.turn()
    rig.granted(2, {FIRST + 1: 2}, expected_us=400)
    rig.machine.child_waits(1, False, rig.now)  # two run now, in one slot
    rig.turn()

    assert of(rig.granted(3, {FIRST + 2: 3}, expected_us=400), RunCalls) == []
    assert of(rig.done(1, 1), RunCalls), "one runs, and behind that the next one may wait"


@pytest.mark.parametrize("by", ["signal", "message"])
def test_draining_returns_what_waits_finishes_what_runs_and_leaves(by: str) -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST: 1, FIRST + 1: 2})
    if by == "signal":
        rig.machine.drain(rig.now)
        actions = rig.turn()
    else:
        actions = rig.say(Drain())

    assert sent(actions) == [Return([FIRST + 1], 1), Room(0, draining=True)]
    assert sent(rig.done(1, 1)) == [Reports([Report(FIRST, VALUE, 50)])]
    assert rig.say(Thanks([FIRST])) == [Send(BROKER, Leave()), Finished()]
    assert rig.machine.deadline == float("inf")


def test_an_idle_worker_leaves_at_once(rig: WorkerRig) -> None:
    rig.machine.drain(rig.now)

    assert rig.turn() == [Send(BROKER, Room(0, draining=True)), Send(BROKER, Leave()), Finished()]


def test_a_worker_that_drains_does_not_wait_for_ever_for_a_broker_that_is_gone() -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST: 1})
    rig.done(1, 1)
    rig.machine.drain(rig.now)
    said: list[tuple[float, str]] = []
    ended_at, began = 0.0, rig.now
    while not ended_at:
        actions = rig.turn(after=1.0)
        said += [(rig.now - began, action.text) for action in of(actions, Tell)]
        ended_at = rig.now - began if Finished() in actions else 0.0

    (waits_at, waits), (leaves_at, leaves) = said
    assert LIMITS.worker_lost_after_s <= waits_at < LIMITS.worker_lost_after_s + 2
    assert waits.startswith("1 outcomes wait for the broker, which says nothing: for 600 s, or until")
    assert leaves_at == ended_at
    assert LIMITS.broker_away_max_s <= ended_at < LIMITS.broker_away_max_s + 2
    assert leaves == "leaves with 1 outcomes, which the broker has not taken for 600 s"
