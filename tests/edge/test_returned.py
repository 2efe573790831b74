"""Results that are arguments of their calls, in one process: when a child does not copy them, and when their
client uses that memory again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.edge.lenient import Lenient
from zfarm.edge import segments
from zfarm.edge import stowage as module
from zfarm.edge.callables import Portable
from zfarm.edge.cargo import Cargo, tokens_of, unpacked
from zfarm.edge.hatch import Hatch
from zfarm.edge.larder import Larder
from zfarm.edge.moorings import is_clean
from zfarm.edge.outcomes import encode_value
from zfarm.edge.segments import Slice
from zfarm.edge.stowage import Stowage

pytestmark = pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here")

SIZE = 200_000  # numbers of 8 bytes
PAGE = os.sysconf("SC_PAGE_SIZE")


class Stingy:
    """A pipe to a worker that has no memory to lend: what is copied travels."""

    def send(self, message: Any, payload: Any = ()) -> None:
        """It is heard."""

    def receive(self) -> None:
        """There is no answer."""


class Child:
    """A child's side, which runs one call after the other."""

    def __init__(self) -> None:
        self.larder = Larder()
        pipe: Any = Stingy()
        self.hatch = Hatch(pipe, pipe, self.larder)
        self.hatch.open = True

    def run(self, body: bytes, function: Callable[[Any], Any]) -> bytes:
        """The blob of the outcome."""
        (value,) = self.hatch.arguments(body)
        blob = self.hatch.encode(encode_value, function(value))
        del value
        return self.hatch.finish(blob)


@pytest.fixture
def portable() -> Iterator[Portable]:
    portable = Portable()
    portable.stowage = stowage = Stowage()
    stowage.on = True
    yield portable
    stowage.close()


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.larder.clear()


def numbers(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(SIZE)


def stowage_of(portable: Portable) -> Stowage:
    assert portable.stowage is not None
    return portable.stowage


def stowed(portable: Portable, array: Any) -> Cargo:
    body = portable.encode_arguments((array,), {})
    assert isinstance(body, Cargo)
    return body


def landed(portable: Portable, body: Cargo, blob: bytes) -> Any:
    """The result of a call, which ends with it."""
    cargo = stowage_of(portable).land(blob, body.hold)
    stowage_of(portable).ended(body.hold, cargo.kept)
    return cargo.load()


def returned(portable: Portable, child: Child, array: Any, function: Callable[[Any], Any]) -> Any:
    body = stowed(portable, array)
    return landed(portable, body, child.run(body, function))


def same(value: Any) -> Any:
    return value


def slices(blob: bytes) -> list[Slice]:
    return [part for part in unpacked(blob)[1] if isinstance(part, Slice)]


def changed(at: int, back: bool = False) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        before = value[at]
        value[at] = -1
        if back:
            value[at] = before
        return value

    return change


@pytest.mark.parametrize(
    "function",
    [
        same,
        lambda array: array[1:],
        lambda array: array.view(np.uint8)[7:-5],
        lambda array: array[SIZE // 2 :],
        lambda array: array.reshape(2, -1).T,
        lambda array: {"array": array, "sum": array.sum()},
    ],
    ids=["itself", "tail", "odd", "half", "transposed", "inside"],
)
def test_what_was_not_written_to_is_not_copied(
    portable: Portable, child: Child, function: Callable[[Any], Any]
) -> None:
    body = stowed(portable, numbers())
    blob = child.run(body, function)
    assert [one.ref.token for one in slices(blob)] == tokens_of(body)
    assert tokens_of(blob) == [], "the worker has lent nothing"
    result, expected = landed(portable, body, blob), function(numbers())

    assert repr(result) == repr(expected)
    if not isinstance(result, dict):
        assert np.array_equal(result, expected)
        assert result.flags.writeable


@pytest.mark.parametrize("at", [0, 17, SIZE // 2, SIZE - 1])
@pytest.mark.parametrize("back", [False, True], ids=["changed", "restored"])
def test_what_was_written_to_is_copied(portable: Portable, child: Child, at: int, back: bool) -> None:
    body = stowed(portable, numbers())
    blob = child.run(body, changed(at, back))
    expected = changed(at, back)(numbers())

    assert not slices(blob)
    assert np.array_equal(landed(portable, body, blob), expected)


@pytest.mark.parametrize(("at", "copied"), [(PAGE // 8 - 1, False), (PAGE // 8 + 2, True), (-1, True)])
def test_only_pages_of_the_result_count(portable: Portable, child: Child, at: int, copied: bool) -> None:
    def rest(value: Any) -> Any:
        value[at] = -1
        return value[PAGE // 8 + 1 :]  # begins and ends in the middle of pages

    body = stowed(portable, numbers())
    blob = child.run(body, rest)

    assert (not slices(blob)) == copied
    assert np.array_equal(landed(portable, body, blob), rest(numbers()))


@pytest.mark.parametrize(
    "function",
    [lambda array: array[: SIZE // 2 - 1], lambda array: array[::2], lambda array: array + 1, np.copy],
    ids=["little", "strided", "new", "copy"],
)
def test_others_are_copied(portable: Portable, child: Child, function: Callable[[Any], Any]) -> None:
    body = stowed(portable, numbers())
    blob = child.run(body, function)

    assert not slices(blob)
    assert np.array_equal(landed(portable, body, blob), function(numbers()))


def test_where_the_system_does_not_tell_all_is_copied(
    portable: Portable, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def hidden(path: Any, *args: Any, **kwargs: Any) -> int:
        if path == "/proc/self/pagemap":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    body = stowed(portable, numbers())
    monkeypatch.setattr(os, "open", hidden)
    blob = child.run(body, same)

    assert not slices(blob)
    assert np.array_equal(landed(portable, body, blob), numbers())


def test_a_page_is_dirty_when_any_byte_of_it_was_written_to() -> None:
    segment = segments.Segment(4 * PAGE)
    segment.write(memoryview(bytes(4 * PAGE)))
    area = segments.area_of(segment.ref())
    with segments.address_of(segments.bytes_of(area)) as address:
        assert is_clean(address + 5, 4 * PAGE - 9)
        area[2 * PAGE] = 0  # what it was

        assert is_clean(address + 5, 2 * PAGE - 5)
        assert not is_clean(address + 5, 2 * PAGE - 4)
        assert not is_clean(address + 3 * PAGE - 1, 2)
        assert is_clean(address + 3 * PAGE, PAGE)


def test_what_is_not_written_stays_as_it_was_told(portable: Portable, child: Child) -> None:
    left: list[Any] = []

    def keep(value: Any) -> Any:
        left.append(value)
        return value

    result = returned(portable, child, numbers(), keep)
    left[0][:] = 0  # a thread of the task goes on

    assert np.array_equal(result, numbers())


def test_results_of_one_argument_are_private(portable: Portable, child: Child) -> None:
    array = numbers()
    first, second = (returned(portable, child, array, same) for _ in range(2))
    first[:] = 1
    third = returned(portable, child, array, same)
    third[5] = 2

    assert np.array_equal(second, array)
    assert np.array_equal(array, numbers())
    assert np.array_equal(returned(portable, child, array, same), array)


def test_memory_of_an_argument_is_used_again_once_its_results_are_gone(
    portable: Portable, child: Child
) -> None:
    stowage = stowage_of(portable)
    result = returned(portable, child, numbers(1), same)
    part = result[100:200]
    del result
    for seed in range(2, 5):
        other = returned(portable, child, numbers(seed), same)
        assert np.array_equal(part, numbers(1)[100:200])
    stowage._sweep()
    assert (stowage.bytes, len(stowage._away)) == (3 * SIZE * 8, 2)  # one of them is free
    del part, other
    for seed in range(5, 20):
        returned(portable, child, numbers(seed), same)

    assert stowage.bytes == 3 * SIZE * 8
    stowage.cool()
    stowage.cool()
    assert (stowage.bytes, stowage._inside, stowage._away, stowage._out) == (0, 0, {}, set())


def test_an_argument_that_is_found_again_while_there_is_a_result_in_it(
    portable: Portable, child: Child
) -> None:
    result = returned(portable, child, numbers(1), same)
    again = stowed(portable, result)
    (there,) = slices(child.run(again, same))
    assert tokens_of(again) == [there.ref.token]
    del result
    others = [stowed(portable, numbers(seed)) for seed in range(2, 5)]

    assert there.ref.token not in {tokens_of(other)[0] for other in others}
    assert np.array_equal(returned(portable, child, numbers(1), same), numbers(1))
    assert np.array_equal(landed(portable, again, child.run(again, same)), numbers(1))


def test_a_result_of_a_call_that_has_ended_does_not_land(portable: Portable, child: Child) -> None:
    body, other = stowed(portable, numbers(1)), stowed(portable, numbers(2))
    hold = body.hold
    blob = child.run(body, same)
    for wrong in (None, other.hold):
        with pytest.raises(FileNotFoundError, match="has ended"):
            stowage_of(portable).land(blob, wrong)
    stowage_of(portable).ended(hold, ())

    with pytest.raises(FileNotFoundError, match="has ended"):
        stowage_of(portable).land(blob, hold)
    with pytest.raises(FileNotFoundError, match="has ended"):
        stowage_of(portable).keep(slices(blob)[0].ref, hold)


def test_what_a_forked_process_may_see_is_not_written_to(portable: Portable, child: Child) -> None:
    first = stowed(portable, numbers(1))
    tokens = tokens_of(first)
    result = landed(portable, first, child.run(first, same))
    stowage_of(portable).before_fork()
    del result

    for seed in range(2, 6):
        body = stowed(portable, numbers(seed))
        assert tokens_of(body) != tokens
        landed(portable, body, child.run(body, same))


@pytest.mark.skipif(not segments.leases_tell(), reason="this system does not tell")
def test_what_is_kept_of_an_argument_is_not_written_to_while_it_is_kept(
    portable: Portable, child: Child
) -> None:
    stowage = stowage_of(portable)
    body = stowed(portable, numbers(1))
    (segment,) = body.hold.segments
    (there,) = slices(child.run(body, same))
    kept = there.ref._replace(fd=stowage.keep(there.ref, body.hold))
    stowage.ended(body.hold, ())
    child.larder.clear()
    others = [stowed(portable, numbers(seed)) for seed in range(2, 5)]
    assert segment not in [other.hold.segments[0] for other in others]
    assert bytes(segments.bytes_of(segments.area_of(kept))) == numbers(1).tobytes()
    os.close(kept.fd)

    assert stowed(portable, numbers(5)).hold.segments == [segment]


def test_results_that_are_held_leave_room_for_arguments(
    portable: Portable, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AWAY_MAX", 3)
    before = len(os.listdir("/proc/self/fd"))
    held = [returned(portable, child, numbers(seed), same) for seed in range(8)]
    stowage = stowage_of(portable)

    assert len(stowage._away) == 3
    assert stowage.bytes == 3 * SIZE * 8
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    monkeypatch.setattr(stowage._pool, "_most", 3 * SIZE * 8)
    monkeypatch.setattr(stowage._pool, "_limits", Lenient())
    body = stowed(portable, numbers(9))
    assert tokens_of(body), "it does not travel"
    for seed, array in enumerate(held):
        assert np.array_equal(array, numbers(seed))
    del held, array
    assert np.array_equal(landed(portable, body, child.run(body, same)), numbers(9))
    stowage._sweep()
    assert stowage._inside == 0


def test_too_many_mappings_of_one_argument_are_copies(
    portable: Portable, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COPY_FROM", 2)
    array = numbers()
    mapped: list[int] = []
    results = []
    for _ in range(4):
        results.append(returned(portable, child, array, lambda array: array[1:]))
        mapped.append(own_mappings())
    results[3][:] = 0

    assert mapped[0] < mapped[1] == mapped[2] == mapped[3]
    assert all(np.array_equal(result, array[1:]) for result in results[:3])


def own_mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:zfarm-" in line for line in maps)


def test_one_that_is_spilled_comes_back_like_others(
    portable: Portable, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stowage_of(portable)._pool, "_most", 1000)
    first = returned(portable, child, numbers(1), same)
    second = returned(portable, child, numbers(2), changed(3))
    first[0] = -1

    assert np.array_equal(first[1:], numbers(1)[1:])
    assert np.array_equal(second, changed(3)(numbers(2)))
    assert stowage_of(portable)._pool.spilled == SIZE * 8, "the other one's is free, and so gone"
