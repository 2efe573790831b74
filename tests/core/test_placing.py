"""The broker's and the worker's part in resources and labels: who may run what, and who waits for what."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.rigs import EPOCH, FIRST, HELLO, LIMITS, SETUP, VERSIONS, BrokerRig, WorkerRig, sent
from zfarm.core.broker import Broker
from zfarm.messages import (
    LOST,
    REFUSED,
    VALUE,
    Append,
    Blob,
    Call,
    Cancel,
    Demand,
    Ended,
    Fate,
    Grants,
    Held,
    Hello,
    Join,
    Lease,
    Report,
    Reports,
    Return,
    Revoke,
    RunCalls,
    StopChild,
    Submit,
)
from zfarm.settings import Settings

GPU = Demand((("gpu", 1000),))
TWO = Demand((("gpu", 2000),))
ZONE = Demand((), ("zone=a",))


def demanding(*tasks: tuple[int, Demand | None], priority: int = 0) -> tuple[Submit, list[Blob]]:
    """These tasks of one function, each with its demand."""
    demands = list(dict.fromkeys(demand for _, demand in tasks if demand is not None))
    calls = [
        Call(task, 0, 0, priority=priority, demand=demands.index(demand) + 1 if demand is not None else 0)
        for task, demand in tasks
    ]
    bodies: list[Blob] = [b"body %d" % task for task, _ in tasks]
    return Submit(calls, ["f"], 1, [], 1, demands), [b"function", SETUP, *bodies]


def join(name: str = "w", slots: int = 2, gpus: int = 0, labels: tuple[str, ...] = (), *held: Held) -> Join:
    resources = {"gpu": gpus} if gpus else {}
    return Join(name, VERSIONS, slots, f"host-{name}", 22, list(held), resources, list(labels))


def named(session: str, *labels: str) -> Join:
    """A worker whose session is as long as they are."""
    return Join(session, VERSIONS, 2, "host", 22, [], {}, list(labels))


def granted(actions: list[Any], peer: str = "W") -> list[int]:
    """The tasks that this turn grants to this worker."""
    grants = [message for message in sent(actions, peer) if isinstance(message, Grants)]
    return [lease.task for message in grants for lease in message.leases]


def met(*joins: tuple[str, Join], limits: Settings = LIMITS) -> BrokerRig:
    rig = BrokerRig(limits)
    rig.say("C", HELLO)
    for peer, message in joins or (("W", join(gpus=2000, slots=4)),):
        rig.say(peer, message)
    return rig


def report(lease: int, kind: int = VALUE, run_us: int = 50_000) -> tuple[Reports, list[Blob]]:
    fate = Fate("h", "w", 9, 0, "killed") if kind == LOST else None
    return Reports([Report(lease, kind, run_us, fate)]), [b"v"]


def test_a_worker_gets_no_more_than_its_resources_allow_and_the_rest_as_they_come_free() -> None:
    rig = met()

    assert granted(rig.say("C", *demanding((1, GPU), (2, GPU), (3, GPU), (4, None)))) == [1, 2, 4]
    assert granted(rig.say("W", *report(FIRST))) == [3]


def test_a_call_that_does_not_fit_holds_nobody_up_and_comes_when_it_fits() -> None:
    rig = met()
    rig.say("C", *demanding((1, GPU)))

    assert granted(rig.say("C", *demanding((2, TWO), (3, GPU)))) == [3]
    assert granted(rig.say("W", *report(FIRST))) == []
    assert granted(rig.say("W", *report(FIRST + 1))) == [2]


def test_a_call_goes_only_where_its_labels_are() -> None:
    rig = met(("W", join("w", 4)), ("V", join("v", 1, 0, ("zone=a",))))

    actions = rig.say("C", *demanding((1, ZONE), (2, ZONE), (3, None)))
    assert granted(actions, "V") == [1]
    assert granted(actions, "W") == [3]
    assert granted(rig.say("V", *report(FIRST)), "V") == [2]


def test_what_nobody_has_waits_until_somebody_comes_with_it() -> None:
    rig = met(("W", join()))

    assert granted(rig.say("C", *demanding((1, GPU), (2, None)))) == [2]
    assert granted(rig.say("V", join("v", 1, 1000)), "V") == [1]


@pytest.mark.parametrize("kind", [VALUE, LOST])
def test_resources_come_back_whatever_the_end(kind: int) -> None:
    rig = met(("W", join(gpus=1000)))
    rig.say("C", *demanding((1, GPU), (2, GPU)))

    again = granted(rig.say("W", *report(FIRST, kind)))
    assert again == ([2] if kind == VALUE else [1])


def test_resources_come_back_when_a_lease_is_returned_cancelled_or_its_worker_lost() -> None:
    rig = met(("W", join(gpus=1000)))
    rig.say("C", *demanding((1, GPU), (2, GPU)))

    assert granted(rig.say("W", Return([FIRST], 2))) == [1]
    assert granted(rig.say("C", Cancel([1], True))) == [2]
    for _ in range(12):
        rig.turn(0.5)
    assert not rig.machine.workers
    assert granted(rig.say("V", join("v", 1, 1000)), "V") == [2]


def test_within_a_client_priority_counts_whatever_the_demand_and_age_among_equals() -> None:
    rig = met(("W", join(slots=1, gpus=1000)))
    rig.say("C", *demanding((1, None)))
    rig.say("C", *demanding((2, GPU), (3, None)))
    rig.say("C", *demanding((4, None), priority=5))
    rig.say("C", *demanding((5, GPU), priority=3))

    order = [granted(rig.say("W", *report(FIRST + n))) for n in range(4)]
    assert order == [[4], [5], [2], [3]]


def test_clients_take_turns_with_and_without_demands() -> None:
    rig = met(("W", join(slots=1, gpus=1000)))
    rig.say("D", Hello("d", VERSIONS))
    rig.say("C", *demanding((1, None)))
    rig.say("C", *demanding((2, None), (3, None), (4, None)))
    rig.say("D", *demanding((11, GPU), (12, GPU), (13, GPU)))

    order = [granted(rig.say("W", *report(FIRST + n)))[0] for n in range(6)]
    assert [sorted(order[n : n + 2]) for n in (0, 2, 4)] == [[2, 11], [3, 12], [4, 13]]


def test_short_calls_are_not_granted_ahead_of_one_that_needs_this_very_worker() -> None:
    rig = met(("W", join(slots=1, gpus=1000)))
    rig.say("C", *demanding((1, None)))
    rig.say("W", *report(FIRST, run_us=10))  # such calls are known to be short now
    assert granted(rig.say("C", *demanding(*((n, None) for n in range(2, 5))))) == [2, 3, 4]
    rig.say("D", Hello("d", VERSIONS))

    assert granted(rig.say("D", *demanding((11, GPU)))) == []
    assert granted(rig.say("C", *demanding((5, None), (6, None)))) == []
    for n in range(2):
        assert granted(rig.say("W", *report(FIRST + 1 + n, run_us=10))) == []
    assert granted(rig.say("W", *report(FIRST + 3, run_us=10))) == [11, 5, 6]  # its client has had less


def test_a_client_may_wait_with_so_many_demands_only() -> None:
    rig = met(("W", join()), limits=Settings(client_demands_max=2))
    several = [(n, Demand((("gpu", n),))) for n in (1, 2, 3)]

    (ended,) = sent(rig.say("C", *demanding(*several)), "C")
    assert isinstance(ended, Ended)
    assert [(one.task, one.kind) for one in ended.outcomes] == [(3, REFUSED)]
    assert "ZFARM_CLIENT_DEMANDS_MAX" in ended.outcomes[0].deaths[0].text
    assert sent(rig.say("C", *demanding((4, several[0][1]))), "C") == []


# ---------------------------------------------------------------- after a broker's restart


def test_a_lease_from_before_the_restart_takes_what_it_took() -> None:
    rig = BrokerRig()
    old = 3 << 32 | 5
    rig.say("C", HELLO)
    rig.say("W", join("w", 2, 1000, (), Held(old, "c", 1, True, (("gpu", 1000),))))

    assert granted(rig.say("C", *demanding((2, GPU)))) == []  # nobody knows yet what task 1 was
    assert granted(rig.say("C", *demanding((1, GPU)))) == []
    assert granted(rig.say("W", *report(old))) == [2]


def test_a_lease_that_has_ended_before_the_restart_takes_nothing() -> None:
    rig = BrokerRig()
    old, running = 3 << 32 | 5, 3 << 32 | 6
    rig.say("C", HELLO)
    rig.say("C", *demanding((1, GPU), (2, GPU)))
    takes = (("gpu", 1000),)

    rig.say("W", join("w", 2, 1000, (), Held(old, "c", 1, True), Held(running, "c", 2, True, takes)))
    assert granted(rig.say("W", *report(old))) == []
    assert granted(rig.say("C", *demanding((3, GPU)))) == []
    assert granted(rig.say("W", *report(running))) == [3]


def test_a_lease_whose_client_never_comes_back_gives_its_resources_back() -> None:
    rig = BrokerRig()
    rig.say("D", Hello("d", VERSIONS))
    rig.say("W", join("w", 2, 1000, (), Held(3 << 32 | 5, "c", 1, True, (("gpu", 1000),))))
    rig.say("D", *demanding((1, GPU)))

    got: list[int] = []
    for _ in range(16):  # until the grace of that client is over
        got += granted(rig.turn(4.0))
        rig.say("W", join("w", 2, 1000))
        rig.say("D", Hello("d", VERSIONS))
    assert got == [1]


def test_a_worker_that_claims_to_hold_more_than_it_has_changes_no_sum() -> None:
    rig = met(("W", join("w", 4, 1000, (), *(Held(n, "x", n, True, (("gpu", 800),)) for n in (1, 2, 3)))))

    assert granted(rig.say("C", *demanding((1, GPU)))) == []


def test_the_journal_keeps_what_a_task_demands() -> None:
    first = Broker(EPOCH, VERSIONS, 0.0, LIMITS, journal=True)
    first.receive("C", HELLO, (), 0.0)
    first.receive("C", *demanding((1, GPU)), 0.0)
    (append,) = [action for action in first.advance(0.0) if isinstance(action, Append)]

    second = Broker(EPOCH + 1, VERSIONS, 0.0, LIMITS, journal=True)
    second.restore(append.records, 0.0)
    second.check()
    second.receive("W", join(), (), 0.1)
    second.advance(0.1)
    assert granted(second.advance(10.0)) == []
    second.receive("V", join("v", 1, 1000), (), 10.1)
    assert granted(second.advance(10.1), "V") == [1]


# ---------------------------------------------------------------- the worker's part


def test_a_worker_starts_nothing_before_the_child_that_had_the_resource_is_gone() -> None:
    rig = WorkerRig()
    rig.machine.resources = {"gpu": 1000}
    rig.joined()
    payload: list[Blob] = [b"function", SETUP, b"body"]
    one = Grants(1, [Lease(5, 0, 1, 0, 0, demand=1)], ["c"], 1, 1, [GPU])
    two = Grants(2, [Lease(6, 0, 2, 0, 0, demand=1), Lease(7, 0, 3, 0, 0)], ["c"], 1, 1, [GPU])

    (run,) = [action for action in rig.say(one, payload) if isinstance(action, RunCalls)]
    rig.say(Revoke([5], force=True))
    rig.machine.child_took_back(run.child, 1, rig.now)
    assert StopChild(run.child, True) in rig.turn()
    runs = [action for action in rig.say(two, [*payload, b"body"]) if isinstance(action, RunCalls)]
    assert [len(action.run.calls) for action in runs] == [1]  # the call that demands nothing
    after = [action for action in rig.died(run.child, 1) if isinstance(action, RunCalls)]
    assert len(after) == 1


def test_a_call_that_waits_for_a_resource_can_be_revoked() -> None:
    rig = WorkerRig()
    rig.joined()
    grants = Grants(1, [Lease(5, 0, 1, 0, 0, demand=1)], ["c"], 1, 1, [GPU])
    rig.say(grants, [b"function", SETUP, b"body"])

    (returned,) = sent(rig.say(Revoke([5])))
    assert isinstance(returned, Return)
    assert returned.leases == [5]


def test_each_worker_has_a_label_of_its_own_that_none_can_claim() -> None:
    rig = BrokerRig()
    rig.say("C", HELLO)
    rig.say("V", named("aaaaaaaa1111", "zfarm.worker=bbbbbbbb"))
    rig.say("W", named("bbbbbbbb2222"))
    actions = rig.say("C", *demanding(*((n, Demand((), ("zfarm.worker=bbbbbbbb",))) for n in (1, 2))))

    assert granted(actions, "W") == [1, 2]
    assert granted(actions, "V") == []
