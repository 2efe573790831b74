"""map: lazy results in order, whatever the iterables, the sizes and the errors (2)."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import tasks
from tests.conformance.support import (
    DEADLINE_S,
    Gate,
    Make,
    everyone,
    kinds,
    only_zfarm,
    separate,
    wait_until,
)

MAY_STILL_COME = 20
"""Of a hundred calls whose map has ended: a cancellation travels, and what is short has run by then."""


@everyone
def test_results_come_in_the_order_of_the_input(make: Make) -> None:
    """(2)"""
    assert list(make().map(tasks.square, range(500))) == [n * n for n in range(500)]


@everyone
def test_several_iterables_end_with_the_shortest(make: Make) -> None:
    """(2)"""
    executor = make()

    assert list(executor.map(pow, range(10), (2, 3, 4), iter([1, 5, 7, 9]))) == [0, 1, 2]
    assert list(executor.map(tasks.add, range(5), range(3), range(100))) == [0, 3, 6]


@everyone
def test_empty_input_gives_nothing(make: Make) -> None:
    """(2)"""
    executor = make()

    assert list(executor.map(tasks.square, [])) == []
    assert list(executor.map(tasks.add, range(10), ())) == []


@everyone
def test_generators_sets_and_dicts_are_input_too(make: Make) -> None:
    """(2, 20)"""
    executor = make()

    assert list(executor.map(tasks.square, (n for n in range(4)))) == [0, 1, 4, 9]
    assert sorted(executor.map(tasks.square, {1, 2, 3})) == [1, 4, 9]
    assert list(executor.map(tasks.square, {5: "a", 6: "b"})) == [25, 36]
    assert list(executor.map(tasks.echo, {"k": 1}.items())) == [((("k", 1),), {})]
    assert list(executor.map(str.upper, "abc")) == ["A", "B", "C"]


@everyone
def test_the_input_is_consumed_at_the_call(make: Make) -> None:
    """(2)"""
    taken = []

    def numbers() -> Iterator[int]:
        for n in range(50):
            taken.append(n)
            yield n

    results = make().map(tasks.square, numbers())
    assert taken == list(range(50))
    assert list(results) == [n * n for n in range(50)]


@everyone
def test_calls_run_before_anybody_asks_for_results(make: Make, gate: Gate) -> None:
    """(2)"""
    results = make(2).map(tasks.hold, [gate.path] * 2, ["a", "b"], [1, 2])
    gate.wait_for(2)
    gate.open()

    assert list(results) == [1, 2]


@everyone
def test_a_map_that_nobody_reads_still_runs(make: Make, tmp_path: Path) -> None:
    """(2) ``executor.map(work, items)`` for its effects alone is a common habit."""
    executor = make()
    path = str(tmp_path / "trace")
    executor.map(tasks.traced, [path] * 100, range(100))
    executor.shutdown(wait=True)

    assert tasks.count(path) == 100


@everyone
def test_results_are_an_iterator(make: Make) -> None:
    """(2)"""
    results = make().map(tasks.square, range(3))

    assert iter(results) is results
    assert [next(results), next(results), next(results)] == [0, 1, 4]
    with pytest.raises(StopIteration):
        next(results)


@everyone
def test_an_exception_comes_at_its_place_and_ends_the_results(make: Make) -> None:
    """(2)"""
    results = make().map(tasks.divide, [1, 1, 1, 1], [1, 2, 0, 4])

    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


@everyone
def test_every_item_runs_once_though_one_fails(make: Make, tmp_path: Path) -> None:
    """(2)"""
    path = str(tmp_path / "trace")
    executor = make()
    list(executor.map(tasks.traced, [path] * 60, range(60)))
    with pytest.raises(ValueError, match="11"):
        list(executor.map(tasks.fail_odd, [0, 2, 11, 4, 13]))

    assert sorted(map(int, Path(path).read_text().split())) == list(range(60))


@everyone
def test_an_error_of_the_input_is_raised_by_the_call(make: Make) -> None:
    """(2)"""

    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("broken input")

    executor = make()
    with pytest.raises(LookupError, match="broken input"):
        executor.map(tasks.square, broken())
    assert list(executor.map(tasks.square, [3])) == [9]


@separate
@pytest.mark.parametrize("chunksize", [1, 2, 6, 7, 40, 1000])
def test_any_chunksize_gives_the_same_results(make: Make, chunksize: int) -> None:
    """(2)"""
    executor = make()

    assert list(executor.map(pow, range(40), range(40), chunksize=chunksize)) == [n**n for n in range(40)]


@separate
@pytest.mark.parametrize("chunksize", [0, -1])
def test_chunksize_must_be_positive(make: Make, chunksize: int) -> None:
    """(2)"""
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        make().map(tasks.square, range(3), chunksize=chunksize)


@only_zfarm
@pytest.mark.parametrize("chunksize", [1.5, 2.0, "2", None])
def test_a_chunksize_that_is_no_whole_number_is_refused_at_once(make: Make, chunksize: Any) -> None:
    """(2) Process pools fail as late as when they cut the input."""
    executor = make()

    with pytest.raises(TypeError, match="chunksize must be an integer"):
        executor.map(tasks.square, range(3), chunksize=chunksize)
    assert list(executor.map(tasks.square, range(3), chunksize=2)) == [0, 1, 4]


@kinds("threads")
def test_threads_take_a_chunksize_and_ignore_it(make: Make) -> None:
    """(2)"""
    assert list(make().map(tasks.square, range(3), chunksize=2)) == [0, 1, 4]


@only_zfarm
@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_an_exception_comes_at_its_place_within_a_chunk(make: Make, chunksize: int) -> None:
    """(2) Process pools lose the whole chunk."""
    results = make().map(tasks.fail_odd, [0, 2, 4, 5, 6], chunksize=chunksize)

    assert [next(results), next(results), next(results)] == [0, 2, 4]
    with pytest.raises(ValueError, match="5"):
        next(results)


@everyone
def test_a_timeout_is_raised_at_the_result_that_is_late(make: Make, gate: Gate) -> None:
    """(2)"""
    executor = make(2)
    executor.submit(tasks.nothing).result(DEADLINE_S)
    results = executor.map(tasks.hold_some, [gate.path] * 4, [0, 2, 1, 3], timeout=1.0)

    assert [next(results), next(results)] == [0, 2]
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


@everyone
def test_the_timeout_counts_from_the_call(make: Make, gate: Gate) -> None:
    """(2)"""
    executor = make(1)
    executor.submit(tasks.nothing).result(DEADLINE_S)
    called = time.monotonic()
    results = executor.map(tasks.hold, [gate.path], timeout=0.3)
    wait_until(lambda: time.monotonic() > called + 0.3)
    asked = time.monotonic()
    with pytest.raises(TimeoutError):
        next(results)
    assert time.monotonic() - asked < 0.25


@everyone
def test_a_timeout_of_zero_takes_what_is_there(make: Make, gate: Gate) -> None:
    """(2)"""
    with pytest.raises(concurrent.futures.TimeoutError):
        list(make().map(tasks.hold, [gate.path], timeout=0))


@everyone
def test_a_timeout_that_is_not_met_changes_nothing(make: Make) -> None:
    """(2)"""
    assert list(make().map(tasks.square, range(10), timeout=DEADLINE_S)) == [n * n for n in range(10)]


@everyone
def test_a_timeout_cancels_what_has_not_started(make: Make, gate: Gate) -> None:
    """(2)"""
    executor = make(1)
    results = executor.map(tasks.hold, [gate.path] * 100, map(str, range(100)), timeout=0.3)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    gate.open()
    executor.shutdown(wait=True)

    assert len(gate.came()) <= MAY_STILL_COME


@everyone
def test_a_dropped_iterator_cancels_the_rest(make: Make, gate: Gate) -> None:
    """(2)"""
    executor = make(1)
    results = executor.map(tasks.hold_some, [gate.path] * 100, range(100), [range(1, 100)] * 100)
    assert next(results) == 0
    gate.wait_for(1)
    del results
    gate.open()
    executor.shutdown(wait=True)

    assert len(gate.came()) <= MAY_STILL_COME


@everyone
def test_an_exception_cancels_the_rest(make: Make, gate: Gate) -> None:
    """(2)"""
    executor = make(1)
    inputs = ["no/such/folder/gate"] + [gate.path] * 100
    with pytest.raises(FileNotFoundError):
        list(executor.map(tasks.hold, inputs, map(str, range(101))))
    gate.open()
    executor.shutdown(wait=True)

    assert len(gate.came()) <= MAY_STILL_COME


@everyone
def test_two_maps_at_once_do_not_mix(make: Make) -> None:
    """(2)"""
    executor = make()
    first = executor.map(tasks.square, range(200))
    second = executor.map(tasks.add, range(200), range(200))

    assert list(zip(first, second, strict=True)) == [(n * n, 2 * n) for n in range(200)]


@everyone
def test_a_long_map_with_the_default_call(make: Make) -> None:
    """(2)"""
    count = 4000
    assert sum(make().map(tasks.square, range(count))) == sum(n * n for n in range(count))


@everyone
def test_exceptions_as_values_are_values(make: Make) -> None:
    """(2)"""
    values: list[Any] = [ValueError("a value"), None, False, StopIteration()]
    results = list(make().map(tasks.same, values))

    assert [type(value) for value in results] == [type(value) for value in values]
