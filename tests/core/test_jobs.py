"""Jobs at the broker: who speaks for one, what whoever attaches is told, and that no number comes twice."""

from __future__ import annotations

import dataclasses

import pytest

from tests.core.test_durable import Rig, V, restored, submit
from zfarm.core.broker import Broker
from zfarm.core.client import Client
from zfarm.messages import (
    VALUE,
    Ask,
    Attach,
    Attached,
    Booked,
    Bye,
    Ended,
    Forget,
    Hello,
    JobTask,
    Pulse,
    Refused,
    Report,
    Reports,
    Send,
    Stranger,
    TakenOver,
    Welcome,
)
from zfarm.settings import settings


def hello(life: str, session: str = "first") -> Hello:
    return Hello(session, V, "host", 1, "", "night", life)


def founded() -> Rig:
    """A broker with the job ``night`` of two tasks."""
    rig = Rig()
    rig.say("1", hello("first"))
    rig.say("1", *submit(1, 2))
    return rig


def ended(rig: Rig, peer: str) -> None:
    """That job has ended, and the program behind this peer has left."""
    rig.say("w", Reports([Report(lease, VALUE) for lease in rig.leases()]), [b"v", b"v"])
    rig.say(peer, Forget([1, 2]))
    rig.say(peer, Bye())


def test_who_attaches_hears_of_all_tasks_and_who_had_the_job_before_is_a_stranger() -> None:
    rig = founded()

    rig.say("2", Attach("night", V, "second"))
    assert [task.task for task in rig.heard(Attached)[-1].tasks] == [1, 2]
    rig.say("1", *submit(3))
    assert rig.sent[-1] == ("1", Stranger())
    rig.say("1", hello("first"))
    assert rig.heard(Refused)[-1].code == "JobTakenOver"
    rig.say("2", hello("second"))
    assert isinstance(rig.sent[-1][1], Welcome)
    rig.say("2", Attach("night", V, "second"))
    assert [task.task for task in rig.heard(Attached)[-1].tasks] == [1, 2], (
        "what came after is not of the job"
    )


def test_who_speaks_for_a_job_is_known_to_the_next_broker() -> None:
    rig = founded()
    rig.say("2", Attach("night", V, "second"))

    after = Rig(restored(rig.journal))
    after.say("1", hello("first"))
    assert after.heard(Refused)[-1].code == "JobTakenOver"
    after.say("2", hello("second"))
    assert after.sent[-1][0] == "2"
    assert isinstance(after.sent[-1][1], Welcome)


def test_no_number_comes_twice_whatever_was_forgotten() -> None:
    rig = founded()
    lease, other = rig.leases()
    rig.say("w", Reports([Report(lease, VALUE), Report(other, VALUE)]), [b"v", b"v"])
    rig.say("1", Forget([2]))  # a worker that is cut off may still run what was forgotten

    rig.say("2", Attach("night", V, "second"))
    first = rig.heard(Attached)[-1].first
    assert first > 2
    rig.say("2", hello("second"))
    rig.say("2", *submit(first))
    rig.say("3", Attach("night", V, "third"))
    second = rig.heard(Attached)[-1].first
    assert second > first

    after = Rig(restored(rig.journal))
    after.say("4", Attach("night", V, "fourth"))
    assert after.heard(Attached)[-1].first > second


def test_who_asked_twice_does_not_take_back_what_another_has_taken_over_meanwhile() -> None:
    rig = founded()
    rig.say("2", Attach("night", V, "second"))
    rig.say("3", Attach("night", V, "third"))

    rig.say("2", Attach("night", V, "second"))
    assert rig.heard(Refused)[-1].code == "JobTakenOver"
    after = Rig(restored(rig.journal))
    after.say("2", Attach("night", V, "second"))
    assert after.heard(Refused)[-1].code == "JobTakenOver"
    after.say("3", hello("third"))
    assert isinstance(after.sent[-1][1], Welcome)


def test_a_second_answer_to_the_same_program_changes_nothing() -> None:
    rig = founded()
    rig.say("2", Attach("night", V, "second"))
    rig.say("2", Attach("night", V, "second"))

    one, two = rig.heard(Attached)
    assert one == two


def test_who_had_a_job_hears_so_also_when_that_has_ended_since() -> None:
    rig = founded()
    rig.say("2", Attach("night", V, "second"))
    rig.say("2", hello("second"))
    ended(rig, "2")

    before = len(rig.sent)
    rig.say("1", hello("first"))
    assert [(peer, message.code) for peer, message in rig.sent[before:]] == [("1", "JobTakenOver")]


@pytest.mark.parametrize("gone", ["second", "third"])
def test_a_program_whose_job_has_ended_does_not_take_over_a_new_one_of_the_same_name(gone: str) -> None:
    rig = founded()
    rig.say("2", Attach("night", V, "second"))
    rig.say("3", Attach("night", V, "third"))
    rig.say("3", hello("third"))
    ended(rig, "3")
    rig.say("4", hello("new", "new"))
    rig.say("4", *submit(3))

    rig.say("late", Attach("night", V, gone))  # over a link that was read after all of that
    assert rig.sent[-1][0] == "late"
    assert rig.heard(Refused)[-1].code == "JobUnknown"
    rig.say("4", Ask([3]))
    assert not [message for peer, message in rig.sent if peer == "4" and isinstance(message, Stranger)]
    rig.say("5", Attach("night", V, "fifth"))
    assert [task.task for task in rig.heard(Attached)[-1].tasks] == [3]


def test_what_comes_over_the_link_of_who_had_a_job_before_is_no_life_of_it() -> None:
    rig = founded()
    rig.say("2", Attach("night", V, "second"))
    before = rig.broker.clients["first"].heard_at
    rig.now += 5.0
    rig.say("1", Pulse(1, 2))
    assert rig.broker.clients["first"].heard_at == before


def test_a_client_takes_over_when_it_has_heard_of_all_tasks_and_once() -> None:
    limits = dataclasses.replace(settings, batch_calls_max=1)
    broker = Broker(1, V, 0.0, limits)
    broker.receive("1", hello("first"), (), 0.0)
    broker.receive("1", *submit(1, 2, 3), 0.0)
    broker.receive("2", Attach("night", V, "second"), (), 0.0)
    answers = [
        action.message
        for action in broker.advance(0.0)
        if isinstance(action, Send) and isinstance(action.message, Attached)
    ]
    assert len(answers) == 3
    client = Client("second", V, "host", 2, "", 0.0, limits, job="night", attach=True)

    client.receive("broker", answers[2], (), 0.0)  # one was lost on the way; it has asked again
    client.receive("broker", answers[1], (), 0.0)
    assert not any(isinstance(action, TakenOver) for action in client.advance(0.0))
    for answer in answers:
        client.receive("broker", answer, (), 0.0)
    (taken,) = [action for action in client.advance(0.0) if isinstance(action, TakenOver)]
    assert sorted(task.task for task in taken.tasks) == [1, 2, 3]

    client.adopt(taken.session, [(JobTask(n, "f"), n) for n in (1, 2, 3)])
    assert client.submit("token", "f", b"f", b"s", b"b") == answers[0].first
    assert [action.message for action in client.advance(0.0) if isinstance(action, Send)] == [
        Hello("first", V, "host", 2, "", "night", "second", number=2)
    ]


def test_outcomes_that_nobody_has_forgotten_are_shown_to_who_attaches() -> None:
    rig = founded()
    assert [message.tasks for message in rig.heard(Booked)] == [[1, 2]]
    rig.say("w", Reports([Report(rig.leases()[0], VALUE)]), [b"v"])
    shown = len(rig.heard(Ended))

    rig.say("2", Attach("night", V, "second"))
    rig.say("2", hello("second"))
    assert len(rig.heard(Ended)) == shown, "not before it asks"
    rig.say("2", Ask([1, 2]))
    assert [outcome.task for outcome in rig.heard(Ended)[-1].outcomes] == [1]
