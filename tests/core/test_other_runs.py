"""A client goes over from one run of a call to a later one, which is lost: nobody waits for the first."""

from __future__ import annotations

import msgspec

from tests.core.rigs import EPOCH, FIRST, HELLO, JOIN, BrokerRig, WorkerRig, sent, submit
from zfarm.core.inflow import ALL, Inflow
from zfarm.messages import (
    CUT,
    Action,
    Held,
    Listen,
    Listening,
    Reports,
    Send,
    StopChild,
    Streaming,
    Streams,
)
from zfarm.settings import settings


def test_a_client_says_again_of_an_earlier_run_that_it_has_gone_over_to_another() -> None:
    inflow = Inflow(settings)
    inflow.listen(-1, object())
    inflow.streams(Streams([Streaming(-9, "", -1)]), {})
    inflow.streams(Streams([Streaming(-7, "", -1)]), {})

    actions: list[Action] = []
    inflow.advance(0.0, True, actions)
    said = [action.message for action in actions if isinstance(action, Send)]
    listens = [one for message in said if isinstance(message, Listen) for one in message.listens]
    assert Listening(-7, ALL, 0, reading=False) in listens
    assert [one.lease for one in listens if one.reading] == [-9]


def test_a_call_whose_result_nobody_takes_is_stopped_to_run_again() -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST: 1})
    rig.machine.child_emitted(1, 1, [b"piece"] * 3, False, True, rig.now)
    rig.machine.child_delivers(1, 1, False, rig.now)
    rig.say(Listen([Listening(-FIRST, 1, 0, reading=True)]))
    rig.machine.child_delivers(1, 1, True, rig.now)

    actions = rig.say(Listen([Listening(-FIRST, ALL, 2, reading=False)])) + rig.turn()
    assert StopChild(1, kill=True) in actions
    (reports,) = [message for message in sent(actions) if isinstance(message, Reports)]
    assert [(one.lease, one.kind) for one in reports.reports] == [(FIRST, CUT)]


def test_a_result_that_begins_after_its_client_has_gone_over_is_not_waited_for_either() -> None:
    rig = WorkerRig(slots=1).joined()
    rig.granted(1, {FIRST: 1})
    rig.machine.child_emitted(1, 1, [b"file"], False, True, rig.now)
    rig.say(Listen([Listening(-FIRST, ALL, 0, reading=False)]))

    rig.machine.child_delivers(1, 1, False, rig.now)
    assert StopChild(1, kill=True) in [*rig.turn(), *rig.turn()]


def test_a_client_hears_of_no_run_that_is_stopped_since_its_call_runs_elsewhere() -> None:
    rig = BrokerRig()
    one, other = (EPOCH - 1 << 32 | n for n in (5, 6))
    rig.say("C", HELLO)
    rig.say("C", *submit(1))
    rig.say("W", msgspec.structs.replace(JOIN, held=[Held(one, "c", 1, True)]))
    rig.say("X", msgspec.structs.replace(JOIN, session="x", held=[Held(other, "c", 1, True)]))

    told = rig.say("X", Streams([Streaming(-other, "c", -1)])) + rig.turn()
    assert not [action for action in told if isinstance(action, Send) and isinstance(action.message, Streams)]
    told = rig.say("W", Streams([Streaming(-one, "c", -1)])) + rig.turn()
    assert Send("C", Streams([Streaming(-one, "", -1, 1)])) in told
