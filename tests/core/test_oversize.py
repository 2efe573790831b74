"""What is larger than the broker takes is not said to it, and costs its own call alone."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from tests.core.rigs import (
    EPOCH,
    FIRST,
    HELLO,
    LIMITS,
    SETUP,
    BrokerRig,
    ClientRig,
    WorkerRig,
    sent,
    submit,
    welcome,
)
from zfarm.endings import ending
from zfarm.errors import TooLarge
from zfarm.messages import ERROR, OVERSIZED, VALUE, Done, Reports, Resolve, Submit, Unknown, Welcome
from zfarm.settings import Settings

MOST = 1000
NARROW = structs.replace(welcome(1, 2), blob_bytes=MOST)
LARGE = bytes(MOST + 1)


def oversized(actions: Sequence[object]) -> list[Resolve]:
    return [one for one in actions if isinstance(one, Resolve) and one.outcome.kind == OVERSIZED]


def test_a_broker_says_what_it_takes() -> None:
    rig = BrokerRig(Settings(payload_bytes_max=MOST))

    (said,) = sent(rig.say("C", HELLO), "C")
    assert isinstance(said, Welcome)
    assert said.blob_bytes == MOST


def test_a_call_that_was_submitted_before_the_welcome_ends_alone_and_says_why() -> None:
    rig = ClientRig()
    rig.submit("before")
    rig.machine.submit("large", "f", b"function", SETUP, LARGE)
    rig.submit("after")
    rig.turn()
    actions = rig.say(NARROW)

    (said,) = oversized(actions)
    assert said.token == "large"
    (submit,) = [one for one in sent(actions) if isinstance(one, Submit)]
    assert [call.task for call in submit.calls] == [1, 3]
    error = ending("f", said.outcome)
    assert isinstance(error, TooLarge)
    for word in ("1,001 bytes", "at most 1,000", "ZFARM_PAYLOAD_BYTES_MAX", "the call"):
        assert word in str(error)


def test_a_function_and_a_setup_are_blobs_too() -> None:
    rig = ClientRig()
    rig.machine.submit("a", "f", LARGE, SETUP, b"body")
    rig.machine.submit("b", "f", LARGE, SETUP, b"body")
    rig.machine.submit("c", "f", b"function", LARGE, b"body")
    rig.machine.submit("d", "f", bytes(600), bytes(600), bytes(600))
    rig.turn()
    actions = rig.say(NARROW)

    ends = {one.token: one.outcome.deaths[0].text for one in oversized(actions)}
    assert ends.keys() == {"a", "b", "c"}
    assert "its function" in ends["a"]
    assert "its initializer" in ends["c"]
    (submit,) = [one for one in sent(actions) if isinstance(one, Submit)]
    assert [call.task for call in submit.calls] == [4], "no blob of this one is too large"


def test_a_call_that_a_new_broker_does_not_take_ends_when_it_is_to_be_submitted_again() -> None:
    rig = ClientRig().connected()
    rig.machine.submit("large", "f", b"function", SETUP, LARGE)
    rig.turn()
    rig.say(structs.replace(NARROW, epoch=EPOCH + 1))

    assert [one.token for one in oversized(rig.say(Unknown([1], 1)))] == ["large"]
    assert rig.machine.open == 0


def test_a_result_that_its_broker_does_not_take_is_reported_in_words() -> None:
    rig = WorkerRig()
    rig.turn()
    rig.say(NARROW)
    rig.granted(1, {101: 1, 102: 2})
    rig.machine.child_reported(1, [Done(1, VALUE, 50)], [LARGE], rig.now)
    rig.machine.child_reported(2, [Done(1, VALUE, 50)], [bytes(MOST)], rig.now)
    (reports,) = [one for one in sent(rig.turn()) if isinstance(one, Reports)]

    first, second = reports.reports
    assert (first.kind, first.run_us, second.kind) == (OVERSIZED, 50, VALUE)
    assert first.fate is not None
    assert "1,001 bytes, at most 1,000 may travel" in first.fate.text


def test_results_that_are_owed_are_measured_again_when_another_broker_welcomes() -> None:
    rig = WorkerRig().joined()
    rig.granted(1, {101: 1, 102: 2})
    rig.machine.child_reported(1, [Done(1, VALUE, 50)], [LARGE], rig.now)
    rig.machine.child_reported(2, [Done(1, ERROR, 50)], [b"small"], rig.now)
    rig.turn()
    again = structs.replace(NARROW, epoch=EPOCH + 1)
    actions = rig.say(again)

    (reports,) = [one for one in sent(actions) if isinstance(one, Reports)]
    assert [one.kind for one in reports.reports] == [OVERSIZED, ERROR]
    assert LIMITS.payload_bytes_max > MOST


def test_what_a_worker_reports_so_is_the_outcome_of_the_task() -> None:
    broker, worker = BrokerRig(), WorkerRig()
    worker.turn()
    worker.say(NARROW)
    worker.granted(1, {101: 1})
    worker.machine.child_reported(1, [Done(1, VALUE, 50)], [LARGE], worker.now)
    (reports,) = [one for one in sent(worker.turn()) if isinstance(one, Reports)]
    broker.met()
    broker.say("C", *submit(1))
    broker.say("W", Reports([structs.replace(reports.reports[0], lease=FIRST)]), [b""])

    client = broker.machine.clients["c"]
    assert [task.outcome.kind for task in client.tasks.values() if task.outcome] == [OVERSIZED]
    assert broker.machine.counts[OVERSIZED] == 1
