"""Streams over ducts: whom a worker lets in, which way items go, and what a client dials, step by step."""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from tests.core.rigs import HELLO, JOIN, SAID, VERSIONS, BrokerRig, submit
from tests.core.test_outflow import turn
from zfarm.core.inflow import Inflow
from zfarm.core.outflow import Outflow
from zfarm.messages import (
    VALUE,
    Action,
    Admit,
    Attach,
    Dial,
    Dismiss,
    HangUp,
    Items,
    Listen,
    Listening,
    Outcome,
    PublishItems,
    Send,
    Streaming,
    Streams,
)
from zfarm.settings import Settings

LEASE, TASK, KEY, DUCT = -7, -1, "k" * 40, "tcp://10.0.0.1:5570 " + "s" * 40
LIMITS = Settings(duct_from_bytes=3, duct_wait_s=0.05, duct_shunned_s=100.0)
NOW = 1000.0


def listening(used: int = 0, reading: bool = True, lease: int = LEASE) -> Listening:
    return Listening(lease, used + 1, used, reading, subscribed=True)


def read(*chunks: list[bytes], key: str = KEY, limits: Settings = LIMITS) -> tuple[Outflow, list[Action]]:
    """A stream of files with these items which is read, and what its worker does then."""
    outflow = Outflow(limits)
    outflow.ducts.address = ":5570 " + "s" * 40
    for blobs in chunks:
        outflow.emitted(LEASE, "c", TASK, blobs, NOW)
    turn(outflow)
    outflow.listen([listening()], NOW, key)
    return outflow, turn(outflow)


def published(actions: list[Action]) -> list[tuple[int, int, bool]]:
    """First and last of what was published, and whether over the duct."""
    return [(a.items.first, a.items.last, a.direct) for a in actions if isinstance(a, PublishItems)]


# ---------------------------------------------------------------- the worker


def test_a_large_stream_is_offered_after_its_reader_was_let_in_and_waits_for_it() -> None:
    outflow, actions = read([b"12", b"34"])

    offer = Streaming(LEASE, "c", TASK, 0, outflow.ducts.address)
    assert actions == [Admit(LEASE, KEY), Send("broker", Streams([offer]))]
    assert outflow.deadline == NOW + LIMITS.duct_wait_s

    outflow.duct(LEASE, True)
    assert published(turn(outflow)) == [(1, 2, True)]


def test_a_small_stream_is_not_offered() -> None:
    assert published(read([b"1", b"2"])[1]) == [(1, 2, False)]


def test_where_the_client_shows_no_key_nothing_is_offered() -> None:
    assert published(read([b"12", b"34"], key="")[1]) == [(1, 2, False)]


def test_where_nobody_comes_it_is_waited_once() -> None:
    outflow, _ = read([b"12", b"34"])
    late = NOW + LIMITS.duct_wait_s
    assert published(turn(outflow, late)) == [(1, 2, False)]

    outflow.emitted(LEASE - 1, "c", TASK - 1, [b"56", b"78"], late)
    outflow.listen([listening(lease=LEASE - 1)], late, KEY)
    assert published(turn(outflow, late)) == [(1, 2, False)]


def test_where_the_reader_comes_too_late_each_time_it_is_waited_once_too() -> None:
    outflow, _ = read([b"12", b"34"])
    late = NOW + LIMITS.duct_wait_s
    assert published(turn(outflow, late)) == [(1, 2, False)]
    outflow.duct(LEASE, True)

    outflow.emitted(LEASE - 1, "c", TASK - 1, [b"56", b"78"], late)
    outflow.listen([listening(lease=LEASE - 1)], late, KEY)
    assert published(turn(outflow, late)) == [(1, 2, False)]


def test_a_stream_moves_to_the_duct_when_nothing_of_it_is_on_its_way() -> None:
    outflow, _ = read([b"12", b"34"])
    turn(outflow, NOW + 1)  # by the relay
    outflow.duct(LEASE, True)
    outflow.emitted(LEASE, "c", TASK, [b"5"], NOW + 1)
    assert published(turn(outflow, NOW + 1)) == []

    outflow.listen([listening(used=2)], NOW + 1, KEY)
    assert published(turn(outflow, NOW + 1)) == [(3, 3, True)]


def test_what_follows_a_break_takes_the_relay_at_once() -> None:
    outflow, _ = read([b"12", b"34"])
    outflow.duct(LEASE, True)
    turn(outflow)
    outflow.duct(LEASE, False)
    outflow.emitted(LEASE, "c", TASK, [b"5"], NOW)

    assert published(turn(outflow)) == [(3, 3, False)]


def test_who_does_not_read_any_more_is_let_in_no_more() -> None:
    outflow, _ = read([b"12", b"34"])
    outflow.duct(LEASE, True)
    turn(outflow)
    outflow.listen([listening(reading=False)], NOW)

    assert Dismiss(LEASE) in turn(outflow)
    outflow.duct(LEASE, True)  # it was said before
    outflow.check()
    assert not outflow._streams[LEASE].open


def test_what_is_to_be_relayed_leaves_the_duct_at_once_and_comes_back_when_it_may() -> None:
    outflow, _ = read([b"12", b"34"])
    outflow.duct(LEASE, True)
    turn(outflow)
    outflow.emitted(LEASE, "c", TASK, [b"5"], NOW)
    outflow.listen([structs.replace(listening(), relayed=True)], NOW, KEY)

    actions = turn(outflow)
    assert published(actions) == [(3, 3, False)]
    assert actions.index(Dismiss(LEASE)) == 0, "nobody is let in any more when that is sent"
    outflow.listen([listening(used=3)], NOW, KEY)
    assert Admit(LEASE, KEY) in turn(outflow)


def test_another_key_of_the_client_takes_the_place_of_the_one_before() -> None:
    outflow, _ = read([b"12", b"34"])
    outflow.duct(LEASE, True)
    turn(outflow)
    outflow.listen([listening()], NOW, "n" * 40)

    assert turn(outflow)[:2] == [Dismiss(LEASE), Admit(LEASE, "n" * 40)]


def test_a_permission_that_is_taken_back_ends_at_once_and_its_stream_goes_on() -> None:
    outflow, _ = read([b"12", b"34"])
    outflow.duct(LEASE, True)
    turn(outflow)
    outflow.emitted(LEASE, "c", TASK, [b"5"], NOW)
    outflow.listen([Listening(LEASE, 0, 0)], NOW)

    actions = turn(outflow)
    assert Dismiss(LEASE) in actions
    assert published(actions) == [(3, 3, False)]
    outflow.listen([listening(used=3)], NOW, KEY)
    assert Admit(LEASE, KEY) in turn(outflow)


def test_what_is_not_permitted_again_after_a_welcome_lapses() -> None:
    outflow, _ = read([b"12", b"34"])
    outflow.duct(LEASE, True)
    turn(outflow)
    outflow.welcome(NOW)
    turn(outflow)
    late = NOW + LIMITS.client_grace_s
    assert outflow.deadline == late

    assert Dismiss(LEASE) in turn(outflow, late)


def test_what_is_permitted_again_after_a_welcome_stays() -> None:
    outflow, _ = read([b"12", b"34"])
    outflow.duct(LEASE, True)
    turn(outflow)
    outflow.welcome(NOW)
    outflow.listen([listening()], NOW, KEY)

    turn(outflow, NOW)
    assert Dismiss(LEASE) not in turn(outflow, NOW + LIMITS.client_grace_s)


def test_a_stream_that_is_over_is_had_by_nobody() -> None:
    outflow, _ = read([b"12", b"34"])
    outflow.duct(LEASE, True)
    turn(outflow)
    outflow.end_files(-LEASE, died=False)
    outflow.listen([listening(used=2)], NOW, KEY)

    assert Dismiss(LEASE) in turn(outflow)


# ---------------------------------------------------------------- the broker


def streaming(offered: bool = True, job: str = "") -> tuple[BrokerRig, list[Action]]:
    """A broker that has heard of a client's stream, and that its worker offers it, and what it says then."""
    rig = BrokerRig()
    rig.say("C", structs.replace(HELLO, key=KEY, job=job))
    rig.say("D", structs.replace(HELLO, session="d", key="n" * 40))
    rig.say("W", structs.replace(JOIN, duct=DUCT))
    rig.say("C", *submit(1))
    lease = SAID + 1
    assert lease in rig.machine.workers["w"].leases
    offer = Streaming(-lease, "", -1, 0, "what the worker calls it" if offered else "")
    return rig, rig.say("W", Streams([offer]))


def test_the_broker_says_where_a_worker_is_had_and_not_what_that_says() -> None:
    _, actions = streaming()

    assert Send("C", Streams([Streaming(-SAID - 1, "", -1, 1, DUCT)])) in actions


def test_the_key_of_the_owner_goes_with_what_it_reads_and_nobody_elses() -> None:
    rig, _ = streaming()
    listens = [Listening(-SAID - 1, 1, 0)]

    assert Send("W", Listen(listens, KEY)) in rig.say("C", Listen(listens, "m" * 40))
    assert not [a for a in rig.say("D", Listen(listens, "n" * 40)) if isinstance(a, Send) and a.peer == "W"]


def test_a_worker_without_a_duct_learns_no_key() -> None:
    rig, _ = streaming()
    rig.machine.workers["w"].duct = ""
    listens = [Listening(-SAID - 1, 1, 0)]

    assert Send("W", Listen(listens, "")) in rig.say("C", Listen(listens))


def test_with_a_client_its_permission_goes() -> None:
    rig, _ = streaming()
    rig.machine.drop_client(rig.machine.clients["c"], rig.now)

    assert Send("W", Listen([Listening(-SAID - 1, 0, 0)])) in rig.turn()


def test_a_client_that_is_dropped_before_the_offer_comes_has_no_permission_either() -> None:
    rig, _ = streaming(offered=False)
    rig.say("C", Listen([Listening(-SAID - 1, 1, 0)]))
    rig.machine.drop_client(rig.machine.clients["c"], rig.now)

    assert Send("W", Listen([Listening(-SAID - 1, 0, 0)])) in rig.turn()


def test_another_key_of_a_client_shuts_what_the_one_before_has_opened() -> None:
    rig, _ = streaming()
    again = structs.replace(HELLO, number=2)
    shut = Send("W", Listen([Listening(-SAID - 1, 0, 0)]))

    assert shut not in rig.say("C", structs.replace(again, key=KEY))
    assert shut in rig.say("C", structs.replace(again, key="m" * 40))


def test_who_takes_a_job_over_shuts_what_its_client_before_has_opened() -> None:
    rig, _ = streaming(job="sums")
    shut = Send("W", Listen([Listening(-SAID - 1, 0, 0)]))

    assert shut in rig.say("E", Attach("sums", VERSIONS, "its life"))


def test_a_client_in_a_child_shows_no_key() -> None:
    rig, _ = streaming()
    rig.machine.tunnelled("W", 1, "c", structs.replace(HELLO, session="e", key=KEY), (), rig.now)

    assert rig.machine.clients["e"].key == ""


# ---------------------------------------------------------------- the client


def offered() -> tuple[Inflow, list[Action]]:
    """A client whose one stream is offered to it, and what it does."""
    inflow = Inflow(LIMITS)
    inflow.listen(TASK, object())
    inflow.streams(Streams([Streaming(LEASE, "", TASK)]), {})
    advance(inflow, NOW)
    inflow.streams(Streams([Streaming(LEASE, "", TASK, 1, DUCT)]), {})
    return inflow, advance(inflow, NOW)


def advance(inflow: Inflow, now: float) -> list[Action]:
    actions: list[Action] = []
    inflow.advance(now, True, actions)
    inflow.check()
    return [action for action in actions if isinstance(action, Dial | HangUp)]


def said(inflow: Inflow, now: float) -> list[bool]:
    """Which of the streams that are listened to now are to be relayed."""
    actions: list[Action] = []
    inflow.advance(now, True, actions)
    listens = [action.message.listens for action in actions if isinstance(action, Send)]
    return [one.relayed for part in listens for one in part]


def test_what_is_offered_is_dialled_for_and_hung_up_on_when_it_is_over() -> None:
    inflow, actions = offered()
    assert actions == [Dial(LEASE, DUCT)]

    inflow.direct(DUCT, Items(LEASE, 1, 1), [b"1"], NOW)
    inflow.took(TASK, 1, 1)
    inflow.ended(-TASK, object(), Outcome(-TASK, VALUE, lease=-LEASE, filed=1))
    assert advance(inflow, NOW) == [HangUp(LEASE, DUCT)]


def test_items_count_on_the_duct_alone_where_they_are_dialled_for() -> None:
    inflow, _ = offered()
    inflow.direct("tcp://10.0.0.2:1 " + "s" * 40, Items(LEASE, 1, 1), [b"forged"], NOW)

    assert inflow.dialling.refused == 1
    assert inflow.read[LEASE].next == 1


def test_a_duct_that_ends_is_dialled_again_once_and_then_left_alone() -> None:
    inflow, _ = offered()
    inflow.duct_broke(DUCT, True, NOW)
    assert advance(inflow, NOW) == []
    assert advance(inflow, NOW + 0.5) == [Dial(LEASE, DUCT)]

    inflow.duct_broke(DUCT, True, NOW + 1)
    assert advance(inflow, NOW + 2) == []
    inflow.streams(Streams([Streaming(LEASE, "", TASK, 1, DUCT)]), {})
    assert advance(inflow, NOW + 3) == []
    inflow.streams(Streams([Streaming(LEASE, "", TASK, 1, DUCT)]), {})
    assert advance(inflow, NOW + 103) == [Dial(LEASE, DUCT)]


def test_a_duct_that_ends_again_before_it_is_dialled_again_is_so_for_all_its_streams() -> None:
    inflow, _ = offered()
    inflow.listen(TASK - 1, object())
    inflow.streams(Streams([Streaming(LEASE - 1, "", TASK - 1, 1)]), {})
    inflow.duct_broke(DUCT, True, NOW)
    inflow.streams(Streams([Streaming(LEASE - 1, "", TASK - 1, 1, DUCT)]), {})
    assert advance(inflow, NOW + 0.1) == [Dial(LEASE - 1, DUCT)]
    inflow.duct_broke(DUCT, True, NOW + 0.2)

    assert advance(inflow, NOW + 0.5) == [Dial(LEASE, DUCT)]
    assert advance(inflow, NOW + 0.7) == [Dial(LEASE - 1, DUCT)]


def test_what_has_just_ended_is_not_dialled_for_since_another_stream_had_ended_before() -> None:
    inflow, _ = offered()
    inflow.duct_broke(DUCT, True, NOW)
    inflow.ended(-TASK, object(), Outcome(-TASK, VALUE, lease=-LEASE, filed=0))
    inflow.streams(Streams([Streaming(LEASE - 1, "", TASK - 1)]), {})
    inflow.listen(TASK - 1, object())
    inflow.streams(Streams([Streaming(LEASE - 1, "", TASK - 1, 1, DUCT)]), {})
    assert advance(inflow, NOW + 0.1) == [Dial(LEASE - 1, DUCT)]
    inflow.duct_broke(DUCT, True, NOW + 0.49)  # and that it is over is not known yet

    assert advance(inflow, NOW + 0.5) == []
    inflow.ended(-TASK + 1, object(), Outcome(-TASK + 1, VALUE, lease=-LEASE + 1, filed=0))
    assert advance(inflow, NOW + 1) == []


def test_a_duct_that_is_refused_did_not_break_and_waits_for_an_offer() -> None:
    inflow, _ = offered()
    inflow.duct_broke(DUCT, True, NOW)
    assert advance(inflow, NOW + 0.5) == [Dial(LEASE, DUCT)]
    inflow.duct_broke(DUCT, True, NOW + 0.6, refused=True)
    assert advance(inflow, NOW + 2) == []
    inflow.streams(Streams([Streaming(LEASE, "", TASK, 1, DUCT)]), {})
    assert advance(inflow, NOW + 2) == [Dial(LEASE, DUCT)]

    inflow.duct_broke(DUCT, True, NOW + 3)
    assert advance(inflow, NOW + 3.5) == [Dial(LEASE, DUCT)], "it is the first break"


def test_the_end_of_a_duct_whose_streams_are_over_is_no_break() -> None:
    inflow, _ = offered()
    inflow.duct_broke(DUCT, True, NOW)
    inflow.ended(-TASK, object(), Outcome(-TASK, VALUE, lease=-LEASE, filed=0))
    assert advance(inflow, NOW + 0.5) == []

    inflow.streams(Streams([Streaming(LEASE - 1, "", TASK - 1)]), {})
    inflow.listen(TASK - 1, object())
    inflow.streams(Streams([Streaming(LEASE - 1, "", TASK - 1, 1, DUCT)]), {})
    assert advance(inflow, NOW + 1) == [Dial(LEASE - 1, DUCT)]
    inflow.duct_broke(DUCT, True, NOW + 1)
    assert advance(inflow, NOW + 2) == [Dial(LEASE - 1, DUCT)]


def test_where_a_duct_is_left_alone_its_worker_is_told_to_relay() -> None:
    inflow, _ = offered()
    inflow.duct_broke(DUCT, False, NOW)
    advance(inflow, NOW)
    assert inflow.deadline < NOW
    assert said(inflow, NOW) == [True]

    later = NOW + LIMITS.duct_shunned_s
    assert said(inflow, later) == [False]


def test_what_is_offered_at_a_duct_that_is_left_alone_is_to_be_relayed() -> None:
    inflow, _ = offered()
    inflow.duct_broke(DUCT, False, NOW)
    advance(inflow, NOW)
    said(inflow, NOW)
    inflow.listen(TASK - 1, object())
    inflow.streams(Streams([Streaming(LEASE - 1, "", TASK - 1, 1)]), {})
    advance(inflow, NOW)
    inflow.streams(Streams([Streaming(LEASE - 1, "", TASK - 1, 1, DUCT)]), {})
    advance(inflow, NOW)

    assert said(inflow, NOW) == [True, True]


def test_a_duct_that_was_dialled_for_another_stream_meanwhile_is_had_for_all() -> None:
    inflow, _ = offered()
    inflow.duct_broke(DUCT, True, NOW)
    advance(inflow, NOW + 0.5)
    inflow.duct_broke(DUCT, True, NOW + 1)
    inflow.listen(TASK - 1, object())
    inflow.streams(Streams([Streaming(LEASE - 1, "", TASK - 1, 1)]), {})
    advance(inflow, NOW + 1)
    inflow.streams(Streams([Streaming(LEASE - 1, "", TASK - 1, 1, DUCT)]), {})
    assert advance(inflow, NOW + 1.1) == [Dial(LEASE - 1, DUCT)]

    assert advance(inflow, NOW + 1.5) == [Dial(LEASE, DUCT)]


def test_a_client_dials_so_many_workers_at_once_and_no_more() -> None:
    inflow = Inflow(replace(LIMITS, ducts_dialled_max=2))
    for number, duct in enumerate(("one", "two", "three", "one")):
        inflow.listen(TASK - number, object())
        inflow.streams(Streams([Streaming(LEASE - number, "", TASK - number, 1, duct)]), {})
    advance(inflow, NOW)
    for number, duct in enumerate(("one", "two", "three", "one")):
        inflow.streams(Streams([Streaming(LEASE - number, "", TASK - number, 1, duct)]), {})

    assert {action.duct for action in advance(inflow, NOW) if isinstance(action, Dial)} <= {"one", "two"}
    assert inflow.dialling.had_at("one") == {LEASE, LEASE - 3}
    assert inflow.dialling.had_at("two") == {LEASE - 1}
    assert not inflow.dialling.had_at("three")


def test_a_duct_that_cannot_be_reached_is_left_alone() -> None:
    inflow, _ = offered()
    inflow.duct_broke(DUCT, False, NOW)

    assert advance(inflow, NOW + 10) == []
