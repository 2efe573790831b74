"""What a worker makes of the bytes that a child prints: lines, by call, at a bounded rate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfarm.edge.capture import MARK
from zfarm.edge.taps import Piece, Taps
from zfarm.settings import Settings

LIMITS = replace(Settings(), output_bytes_per_s=1000, output_burst_bytes=10_000)


@pytest.fixture
def taps() -> Iterator[Taps]:
    """The pipes of one child."""
    taps = Taps(LIMITS, 0.0)
    yield taps
    taps.close()


def test_lines_are_told_whole_and_the_rest_when_asked_for(taps: Taps) -> None:
    os.write(taps.theirs[0], b"one\ntw")
    assert taps.read(7, 0.0) == [Piece(7, 1, b"one\n")]
    os.write(taps.theirs[0], b"o\nthree")
    assert taps.read(7, 0.0) == [Piece(7, 1, b"two\n")]
    assert taps.read(7, 0.0, whole=True) == [Piece(7, 1, b"three")]
    assert taps.read(7, 0.0, whole=True) == []


def test_marks_tell_calls_apart_that_are_read_together(taps: Taps) -> None:
    os.write(taps.theirs[1], MARK % 3 + b"a\n" + MARK % 4 + b"b" + MARK % 5 + b"c\n")

    assert taps.read(9, 0.0) == [Piece(3, 2, b"a\n"), Piece(4, 2, b"b"), Piece(5, 2, b"c\n")]


def test_what_has_no_mark_is_of_the_call_that_runs(taps: Taps) -> None:
    os.write(taps.theirs[0], MARK % 3 + b"a\n")
    assert taps.read(3, 0.0) == [Piece(3, 1, b"a\n")]
    os.write(taps.theirs[0], b"from C\n")

    assert taps.read(4, 0.0) == [Piece(4, 1, b"from C\n")]


def test_what_follows_a_mark_is_of_no_call_before_it(taps: Taps) -> None:
    os.write(taps.theirs[0], MARK % 4 + b"a\n")
    assert taps.read(3, 0.0) == [Piece(4, 1, b"a\n")]
    os.write(taps.theirs[0], b"from C\n")

    assert taps.read(3, 0.0) == [Piece(4, 1, b"from C\n")]  # call 3 ran when the worker last looked


@given(
    calls=st.lists(st.binary(min_size=1, max_size=20).filter(lambda text: b"\0" not in text), max_size=6),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_a_mark_is_found_however_it_was_cut(calls: list[bytes], cuts: list[int]) -> None:
    data = b"".join(MARK % seq + text for seq, text in enumerate(calls, 1))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    taps = Taps(replace(LIMITS, output_burst_bytes=1_000_000), 0.0)
    found: dict[int, bytes] = {}
    try:
        pieces: list[Piece] = []
        for begin, end in pairwise(places):
            os.write(taps.theirs[0], data[begin:end])
            # a text that was cut goes on in the call that runs
            running = max([seq for seq in range(1, len(calls) + 1) if MARK % seq in data[:begin]], default=1)
            pieces += taps.read(running, 0.0)
        pieces += taps.read(len(calls), 0.0, whole=True)
        for piece in pieces:
            found[piece.seq] = found.get(piece.seq, b"") + piece.text
    finally:
        taps.close()

    assert found == dict(enumerate(calls, 1))


def test_what_is_too_much_is_dropped_and_counted_and_its_end_is_kept(taps: Taps) -> None:
    line = b"%090d\n" % 0
    pieces = []
    for _ in range(100):
        os.write(taps.theirs[0], line * 100)
        pieces += taps.read(1, 0.0)
    os.write(taps.theirs[0], b"the last line\n")
    pieces += taps.read(1, 0.0, whole=True)

    told = sum(len(piece.text) for piece in pieces)
    assert told <= 10_000 + 5_000
    assert told + sum(piece.dropped for piece in pieces) == 100 * 100 * len(line) + len(b"the last line\n")
    assert pieces[-1].text.endswith(line + b"the last line\n")
    assert pieces[-1].text.startswith(b"0" * 90)  # and begins with a whole line


def test_time_and_another_call_make_room_again(taps: Taps) -> None:
    os.write(taps.theirs[0], b"x" * 9_990 + b"\n")
    assert [len(piece.text) for piece in taps.read(1, 0.0)] == [9_991]
    os.write(taps.theirs[0], b"y" * 100 + b"\n")
    assert taps.read(1, 0.0) == []
    os.write(taps.theirs[0], b"z" * 100 + b"\n")
    assert taps.read(1, 1.0) == [Piece(1, 1, b"y" * 100 + b"\n" + b"z" * 100 + b"\n")]
    os.write(taps.theirs[0], b"w" * 3_000 + b"\n")
    assert taps.read(2, 1.0) == [Piece(2, 1, b"w" * 3_000 + b"\n")]


def test_an_endless_line_and_bytes_that_are_no_text_are_given_on(taps: Taps) -> None:
    os.write(taps.theirs[0], b"\xff\0\x1bzf" + b"x" * 17_000)
    found = taps.read(1, 100.0, whole=True)

    assert sum(len(piece.text) + piece.dropped for piece in found) == 17_005


def test_a_pipe_that_a_grandchild_keeps_does_not_hold_up_its_end(taps: Taps) -> None:
    kept = os.dup(taps.theirs[0])
    taps.close_theirs()
    os.write(kept, b"still here\n")
    assert taps.read(1, 0.0, whole=True) == [Piece(1, 1, b"still here\n")]
    taps.close()
    with pytest.raises(BrokenPipeError):
        os.write(kept, b"nobody")
    os.close(kept)


def test_a_pipe_at_its_end_is_no_source_any_more(taps: Taps) -> None:
    assert len(taps.sources) == 3
    taps.close_theirs()
    assert taps.read(1, 0.0) == []
    assert taps.sources == []
