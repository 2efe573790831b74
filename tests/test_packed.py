"""Blobs that travel together: a sequence like any other, made when it is asked for."""

from __future__ import annotations

import pytest

from zfarm.edge import wire
from zfarm.messages import Emits, Items
from zfarm.packed import Packed, bytes_of

BLOBS = [b"one", b"", b"three", b"4"]


def packed() -> Packed:
    return Packed(b"".join(BLOBS), [len(blob) for blob in BLOBS])


def test_it_is_the_sequence_of_its_blobs() -> None:
    blobs = packed()
    assert list(blobs) == BLOBS
    assert len(blobs) == 4
    assert [blobs[n] for n in range(4)] == BLOBS
    assert blobs[-1] == b"4"
    with pytest.raises(IndexError):
        blobs[4]


@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("last", range(6))
def test_a_part_of_it_is_that_part(first: int, last: int) -> None:
    part = packed()[first:last]
    assert list(part) == BLOBS[first:last]
    assert bytes_of(part) == sum(map(len, BLOBS[first:last]))
    assert len(part.data) == bytes_of(part), "what is not in it is not kept for it"


def test_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps of 2"):
        packed()[::2]


def test_bytes_are_those_of_any_blobs() -> None:
    assert bytes_of(packed()) == bytes_of(BLOBS) == 9
    assert bytes_of(()) == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_items_stay_together_on_their_way(kind: type) -> None:
    frames = wire.encode(Emits(seq=1), BLOBS)
    _, here = wire.from_child.decode([frames[0], kind(frames[1])])
    assert isinstance(here, Packed)
    again = wire.encode(Items(7, 1, 4), here)
    assert again == wire.encode(Items(7, 1, 4), BLOBS), "the wire does not tell the difference"
    _, there = wire.published.decode(again)
    assert list(there) == BLOBS


def test_items_of_no_bytes_at_all_are_items() -> None:
    _, here = wire.from_child.decode(wire.encode(Emits(seq=1), [b"", b""]))
    assert list(here) == [b"", b""]


def test_items_that_are_not_as_long_as_they_say_are_refused() -> None:
    head, shared = wire.encode(Items(7, 1, 4), BLOBS)
    for wrong in ([head], [head, bytes(shared) + b"x"], [head, shared, shared]):
        with pytest.raises(wire.Malformed):
            wire.published.decode(wrong)
