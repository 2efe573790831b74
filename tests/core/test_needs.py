"""Files that calls need, as broker and client pass them on: only to whom they belong."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from tests.core.rigs import (
    FIRST,
    HELLO,
    JOIN,
    LIMITS,
    SETUP,
    START,
    BrokerRig,
    ClientRig,
    WorkerRig,
    grants,
    sent,
    submit,
)
from zfarm.core.lacking import Lacking
from zfarm.messages import (
    MISSING,
    Action,
    Chunk,
    Chunks,
    Fate,
    Give,
    Grants,
    Need,
    Report,
    Reports,
    RunCalls,
    Send,
    Submit,
    Want,
    Wanted,
)

NEED = Need(bytes(32), 100)
WANT = Want(FIRST, [Wanted(NEED.digest, NEED.size, 0, 100)])


def needy(*tasks: int) -> tuple[Submit, list[Any]]:
    message, payload = submit(*tasks)
    calls = [structs.replace(call, needs=1) for call in message.calls]
    return structs.replace(message, calls=calls, needs=[(NEED,)]), list(payload)


def met() -> BrokerRig:
    rig = BrokerRig().met()
    rig.say("other client", structs.replace(HELLO, session="c2"))
    return rig


def test_a_worker_is_told_what_a_call_needs_and_asks_its_client_through_the_broker() -> None:
    rig = met()
    (granted,) = sent(rig.say("C", *needy(1)), "W")
    assert isinstance(granted, Grants)
    assert granted.needs == [(NEED,)]
    assert granted.leases[0].needs == 1

    (asked,) = sent(rig.say("W", WANT), "C")
    assert (asked.lease, asked.task, asked.host, asked.wants) == (FIRST, 1, "host-w", WANT.wants)
    answer = Chunks(FIRST, 1, [Chunk(NEED.digest, NEED.size, 0, bytes(32))])
    assert sent(rig.say("C", answer, [bytes(100)]), "W") == [answer]


def test_a_worker_can_ask_for_nothing_that_its_leases_do_not_need() -> None:
    rig = met()
    rig.say("C", *needy(1))
    rig.say("V", structs.replace(JOIN, session="v"))
    rig.say("C", *submit(2))

    for peer, message in (
        ("V", WANT),
        ("W", structs.replace(WANT, lease=99)),
        ("W", structs.replace(WANT, lease=2)),
    ):
        actions = rig.say(peer, message)
        assert not sent(actions, "C")
        assert not sent(actions, "other client")
    assert rig.machine.refusals["files"] == 3


def test_a_client_can_send_files_to_no_call_but_its_own() -> None:
    rig = met()
    rig.say("C", *needy(1))
    forged = Chunks(FIRST, 1, [Chunk(NEED.digest, NEED.size, 0, bytes(32))])

    assert not sent(rig.say("other client", forged, [bytes(100)]), "W")
    assert not sent(rig.say("C", structs.replace(forged, lease=FIRST + 1), [bytes(100)]), "W")


def test_a_call_whose_file_cannot_be_had_ends_and_nobody_is_blamed() -> None:
    rig = met()
    rig.say("C", *needy(1))
    fate = Fate("host-w", "host-w/22", text="it is gone")

    (ended,) = sent(rig.say("W", Reports([Report(FIRST, MISSING, fate=fate)]), [b""]), "C")
    (outcome,) = ended.outcomes
    assert outcome.kind == MISSING
    assert outcome.deaths[-1].text == "it is gone"


def test_a_client_gives_only_for_calls_that_are_open_and_need_files() -> None:
    rig = ClientRig().connected()
    plain = rig.submit("plain")
    rig.turn()

    def gives(task: int) -> list[Give]:
        want = structs.replace(WANT, task=task, host="h")
        return [action for action in rig.say(want) if isinstance(action, Give)]

    assert not gives(plain)
    assert not gives(77)
    needing = rig.machine.submit("token", "f", b"function", b"", b"body", needs=(NEED,))
    rig.turn()
    (give,) = gives(needing)
    assert (give.token, give.lease, give.wants[0].upto) == ("token", FIRST, 100)


def test_calls_without_files_say_nothing_of_them() -> None:
    message, _ = submit(1)

    assert message.needs == []
    assert not any(call.needs for call in message.calls)


def test_a_child_that_is_fed_ahead_is_told_where_the_files_are() -> None:
    rig = WorkerRig().joined()
    rig.machine.store = "/store"
    payload = [b"function", SETUP, b"body"]
    first = grants(1, {1: 1})
    needy_one = structs.replace(first, leases=[structs.replace(first.leases[0], needs=1)], needs=[(NEED,)])
    rig.say(needy_one, payload)
    rig.machine.blob_found(1, NEED.size, (), rig.now)
    (run,) = [action.run for action in rig.turn() if isinstance(action, RunCalls)]
    assert run.store == "/store"
    rig.say(grants(2, {2: 2}, expected_us=100), payload)
    second = grants(3, {3: 3}, expected_us=100)
    actions = rig.say(
        structs.replace(second, leases=[structs.replace(second.leases[0], needs=1)], needs=[(NEED,)]), payload
    )

    (ahead,) = [action for action in actions if isinstance(action, RunCalls)]
    assert ahead.child == 2, "it waits behind the short call, whose child has never needed a file"
    assert ahead.run.store == "/store"


def asked(archived: bool, owners: list[str]) -> list[int]:
    """In the name of which leases a worker asks for one blob that nobody sends; each is that of an owner."""
    lacking = Lacking(LIMITS)
    need = structs.replace(NEED, archived=archived)
    for lease, owner in enumerate(owners, start=1):
        lacking.add(lease, owner, (need,))
    lacking.found(1, 0, (), START)
    leases: list[int] = []
    now = START
    while len(leases) < 4:
        actions: list[Action] = []
        lacking.advance(now, True, actions)
        leases += [action.message.lease for action in actions if isinstance(action, Send)]
        now = lacking.deadline
    return leases


def test_what_does_not_come_is_asked_of_each_client_that_may_have_it_in_turn() -> None:
    assert asked(False, ["alice", "alice", "bob"]) == [1, 3, 1, 3]


def test_who_alone_can_give_it_is_asked_in_the_name_of_one_lease_and_need_not_begin_anew() -> None:
    assert asked(False, ["alice", "alice"]) == [1, 1, 1, 1]
    assert asked(True, ["alice", "bob", "bob"]) == [1, 1, 1, 1]
