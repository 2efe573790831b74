"""Results taken apart, and put together again: the same, or an error that says why not."""

from __future__ import annotations

import os
import pickle

import pytest

from zfarm.edge import pieces
from zfarm.edge.pieces import KINDS, Gathered, Part, table, take_apart
from zfarm.errors import DamagedFile, TransferError

MIB = 1024 * 1024
SIZES = [0, 1, MIB - 1, MIB, 2 * MIB + 5]


def apart(data: bytes) -> tuple[list[bytes], Part]:
    """The pieces of a part, and what it is known by."""
    items: list[bytes] = []
    part = take_apart(memoryview(data), items.append)
    return items, part


def gathered(*items: bytes) -> Gathered:
    made = Gathered()
    for item in items:
        made.take(item)
    return made


@pytest.mark.parametrize("size", SIZES)
def test_a_pickle_in_pieces_is_what_it_was(size: int) -> None:
    value = os.urandom(size)
    items, part = apart(pickle.dumps(value, 5))

    assert {item[0] for item in items} <= KINDS
    assert gathered(*items).opened(table([part], None)).load() == value


def test_buffers_come_in_order_and_can_be_written_to() -> None:
    buffers: list[pickle.PickleBuffer] = []
    one, two = bytearray(b"1" * 2 * MIB), bytearray(b"2" * 10)
    data = pickle.dumps(
        [pickle.PickleBuffer(one), pickle.PickleBuffer(two)], 5, buffer_callback=buffers.append
    )
    parts = [apart(bytes(buffer.raw())) for buffer in buffers]

    cargo = gathered(*parts[0][0], *parts[1][0]).opened(table([parts[0][1], parts[1][1]], data))
    assert cargo.weight == len(one) + len(two) + len(data)
    first, second = cargo.load()
    assert [bytes(first), bytes(second)] == [bytes(one), bytes(two)]
    first[0] = 0
    assert bytes(first[:2]) == b"\x001"


@pytest.mark.parametrize("lost", range(5))
def test_a_piece_that_is_missing_or_spoilt_is_told(lost: int) -> None:
    items, part = apart(os.urandom(2 * MIB + 5))
    assert len(items) == 5
    spoilt = [*items]
    spoilt[lost] = items[lost][:-1] + bytes([items[lost][-1] ^ 1])

    with pytest.raises(TransferError):
        gathered(*items[:lost], *items[lost + 1 :]).opened(table([part], None))
    with pytest.raises(TransferError):
        gathered(*spoilt).opened(table([part], None))


def test_a_gap_is_told() -> None:
    items, part = apart(bytes(100))

    with pytest.raises(DamagedFile, match="hole"):
        gathered(items[0], b"", *items[1:]).opened(table([part], None))


def test_what_belongs_to_another_outcome_is_not_taken_for_this_one() -> None:
    items, _ = apart(b"one")
    _, other = apart(b"two")

    with pytest.raises(TransferError, match="or others"):
        gathered(*items).opened(table([other], None))


def test_what_there_is_no_memory_for_is_told_with_the_remedy() -> None:
    with pytest.raises(TransferError, match=r"at most .* may come"):
        gathered(b"R" + (1 << 60).to_bytes(8, "big")).opened(table([], b""))


def test_a_client_without_memory_says_so_and_its_other_results_come(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(size: int) -> None:
        raise MemoryError

    data, part = apart(pickle.dumps("value", 5))
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "_memory", none)
        poor = gathered(*data)

    with pytest.raises(TransferError, match=r"cannot be held here: MemoryError .*keep=True"):
        poor.opened(table([part], None))
    assert gathered(*data).opened(table([part], None)).load() == "value"
