"""The broker's machine, message by message: whole action lists, and what must change nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.core.rigs import (
    BOOKS,
    EPOCH,
    FIRST,
    HELLO,
    JOIN,
    LIMITS,
    SAID,
    SETUP,
    VERSIONS,
    BrokerRig,
    grants,
    sent,
    submit,
    welcome,
)
from zfarm.core.flood import LINES_MAX
from zfarm.messages import (
    CANCELLED,
    ERROR,
    LOST,
    VALUE,
    Ask,
    Beat,
    Began,
    Bye,
    Cancel,
    Drop,
    Echo,
    Ended,
    Fate,
    Forget,
    Held,
    Hello,
    Join,
    Leave,
    Look,
    Outcome,
    Pulse,
    Refused,
    Report,
    Reports,
    Return,
    Revoke,
    Room,
    Send,
    Stranger,
    Tell,
    Thanks,
    Unknown,
    Versions,
    Why,
)

DIED = Fate("host-w", "host-w/22", 9, 0, "killed by SIGKILL")


@pytest.fixture
def rig() -> BrokerRig:
    return BrokerRig().met()


# ---------------------------------------------------------------- who is there


def test_a_client_is_welcomed() -> None:
    assert BrokerRig().say("C", HELLO) == [Send("C", welcome(0, 0, books=BOOKS, topic="c"))]


def test_a_worker_is_welcomed_and_told_of() -> None:
    assert BrokerRig().say("W", JOIN) == [
        Tell("info", "worker host-w/22 joined with 2 slots"),
        Send("W", welcome(1, 2, grants=SAID + 1)),
    ]


def test_whoever_is_not_known_is_told_so_and_changes_nothing(rig: BrokerRig) -> None:
    before = rig.say("C", Pulse(1, 0))

    for message in (
        Pulse(1, 0),
        Ask([1]),
        Forget([1]),
        Cancel([1]),
        Beat(0, [FIRST], 4),
        Return([FIRST]),
        Leave(),
    ):
        assert rig.say("X", message) == [Send("X", Stranger())]
    assert rig.say("X", *submit(1)) == [Send("X", Stranger())]
    assert rig.say("X", Bye()) == []
    assert rig.say("C", Pulse(1, 0)) == before


def test_a_stranger_that_joins_in_the_same_turn_is_none_any_more(rig: BrokerRig) -> None:
    rig.machine.receive("V", Beat(0, [], 1), (), rig.now)

    assert sent(rig.say("V", Join("v", VERSIONS, 1, "host-v", 33)), "V") == [welcome(2, 3, grants=SAID + 1)]


@pytest.mark.parametrize(
    "theirs", [Versions(0, "0", "3.11"), Versions(1, "9", "3.11"), Versions(1, "0", "3.12")]
)
def test_other_versions_are_refused_with_both_named(theirs: Versions) -> None:
    for peer, message in (("C", Hello("c", theirs)), ("W", Join("w", theirs, 1, "h", 1))):
        refused, told = BrokerRig().say(peer, message)

        assert isinstance(refused, Send)
        assert isinstance(refused.message, Refused)
        assert refused.message.code == "VersionMismatch"
        assert refused.message.text.count("run") == 2
        assert isinstance(told, Tell)


def test_a_client_on_a_new_link_keeps_its_tasks_and_the_old_link_is_dropped(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))

    assert rig.say("C2", HELLO) == [Drop("C"), Send("C2", welcome(1, 2, books=BOOKS, topic="c"))]
    assert rig.say("C", Pulse(1, 1)) == [Send("C", Stranger())]
    assert rig.say("C2", Cancel([1])) == [Send("W", Revoke([FIRST]))]


def test_a_join_said_twice_on_one_link_is_answered_once(rig: BrokerRig) -> None:
    assert rig.say("W", JOIN) == []


def test_a_message_of_the_other_role_is_refused(rig: BrokerRig) -> None:
    assert [refused.code for refused in sent(rig.say("C", Leave()), "C")] == ["ProtocolError"]
    assert [refused.code for refused in sent(rig.say("W", Pulse(1, 0)), "W")] == ["ProtocolError"]


# ---------------------------------------------------------------- tasks


def test_a_task_is_granted_reported_shown_and_forgotten(rig: BrokerRig) -> None:
    message, payload = submit(1)

    assert rig.say("C", message, payload) == [Send("W", grants(SAID + 2, {FIRST: 1}), payload)]
    assert rig.say("W", Reports([Report(FIRST, VALUE, 50)]), [b"value"]) == [
        Send("C", Ended([Outcome(1, VALUE, 50)]), [b"value"]),
    ]
    assert rig.say("C", Ask([1])) == [Send("C", Ended([Outcome(1, VALUE, 50)]), [b"value"])]
    assert rig.say("C", Forget([1])) == []
    assert rig.say("C", Ask([1])) == [Send("C", Unknown([1], 1))]


def test_a_submit_said_twice_runs_once(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))

    assert rig.say("C", *submit(1)) == []


def test_thanks_travel_with_the_next_beat_or_grants(rig: BrokerRig) -> None:
    rig.say("C", *submit(1, 2, 3))
    granted = rig.say("W", Reports([Report(FIRST, VALUE, 10**6)]), [b"value"])
    rig.say("W", Reports([Report(FIRST + 1, VALUE, 10**6)]), [b"value"])

    assert sent(granted, "W")[0] == Thanks([FIRST])
    assert Thanks([FIRST + 1, FIRST + 1]) in sent(
        rig.say("W", Beat(SAID + 3, [FIRST + 1, FIRST + 2], 2)), "W"
    )


def test_tasks_beyond_the_slots_wait_until_one_is_free(rig: BrokerRig) -> None:
    first = rig.say("C", *submit(1, 2, 3))
    then = rig.say("W", Reports([Report(FIRST, ERROR, 10**6)]), [b"error"])

    assert [lease.task for lease in sent(first, "W")[0].leases] == [1, 2]
    assert [lease.task for message in sent(then, "W")[1:] for lease in message.leases] == [3]


def test_a_function_travels_once_per_message(rig: BrokerRig) -> None:
    (action,) = rig.say("C", *submit(1, 2))

    assert isinstance(action, Send)
    assert action.payload == [b"function", SETUP, b"body 1", b"body 2"]


def test_a_report_said_again_is_thanked_for_and_changes_nothing(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    rig.say("W", Reports([Report(FIRST, VALUE, 50)]), [b"value"])

    assert rig.say("W", Reports([Report(FIRST, ERROR, 50)]), [b"other"]) == []
    assert rig.say("C", Ask([1])) == [Send("C", Ended([Outcome(1, VALUE, 50)]), [b"value"])]


def test_nobody_else_can_report_or_return_a_lease(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    rig.say("V", Join("v", VERSIONS, 1, "host-v", 33))

    assert rig.say("V", Reports([Report(FIRST, VALUE, 1)]), [b"forged"]) == []
    assert rig.say("V", Return([FIRST], SAID + 9)) == []
    assert rig.say("V", Began([FIRST])) == []
    assert rig.say("V", Beat(0, [FIRST], 1)) == [
        Send("V", Thanks([FIRST, FIRST])),
        Send("V", Revoke([FIRST], force=True)),
    ]
    assert sent(rig.say("W", Reports([Report(FIRST, VALUE, 50)]), [b"value"]), "C") == [
        Ended([Outcome(1, VALUE, 50)])
    ]


def test_a_client_cannot_touch_the_tasks_of_another(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    rig.say("D", msgspec.structs.replace(HELLO, session="d"))

    assert rig.say("D", Cancel([1])) == [Send("D", Unknown([1], 0))]
    assert rig.say("D", Ask([1])) == [Send("D", Unknown([1], 0))]
    assert rig.say("D", Forget([1])) == []
    assert rig.say("D", Bye()) == []
    assert rig.say("C", Ask([1])) == []  # it is leased, and has not begun


# ---------------------------------------------------------------- deaths


def test_a_death_costs_one_attempt_and_the_last_one_the_task(rig: BrokerRig) -> None:
    rig.say("C", *submit(1, attempts=2))

    again = rig.say("W", Reports([Report(FIRST, LOST, fate=DIED)]), [b""])
    assert sent(again, "W") == [Thanks([FIRST]), grants(SAID + 3, {FIRST + 1: 1})]
    assert sent(again, "C") == []
    lost = rig.say("W", Reports([Report(FIRST + 1, LOST, fate=DIED)]), [b""])
    assert sent(lost, "C") == [Ended([Outcome(1, LOST, 0, (DIED, DIED))])]


def test_a_batch_is_given_up_after_one_death(rig: BrokerRig) -> None:
    rig.say("C", *submit(1, items=10))

    lost = rig.say("W", Reports([Report(FIRST, LOST, fate=DIED)]), [b""])
    assert sent(lost, "C") == [Ended([Outcome(1, LOST, 0, (DIED,))])]


def test_the_leases_of_a_silent_worker_move(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    rig.turn(after=4.0)
    rig.say("V", Join("v", VERSIONS, 1, "host-v", 33, beat=1))

    assert sent(rig.turn(after=1.5), "V") == []  # this sweep is late: who was away may have missed a beat
    moved = rig.turn(after=0.5)
    assert sent(moved, "V") == [grants(SAID + 2, {FIRST + 1: 1})]
    assert sent(rig.say("W", Beat(SAID + 2, [FIRST], 2)), "W") == [Stranger()]
    back = rig.say("W", msgspec.structs.replace(JOIN, held=[Held(FIRST, "c", 1, True)]))
    assert sent(back, "W")[1:] == [Thanks([FIRST]), Revoke([FIRST], force=True)]


def test_a_worker_that_comes_back_in_time_goes_on_with_its_lease(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    rig.turn(after=5.5)  # lost, and nobody else is there

    rig.say("W", msgspec.structs.replace(JOIN, held=[Held(FIRST, "c", 1, True)]))
    ended = rig.say("W", Reports([Report(FIRST, VALUE, 50)]), [b"value"])
    assert [outcome.kind for outcome in sent(ended, "C")[0].outcomes] == [VALUE]


def test_a_death_that_was_booked_does_not_come_back_with_its_worker(rig: BrokerRig) -> None:
    rig.say("W", Room(1))
    rig.say("C", *submit(1, 2))
    rig.machine.gone("W", rig.now)
    rig.say("W2", msgspec.structs.replace(JOIN, held=[Held(FIRST, "c", 1, True)]))
    rig.say(
        "W2", Reports([Report(FIRST, LOST, fate=DIED)]), [b""]
    )  # task 1 waits behind task 2 now, or for a slot
    rig.machine.gone("W2", rig.now)

    rig.say("W3", msgspec.structs.replace(JOIN, held=[Held(FIRST, "c", 1, True)]))
    rig.say("W3", Reports([Report(FIRST, LOST, fate=DIED)]), [b""])
    assert len(rig.machine.clients["c"].tasks[1].deaths) == 1


def test_a_worker_that_leaves_is_blamed_for_nothing(rig: BrokerRig) -> None:
    rig.say("C", *submit(1, attempts=1))

    assert sent(rig.say("W", Leave()), "C") == []
    join = Join("v", VERSIONS, 1, "host-v", 33, beat=1)
    assert sent(rig.say("V", join), "V")[1:] == [grants(SAID + 4, {FIRST + 1: 1})]


# ---------------------------------------------------------------- repair


def test_a_lease_that_the_worker_does_not_hold_is_repeated_never_replaced(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))

    assert sent(rig.say("W", Beat(SAID + 1, [], 2)), "W") == []  # the Grants are on their way
    assert sent(rig.say("W", Beat(SAID + 2, [], 2)), "W") == [grants(SAID + 3, {FIRST: 1})]
    rig.machine.gone("W", rig.now)
    assert sent(rig.say("W2", JOIN), "W2") == [welcome(1, 2, grants=SAID + 4), grants(SAID + 5, {FIRST: 1})]


def test_a_return_from_before_the_last_joining_is_void(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    rig.machine.gone("W", rig.now)
    rig.say("W", JOIN)  # on the link that lives on: granted again

    assert rig.say("W", Return([FIRST], SAID + 2)) == []
    assert sent(rig.say("W", Return([FIRST], SAID + 4)), "W") == [grants(SAID + 5, {FIRST + 1: 1})]


def test_a_return_that_crosses_a_lease_granted_again_is_void_however_often_that_was_missed(
    rig: BrokerRig,
) -> None:
    rig.say("C", *submit(1))
    for _ in range(2):
        rig.machine.receive("W", Beat(SAID + 2, [], 2), (), rig.now)
    assert sent(rig.turn(), "W") == [grants(SAID + 3, {FIRST: 1})]

    assert rig.say("W", Return([FIRST], SAID + 2)) == []
    assert sent(rig.say("W", Return([FIRST], SAID + 3)), "W") == [grants(SAID + 4, {FIRST + 1: 1})]


def test_what_a_worker_said_before_it_was_given_up_says_nothing_of_what_it_is_granted_since(
    rig: BrokerRig,
) -> None:
    rig.say("C", *submit(1))
    for _ in range(12):
        rig.turn(after=0.5)
    assert not rig.machine.workers
    again = rig.say("W2", JOIN)
    assert sent(again, "W2")[1:] == [grants(SAID + 4, {FIRST + 1: 1})]

    assert sent(rig.say("W2", Beat(SAID + 2, [], 2)), "W2") == []
    assert sent(rig.say("W2", Beat(SAID + 4, [], 2)), "W2") == [grants(SAID + 5, {FIRST + 1: 1})]


def test_a_lease_of_an_earlier_broker_is_adopted_when_its_client_returns() -> None:
    rig = BrokerRig()
    old = EPOCH - 1 << 32 | 5
    rig.say("W", msgspec.structs.replace(JOIN, held=[Held(old, "c", 1, True)]))
    assert sent(rig.say("W", Reports([Report(old, VALUE, 50)]), [b"value"]), "W") == []  # kept for the client
    rig.say("C", HELLO)

    assert rig.say("C", *submit(1)) == [
        Send("C", Ended([Outcome(1, VALUE, 50)]), [b"value"]),
    ]


def test_a_lease_of_an_earlier_broker_that_nobody_claims_is_stopped() -> None:
    rig = BrokerRig()
    old = EPOCH - 1 << 32 | 5
    rig.say("W", msgspec.structs.replace(JOIN, held=[Held(old, "c", 1, True)]))

    for _ in range(70):
        rig.turn(after=1.0)
        stopped = sent(rig.say("W", Beat(SAID + 1, [old], 2)), "W")
        if stopped:
            break
    assert stopped[-1] == Revoke([old], force=True)


# ---------------------------------------------------------------- cancel and goodbye


def test_a_queued_task_is_cancelled_at_once() -> None:
    rig = BrokerRig()
    rig.say("C", HELLO)
    rig.say("C", *submit(1))

    assert rig.say("C", Cancel([1])) == [Send("C", Ended([Outcome(1, CANCELLED)]), [b""])]


def test_a_leased_task_is_cancelled_when_its_worker_gives_it_back(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))

    assert rig.say("C", Cancel([1])) == [Send("W", Revoke([FIRST]))]
    assert rig.say("W", Return([FIRST], SAID + 2)) == [Send("C", Ended([Outcome(1, CANCELLED)]), [b""])]


def test_a_task_that_has_begun_is_not_cancelled(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    rig.say("C", Cancel([1]))

    assert rig.say("W", Began([FIRST])) == [Send("C", Began([1]))]
    assert rig.say("C", Cancel([1])) == [Send("C", Began([1]))]
    assert sent(rig.say("W", Reports([Report(FIRST, VALUE, 50)]), [b"value"]), "C") == [
        Ended([Outcome(1, VALUE, 50)])
    ]


def test_goodbye_stops_what_runs_and_forgets_the_client(rig: BrokerRig) -> None:
    rig.say("C", *submit(1, 2, 3))

    assert rig.say("C", Bye()) == [Send("W", Revoke([FIRST, FIRST + 1], force=True))]
    assert rig.say("C", Ask([1])) == [Send("C", Stranger())]


def test_a_client_that_stays_away_is_told_of_and_dropped_after_the_grace(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    told: list[Any] = []
    for _ in range(int(LIMITS.client_lost_after_s + LIMITS.client_grace_s) + 2):
        told += [action for action in rig.turn(after=1.0) if isinstance(action, Tell)]
        told += [action for action in rig.say("W", Beat(SAID + 2, [FIRST], 2)) if isinstance(action, Tell)]

    assert [tell.text for tell in told] == [
        "client host-c/11 is away",
        "client host-c/11 did not come back: its 1 tasks are cancelled",
    ]
    assert rig.machine.clients == {}


def test_a_log_is_told_of_many_clients_that_are_gone_by_their_number(rig: BrokerRig) -> None:
    for number in range(249):  # and the one that is there
        rig.say(f"C{number}", msgspec.structs.replace(HELLO, session=f"c{number}"))
    told: list[str] = []
    for _ in range(int(LIMITS.client_lost_after_s + LIMITS.client_grace_s) + 30):
        told += [action.text for action in rig.turn(after=1.0) if isinstance(action, Tell)]
        rig.say("W", Beat(SAID + 2, [], 2))

    assert rig.machine.clients == {}
    assert sum(text.endswith("is away") for text in told) == LINES_MAX
    assert f"{250 - LINES_MAX} more clients are away" in told
    assert sum("did not come back: its 0" in text for text in told) == LINES_MAX
    assert f"{250 - LINES_MAX} more clients did not come back: their tasks are cancelled" in told
    assert len(told) == 2 * (LINES_MAX + 1)


@pytest.mark.parametrize(
    "question", [Look(), Why(1, 1), Pulse(1, 0)], ids=lambda question: type(question).__name__
)
def test_a_client_that_asks_anything_is_there(rig: BrokerRig, question: Any) -> None:
    rig.say("C", *submit(1))
    for _ in range(int(LIMITS.client_lost_after_s + LIMITS.client_grace_s) + 2):
        rig.turn(after=1.0)
        rig.say("W", Beat(SAID + 2, [FIRST], 2))
        rig.say("C", question)

    assert list(rig.machine.clients) == ["c"]


def test_a_worker_whose_large_message_goes_on_to_come_is_not_lost(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    for _ in range(2 * int(LIMITS.worker_lost_after_s)):
        rig.turn(after=1.0)
        rig.machine.coming("W", rig.now)
        rig.machine.coming("nobody", rig.now)

    assert list(rig.machine.workers) == ["w"]


def test_a_client_that_still_speaks_over_a_link_that_is_said_to_be_dead_is_not_given_up(
    rig: BrokerRig,
) -> None:
    rig.say("C", *submit(1))
    rig.machine.gone("C", rig.now)
    for _ in range(int(LIMITS.client_lost_after_s + LIMITS.client_grace_s) + 10):
        rig.turn(after=1.0)
        assert sent(rig.say("C", Pulse(1, 1)), "C") == [Stranger()], "it has to say Hello"

    assert list(rig.machine.clients) == ["c"]
    rig.say("D", msgspec.structs.replace(HELLO, number=2))
    rig.machine.gone("D", rig.now)
    rig.turn(after=LIMITS.client_lost_after_s + LIMITS.client_grace_s)
    rig.say("C", Pulse(2, 1))
    rig.turn(after=1.0)
    assert list(rig.machine.clients) == [], "what comes over an older one is old"


def test_who_says_goodbye_over_a_link_that_is_said_to_be_dead_is_gone(rig: BrokerRig) -> None:
    rig.say("C", *submit(1))
    rig.machine.gone("C", rig.now)
    rig.say("C", Bye())

    assert list(rig.machine.clients) == []
    assert not rig.machine.lost_links


def test_a_pulse_is_answered_with_the_slots_of_the_farm(rig: BrokerRig) -> None:
    assert rig.say("C", Pulse(5, 0)) == [Send("C", Echo(5, 2))]


def test_tunnels_go_with_the_link_of_their_worker(rig: BrokerRig) -> None:
    rig.say(("W", 3), msgspec.structs.replace(HELLO, session="n"))
    rig.machine.gone("W", rig.now)

    assert rig.say(("W", 3), Pulse(1, 0)) == [Send(("W", 3), Stranger())]


def test_a_draining_worker_is_granted_nothing(rig: BrokerRig) -> None:
    rig.say("W", Room(0, draining=True))

    assert rig.say("C", *submit(1)) == []
    assert rig.say("W", Beat(SAID + 1, [], 2)) == []
