"""Calls with a memory limit, as the broker and the worker treat them."""

from __future__ import annotations

from tests.core.rigs import HELLO, JOIN, SETUP, BrokerRig
from tests.core.test_timing import Rig
from zfarm.messages import (
    LOST,
    MEMORY,
    VALUE,
    Call,
    Done,
    Ended,
    Fate,
    Grants,
    Lease,
    Left,
    LimitChild,
    Report,
    Reports,
    Send,
    Submit,
)


def limited(lease: int, memory_bytes: int = 1000, timeout_us: int = 0) -> Lease:
    return Lease(lease, 0, lease, 0, 0, 0, 10, timeout_us, memory_bytes)


def watched(rig: Rig) -> list[tuple[int, int]]:
    return [(a.child, a.memory_bytes) for a in rig.actions if isinstance(a, LimitChild)]


def begun(rig: Rig, *leases: Lease) -> int:
    """The child in which the first of these runs, of one slot."""
    rig.grant(*leases)
    (run,) = rig.runs()
    rig.worker.child_starts(run.child, 1, rig.now)
    rig.turn()
    return run.child


def test_a_call_with_a_limit_travels_alone_and_is_watched_while_it_runs() -> None:
    rig = Rig()
    rig.grant(limited(1), limited(2), Lease(3, 0, 3, 0, 0, 0, 10))
    (run,) = rig.runs()
    assert [(call.timed, call.memory_bytes) for call in run.run.calls] == [(True, 1000)]
    assert not watched(rig), "it has not started"

    rig.worker.child_starts(run.child, 1, rig.now)
    rig.turn()
    assert watched(rig) == [(run.child, 1000)]
    assert rig.worker.deadline > rig.now, "it has a limit, and all the time it wants"

    rig.worker.child_reported(run.child, [Done(1, VALUE, 5)], [b"v"], rig.now)
    rig.turn()
    assert watched(rig) == [(run.child, 0)]


def test_what_has_too_much_is_killed_and_reported() -> None:
    rig = Rig()
    child = begun(rig, limited(1, 200_000_000))
    rig.worker.child_overshot(child, Left("loading all of it", 250_000_000), rig.now)
    rig.turn()

    assert rig.kinds() == [MEMORY]
    assert rig.killed() == [child]
    (report,) = [
        report
        for action in rig.actions
        if isinstance(action, Send) and isinstance(action.message, Reports)
        for report in action.message.reports
    ]
    assert report.fate is not None
    assert "200.0 MB" in report.fate.text
    assert "250.0 MB" in report.fate.text
    assert (report.fate.stderr, report.fate.peak_bytes) == ("loading all of it", 250_000_000)

    rig.worker.child_died(child, 1, 9, 0, "killed", rig.now)
    rig.turn()
    assert LOST not in rig.kinds(), "it has ended already"


def test_a_result_in_the_same_turn_is_better_and_the_next_call_is_not_blamed() -> None:
    rig = Rig()
    child = begun(rig, limited(1))
    rig.worker.child_overshot(child, Left("", 2000), rig.now)
    rig.worker.child_reported(child, [Done(1, VALUE, 5)], [b"v"], rig.now)
    rig.turn()
    assert rig.kinds() == [VALUE]

    rig.grant(Lease(2, 0, 2, 0, 0))
    rig.worker.child_overshot(child, Left("", 2000), rig.now)
    rig.turn()
    assert not rig.killed()


def test_the_limit_is_not_blamed_for_what_the_kernel_kills_below_it() -> None:
    for left, told in (
        (
            Left("", 10, "the kernel killed something"),
            "killed, though it was below its memory limit of 0.0 MB",
        ),
        (Left("", 0, "the kernel killed something"), "killed"),
        (Left("", 10), "killed, with a memory limit of 0.0 MB: code that is refused memory may crash"),
    ):
        rig = Rig()
        child = begun(rig, limited(1))
        rig.worker.child_died(child, 1, 9, 0, "killed", rig.now, left)
        rig.turn()
        (fate,) = [
            report.fate
            for action in rig.actions
            if isinstance(action, Send) and isinstance(action.message, Reports)
            for report in action.message.reports
        ]
        assert fate is not None
        assert fate.text == told


def test_a_death_counts_as_that_only_if_something_says_so() -> None:
    for memory, left, kind in (
        (1000, Left("std::bad_alloc", 10, "", True), MEMORY),
        (0, Left("std::bad_alloc", 10, "", True), LOST),
        (1000, Left("", 1001, "the kernel killed something"), MEMORY),
        (1000, Left("", 10, "the kernel killed something"), LOST),
        (1000, Left("", 10), LOST),
    ):
        rig = Rig()
        child = begun(rig, limited(1, memory, timeout_us=60_000_000))
        rig.worker.child_died(child, 1, 6, 0, "killed by SIGABRT", rig.now, left)
        rig.turn()
        assert rig.kinds() == [kind], (memory, left)


def test_the_broker_passes_the_limit_on_and_does_not_run_it_again() -> None:
    rig = BrokerRig()
    rig.say("c", HELLO)
    rig.say("w", JOIN)
    call = Call(1, 0, 0, memory_bytes=5000)
    actions = rig.say("c", Submit([call], ["f"], 1, [], 1), [b"function", SETUP, b"body"])
    (grants,) = [a.message for a in actions if isinstance(a, Send) and isinstance(a.message, Grants)]
    (lease,) = grants.leases
    assert lease.memory_bytes == 5000

    fate = Fate("h", "h/1", 9, 0, "stopped at its memory limit", "", 6000)
    actions = rig.say("w", Reports([Report(lease.lease, MEMORY, 0, fate)]), [b""])
    (ended,) = [a.message for a in actions if isinstance(a, Send) and isinstance(a.message, Ended)]
    assert [(outcome.kind, outcome.deaths) for outcome in ended.outcomes] == [(MEMORY, (fate,))]
