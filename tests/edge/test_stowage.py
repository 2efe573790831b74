"""What a client stows for its calls and lands of their results: found again, recycled, never under anybody's
hands."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.edge.lenient import Lenient
from zfarm.edge import segments
from zfarm.edge.callables import Portable
from zfarm.edge.cargo import Cargo, Mapped, is_cargo, opened_cargo, pack, tokens_of, weigh
from zfarm.edge.lender import ENABLE, Lender
from zfarm.edge.segments import Ref, open_ref, write_ref
from zfarm.edge.stowage import DROP, KEEP, RECYCLE, Stowage
from zfarm.messages import Lent, Memory

pytestmark = pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here")

SIZE = 100_000  # numbers of 8 bytes: above the threshold
needs_leases = pytest.mark.skipif(not segments.leases_tell(), reason="this system does not tell")


@pytest.fixture
def portable() -> Iterator[Portable]:
    portable = Portable()
    portable.stowage = stowage = Stowage()
    stowage.on = True
    yield portable
    stowage.close()


def numbers(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(SIZE)


def stowed(portable: Portable, *args: Any) -> Cargo:
    body = portable.encode_arguments(args, {})
    assert isinstance(body, Cargo)
    return body


def opened(body: bytes) -> tuple[Any, Mapped]:
    mapped = Mapped()
    return opened_cargo(body, mapped.note).load(), mapped


def end(portable: Portable, body: Cargo, kept: Any = ()) -> None:
    assert portable.stowage is not None
    portable.stowage.ended(body.hold, kept)


def test_small_calls_are_plain_pickles(portable: Portable) -> None:
    args = (1, "two", np.arange(10), bytes(1000))

    assert not is_cargo(portable.encode_arguments(args, {}))
    assert type(portable.encode_arguments(args, {})) is bytes


@pytest.mark.parametrize(
    "thing",
    [
        numbers(),
        numbers().reshape(100, 1000).T,
        numbers()[::-2],
        [numbers(1), {"a": numbers(2)}],
        b"x" * 300_000,
        "é" * 300_000,
    ],
    ids=["array", "fortran", "strided", "several", "bytes", "text"],
)
def test_large_ones_come_out_as_they_went_in(portable: Portable, thing: Any) -> None:
    body = stowed(portable, thing)
    (back,), _ = opened(body)

    assert len(body) < 2000
    assert weigh(body) > 250_000
    assert pickle.dumps(back) == pickle.dumps(thing)


def test_equal_bytes_are_stowed_once_and_changed_ones_anew(portable: Portable) -> None:
    array = numbers()
    first, second = stowed(portable, array), stowed(portable, array.copy())
    array[SIZE // 2 + 7] += 1
    third = stowed(portable, array)

    assert tokens_of(first) == tokens_of(second) != tokens_of(third)
    (back,), _ = opened(first)
    assert back[SIZE // 2 + 7] == array[SIZE // 2 + 7] - 1
    assert np.array_equal(opened(third)[0][0], array)


def test_arguments_with_equal_bytes_are_two_arrays(portable: Portable) -> None:
    array = numbers()
    (first, second), _ = opened(stowed(portable, array, array.copy()))
    first[0] = -1

    assert second[0] == array[0]


def test_memory_is_used_again_once_all_its_calls_have_ended(portable: Portable) -> None:
    one, two = stowed(portable, numbers(1)), stowed(portable, numbers(1))
    end(portable, one)
    meanwhile = stowed(portable, numbers(2))
    assert tokens_of(meanwhile) != tokens_of(two)
    end(portable, two)
    third = stowed(portable, numbers(3))

    assert tokens_of(third) == tokens_of(one)
    assert np.array_equal(opened(third)[0][0], numbers(3))


@pytest.mark.parametrize("how", ["kept", "unknown", "vanished", "tainted"])
def test_memory_that_somebody_may_look_at_is_not_written_to(portable: Portable, how: str) -> None:
    assert portable.stowage is not None
    body = stowed(portable, numbers(1))
    (array,), mapped = opened(body)
    segment = body.hold.segments[0]
    tokens = tokens_of(body)
    if how == "kept":
        assert mapped.end() == tokens
        end(portable, body, tokens)
    elif how == "unknown":
        end(portable, body, None)
    elif how == "vanished":
        del body
    else:
        portable.stowage.taint()
        end(portable, body)
    held = []
    for seed in range(2, 6):
        held.append(stowed(portable, numbers(seed)))
        assert held[-1].hold.segments != [segment]
    assert np.array_equal(array, numbers(1))
    del array
    if segments.leases_tell():
        held.append(stowed(portable, numbers(6)))
        assert held[-1].hold.segments == [segment], "nobody looks at it any more"
        assert tokens_of(held[-1]) != tokens


def test_a_call_keeps_what_it_can_still_reach(portable: Portable) -> None:
    args, mapped = opened(stowed(portable, numbers(1), numbers(2)))
    part = args[1][10:20]
    del args

    assert len(mapped.end()) == 1
    del part
    args, mapped = opened(stowed(portable, numbers(1)))
    del args
    assert mapped.end() == []
    args, mapped = opened(stowed(portable, numbers(1)))
    del args
    mapped.forked = True
    assert len(mapped.end()) == 1, "the process that was forked sees it"


def test_what_is_kept_warm_is_found_again(portable: Portable) -> None:
    first = stowed(portable, numbers(1))
    area = opened(first)
    end(portable, first, tokens_of(first))
    end(portable, stowed(portable, numbers(2)))
    assert tokens_of(stowed(portable, numbers(1))) == tokens_of(first)
    del area


# ---------------------------------------------------------------- what is shared


def shared(portable: Portable, array: np.ndarray) -> Cargo:
    blob = portable.encode_object(array)
    assert isinstance(blob, Cargo)
    return blob


def read(blob: bytes) -> Any:
    """What a child keeps of it."""
    return opened_cargo(blob, lambda ref, area: None).load()


@needs_leases
def test_memory_of_what_was_shared_is_used_again_when_nobody_maps_it(portable: Portable) -> None:
    stowage = portable.stowage
    assert stowage is not None
    first = shared(portable, numbers(1))
    (segment,) = first.hold.segments
    child = read(first)
    stowage.discard(first.hold)
    second = shared(portable, numbers(2))
    assert second.hold.segments != [segment]
    assert np.array_equal(child, numbers(1))
    del child
    third = shared(portable, numbers(3))

    assert third.hold.segments == [segment]
    assert np.array_equal(read(third), numbers(3))
    with pytest.raises(FileNotFoundError):  # somebody who was late
        read(first)
    assert stowage.bytes == 2 * SIZE * 8


@needs_leases
def test_what_was_shared_is_found_again_by_those_that_still_look_for_it(portable: Portable) -> None:
    stowage = portable.stowage
    assert stowage is not None
    first = shared(portable, numbers(1))
    stowage.discard(first.hold)
    again = shared(portable, numbers(1))

    assert tokens_of(again) == tokens_of(first)
    assert np.array_equal(read(first), numbers(1))


@needs_leases
def test_what_was_shared_and_a_call_has_too_is_not_free_before_both_have_ended(portable: Portable) -> None:
    stowage = portable.stowage
    assert stowage is not None
    handle, call = shared(portable, numbers(1)), stowed(portable, numbers(1))
    assert tokens_of(handle) == tokens_of(call)
    stowage.discard(handle.hold)
    other = stowed(portable, numbers(2))
    assert tokens_of(other) != tokens_of(call)
    assert np.array_equal(opened(call)[0][0], numbers(1))
    segments_of_call = list(call.hold.segments)
    end(portable, call)

    assert stowed(portable, numbers(3)).hold.segments == segments_of_call


@needs_leases
def test_what_was_shared_is_not_kept_for_ever(portable: Portable) -> None:
    stowage = portable.stowage
    assert stowage is not None
    before = len(os.listdir("/proc/self/fd"))
    blobs = [shared(portable, numbers(seed)) for seed in range(4)]
    children = [read(blob) for blob in blobs]
    for blob in blobs:
        stowage.discard(blob.hold)
    assert stowage.bytes == 4 * SIZE * 8
    stowage.cool()
    stowage.cool()

    assert stowage.bytes == 0
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(np.array_equal(array, numbers(seed)) for seed, array in enumerate(children))


def test_where_the_system_does_not_tell_what_was_shared_is_given_back(
    portable: Portable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zfarm.edge.stowage.leases_tell", lambda: False)
    stowage = portable.stowage
    assert stowage is not None
    blob = shared(portable, numbers(1))
    child = read(blob)
    stowage.discard(blob.hold)

    assert stowage.bytes == 0
    assert np.array_equal(child, numbers(1))


def test_arrays_in_objects_that_need_more_than_a_pickle(portable: Portable) -> None:
    class Local:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

    (back,), _ = opened(stowed(portable, Local(numbers())))

    assert np.array_equal(back.array, numbers())


def test_without_room_the_bytes_travel(portable: Portable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert portable.stowage is not None
    monkeypatch.setattr(portable.stowage._pool, "take", lambda size: None)
    body = stowed(portable, numbers(), b"x" * 300_000)
    (array, text), mapped = opened(body)

    assert tokens_of(body) == []
    assert not mapped
    array[0] = 1
    assert text == b"x" * 300_000


def test_a_disk_that_is_full_lets_the_bytes_travel(
    portable: Portable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, data: memoryview) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments.Segment, "write", full)
    body = stowed(portable, numbers())

    assert tokens_of(body) == []
    assert portable.stowage is not None
    assert portable.stowage.bytes == 0


def test_the_end_gives_every_descriptor_back(portable: Portable) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert portable.stowage is not None
    portable.stowage.probe()
    bodies = [stowed(portable, numbers(seed)) for seed in range(4)]
    end(portable, bodies[0])
    portable.stowage.close()

    assert len(os.listdir("/proc/self/fd")) == before
    assert portable.stowage.bytes == 0
    del bodies
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------- results


def lend(lender: Lender, child: int, data: bytes) -> tuple[bytes, Ref]:
    """A child's report with this in shared memory."""
    (memory,) = lender.lend(child, [len(data)]).memory
    ref = Ref(memory.token, memory.pid, memory.fd, memory.size, memory.spilled)
    write_ref(ref, memoryview(data))
    return pack((ref,), pickle.dumps("result")), ref


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender()
    assert lender.lend(1, [1]) == Lent([]), "nobody has said that they can be opened"
    lender.hear(ENABLE + bytes(16))
    yield lender
    lender.close()


def test_a_result_is_recycled_when_its_client_has_released_it(lender: Lender) -> None:
    stowage = Stowage()
    blob, ref = lend(lender, 1, b"x" * 300_000)
    payload = lender.reported(1, [b"other", blob])
    cargo = stowage.land(payload[1])
    buffers = cargo.buffers
    del payload, cargo
    assert lend(lender, 1, b"y" * 300_000)[1].token != ref.token
    assert stowage.notes() == []
    assert bytes(buffers[0]) == b"x" * 300_000
    buffers = ()
    notes = b"".join(stowage.notes())
    lender.hear(notes[:5])
    lender.hear(notes[5:])

    assert notes == RECYCLE + ref.token
    assert lend(lender, 1, b"z" * 300_000)[1].token == ref.token
    lender.close()


def test_what_a_forked_process_may_see_is_not_recycled(lender: Lender) -> None:
    stowage = Stowage()
    blob, ref = lend(lender, 1, b"x" * 300_000)
    (whole,) = lender.reported(1, [blob])
    cargo = stowage.land(whole)
    stowage.before_fork()
    del cargo, whole
    notes = b"".join(stowage.notes())
    lender.hear(notes)

    assert notes == DROP + ref.token
    assert lender.bytes == 0


def test_what_a_client_keeps_counts_until_it_is_gone(lender: Lender) -> None:
    blob, ref = lend(lender, 1, b"x" * 300_000)
    lender.reported(1, [blob])
    lender.hear(KEEP + ref.token)

    assert lender.bytes == 300_000
    with pytest.raises(OSError):
        os.close(open_ref(ref))  # it is the client's alone
    lender.hear(DROP + ref.token)
    lender.hear(DROP + ref.token)
    assert lender.bytes == 0


def test_what_a_client_in_a_child_keeps_never_counts(lender: Lender) -> None:
    blob, ref = lend(lender, 1, b"x" * 300_000)
    lender.reported(1, [blob])
    lender.note(KEEP + ref.token)

    assert lender.bytes == 0


def test_a_result_that_lands_twice_is_released_once(lender: Lender) -> None:
    stowage = Stowage()
    blob, ref = lend(lender, 1, b"x" * 300_000)
    (whole,) = lender.reported(1, [blob])
    first = stowage.land(whole)
    stowage.land(whole)

    assert stowage.notes() == []
    del first
    assert stowage.notes() == [RECYCLE + ref.token]


def test_a_child_that_dies_takes_what_it_had_borrowed_along(lender: Lender) -> None:
    lend(lender, 1, b"x" * 300_000)
    kept, _ = lend(lender, 2, b"y" * 300_000)
    payload = lender.reported(2, [kept])
    lender.died(1)
    lender.died(2)

    assert lender.bytes == 300_000
    assert bytes(Stowage().land(payload[0]).buffers[0]) == b"y" * 300_000


def test_what_a_child_has_borrowed_and_not_used_is_free_again(lender: Lender) -> None:
    _, ref = lend(lender, 1, b"x" * 300_000)
    lender.reported(1, [b"an error"])

    assert lend(lender, 2, b"y" * 300_000)[1].token == ref.token


def lent_again(lender: Lender, child: int, size: int = 300_000) -> Memory:
    """What a child is lent for a result, which its client has released."""
    (memory,) = lender.lend(child, [size]).memory
    ref = Ref(memory.token, memory.pid, memory.fd, memory.size)
    lender.reported(child, [pack((ref,), b"result")])
    lender.note(RECYCLE + memory.token)
    return memory


def test_what_a_child_is_lent_again_no_other_one_is_lent_while_it_lives(lender: Lender) -> None:
    first, again = lent_again(lender, 1), lent_again(lender, 1)
    assert (first.token, first.yours) == (again.token, False)
    assert again.yours
    others = [lent_again(lender, child) for child in (2, 3, 2)]
    assert {one.token for one in others}.isdisjoint({first.token})
    assert not any(one.yours for one in others), "each time it was another one's in between"
    assert lent_again(lender, 1) == again
    lender.died(1)
    lent = lender.lend(4, [300_000] * 2).memory

    assert {one.token for one in lent} == {first.token, others[0].token}
    assert not any(one.yours for one in lent)


def test_children_own_no_more_than_they_may_keep(lender: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zfarm.edge.lender.share_bytes", lambda: 1_000_000)
    monkeypatch.setattr(lender, "_housed_max", 1_500_000)
    for child, own in ((1, 3), (2, 2)):
        for _ in range(2):
            lent = lender.lend(child, [300_000] * 5).memory
            lender.reported(child, [])
        assert [memory.yours for memory in lent].count(True) == own


def test_reports_that_nobody_came_for_make_room(lender: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lender._pool, "_most", 700_000)
    monkeypatch.setattr(lender._pool, "_limits", Lenient())
    for _ in range(5):
        lender.reported(1, [lend(lender, 1, b"x" * 300_000)[0]])  # and the report is dropped

    assert lender.bytes <= 700_000
    lender.close()
    assert lender.bytes == 0


def test_a_copy_is_landed_where_there_are_too_many_mappings(
    lender: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zfarm.edge import stowage as module

    monkeypatch.setattr(module, "_COPY_FROM", 0)
    stowage = Stowage()
    blob, ref = lend(lender, 1, b"x" * 300_000)
    cargo = stowage.land(lender.reported(1, [blob])[0])

    assert bytes(cargo.buffers[0]) == b"x" * 300_000
    del cargo
    assert stowage.notes() == [RECYCLE + ref.token]
