"""How a reader takes what has come for it: in order, whoever shares the stream, whatever cannot be read."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import zfarm
from zfarm.packed import Packed
from zfarm.streams import LOOK_EACH, Buffer, Item, Piece, Stream, cut


def stream_of(*pieces: list[bytes]) -> Stream[Any]:
    """One whose whole content has come already."""
    buffer, first = Buffer(), 1
    for blobs in pieces:
        packed = Packed(b"".join(blobs), [len(blob) for blob in blobs])
        buffer.put(Piece(1, first, first + len(blobs) - 1, packed))
        first += len(blobs)
    buffer.end()
    future: Any = Future()
    future.set_result(None)
    future._home = None
    return Stream(future, buffer, lambda: None)


def pickles(first: int, last: int) -> list[bytes]:
    return [pickle.dumps(number) for number in range(first, last + 1)]


MANY = 5 * LOOK_EACH // 2


def test_items_have_their_numbers_over_all_pieces() -> None:
    stream = stream_of(pickles(1, MANY), pickles(MANY + 1, MANY + 1), pickles(MANY + 2, 2 * MANY))

    assert list(stream) == [Item(number, number, 1) for number in range(1, 2 * MANY + 1)]


def test_loops_over_one_stream_share_its_items() -> None:
    stream = stream_of(pickles(1, MANY), pickles(MANY + 1, 2 * MANY))
    loops: list[Iterator[Item[int]]] = [iter(stream), iter(stream), iter(stream)]
    values = [next(loop).value for _ in range(MANY // 2) for loop in loops]
    values += [item.value for item in stream]

    assert values == list(range(1, 2 * MANY + 1))
    assert [list(loop) for loop in loops] == [[], [], []]


@pytest.mark.parametrize("bad", [1, LOOK_EACH, LOOK_EACH + 1, MANY])
def test_an_item_that_cannot_be_unpickled_is_the_only_one_that_is_not_read(bad: int) -> None:
    blobs = pickles(1, MANY)
    blobs[bad - 1] = b"no pickle"
    stream = stream_of(blobs)
    seen: list[int] = []
    with pytest.raises(zfarm.NotPortable):
        seen.extend(item.number for item in stream)

    assert seen == list(range(1, bad))
    assert stream._buffer.at == bad
    assert [(item.value, item.number) for item in stream] == [(n, n) for n in range(bad + 1, MANY + 1)]


@pytest.mark.parametrize("read", [0, 1, LOOK_EACH, LOOK_EACH + 1, MANY])
def test_what_a_reader_leaves_begins_where_it_stood(read: int) -> None:
    stream = stream_of(pickles(1, MANY), pickles(MANY + 1, MANY + 2))
    loop = iter(stream)
    for _ in range(read):
        next(loop)
    rest = stream._buffer.rest()

    assert [n for piece in rest for n in range(piece.first, piece.last + 1)] == list(
        range(read + 1, MANY + 3)
    )
    assert [pickle.loads(blob) for piece in rest for blob in piece.blobs] == list(range(read + 1, MANY + 3))


def test_a_loop_of_asyncio_goes_on_where_another_one_stood() -> None:
    stream = stream_of(pickles(1, MANY))
    loop = iter(stream)
    before = [next(loop).value for _ in range(3)]

    async def rest() -> list[int]:
        return [item.value async for item in stream]

    assert before + asyncio.run(rest()) == list(range(1, MANY + 1))


@pytest.mark.parametrize("sizes", [[], [0], [1, 0, 3], [1023, 5], [1024], [70_000, 1]])
def test_blobs_are_cut_as_they_were_packed(sizes: list[int]) -> None:
    data = bytes(number % 251 for number in range(sum(sizes)))

    assert list(cut(Packed(data, sizes))) == list(Packed(data, sizes))
