"""What a disk has room for between two looks at it: as much is accepted, and the rest is refused."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from tests.core.test_stall import Rig, only
from zfarm.core.headroom import Headroom, price
from zfarm.messages import REFUSED, VALUE, Accepted, Booked, Call, Ended, Grants, Outcome, Settled, Submit
from zfarm.settings import Settings

MIB = 1 << 20
LIMITS = Settings(journal_file_from_bytes=MIB)
TEXT = "the disk has no more"


def batch(sizes: list[int], first: int = 1, begun: bool = False, function: bytes = b"f") -> Any:
    calls = [Call(first + i, 0, 0, 0, 3, begun=begun) for i in range(len(sizes))]
    return Submit(calls, ["f"], 1), [function, b"", *(bytes(size) for size in sizes)]


def ends(messages: list[Any]) -> tuple[list[int], list[int]]:
    """The numbers of what was booked, and of what was refused."""
    booked = [task for m in messages if isinstance(m, Booked) for task in m.tasks]
    refused = [one for m in messages if isinstance(m, Ended) for one in m.outcomes if one.kind == REFUSED]
    assert all(one.deaths[0].text == TEXT for one in refused)
    return booked, [one.task for one in refused]


@pytest.mark.parametrize("at_once", [True, False])
def test_what_there_is_no_room_for_is_refused_before_anybody_looks_again(at_once: bool) -> None:
    rig = Rig()
    sizes = [300_000] * 9
    rig.broker.headroom.see(price(1, 1) + 4.5 * price(1, 300_000), TEXT)

    said = [batch(sizes)] if at_once else [batch([size], n + 1) for n, size in enumerate(sizes)]
    for message, payload in said:
        rig.broker.receive("c", message, payload, rig.now)
    booked, refused = ends(rig.turn())

    assert len(booked) == 4
    assert sorted(booked + refused) == list(range(1, 10))
    assert [record.task for record in rig.recorded(Accepted)] == booked
    rig.broker.headroom.see(inf, "")
    assert ends(rig.say("c", *batch([300_000], 10))) == ([10], [])


def test_a_small_call_is_taken_where_a_large_one_is_not_and_functions_count() -> None:
    rig = Rig()
    rig.broker.headroom.see(100_000, TEXT)
    assert ends(rig.say("c", *batch([300_000, 10, 300_000, 10]))) == ([2, 4], [1, 3])
    rig.broker.headroom.see(100_000, TEXT)
    assert ends(rig.say("c", *batch([10], 5, function=bytes(200_000)))) == ([], [5])


def test_what_may_have_begun_and_what_is_known_is_never_refused_for_want_of_room() -> None:
    rig = Rig()
    rig.broker.headroom.see(-1, TEXT)
    assert ends(rig.say("c", *batch([10], 1, begun=True))) == ([1], [])
    assert ends(rig.say("c", *batch([10], 1))) == ([1], [])
    assert ends(rig.say("c", *batch([10], 2))) == ([], [2])


def test_prices_cover_a_page_and_files_are_written_once() -> None:
    headroom = Headroom(LIMITS)
    assert headroom.price(1, 300_000, [bytes(300_000)]) >= 2 * 300_000
    assert headroom.price(1, 2100, [bytes(2100)]) >= 2 * 4096, "two of these share no page"
    assert 2 * MIB < headroom.price(2, 2 * MIB, [bytes(2 * MIB)]) < 2.1 * MIB
    settled = Settled("client", Outcome(1, VALUE))
    assert headroom.price_of(settled, [b""]) > 2 * 512, "its page is written again"
    assert headroom.left == inf, "nobody has looked"


def test_a_grant_is_said_when_there_is_room() -> None:
    rig = Rig()
    rig.broker.headroom.see(10_000, TEXT)
    assert only(Grants, rig.say("c", *batch([10])))
