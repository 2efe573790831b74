"""map with a buffersize, as Python 3.14 has it: input is taken no further ahead than that (2)."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance import tasks
from tests.conformance.support import EVERYONE, Gate, Make, kinds

buffered = kinds(*(EVERYONE if sys.version_info >= (3, 14) else ("zfarm",)))


class Taken:
    """An endless input that knows how much of it was taken."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.count += 1
        return self.count - 1


@buffered
@pytest.mark.parametrize("buffersize", ["1", 1.5, 2j])
def test_buffersize_is_an_integer_or_none(make: Make, buffersize: Any) -> None:
    """(2)"""
    executor: Any = make()
    with pytest.raises(TypeError, match=r"^buffersize must be an integer or None$"):
        executor.map(tasks.square, [1], buffersize=buffersize)


@buffered
@pytest.mark.parametrize("buffersize", [0, -1])
def test_buffersize_must_be_positive(make: Make, buffersize: int) -> None:
    """(2)"""
    executor: Any = make()
    with pytest.raises(ValueError, match=r"^buffersize must be None or > 0$"):
        executor.map(tasks.square, [1], buffersize=buffersize)


@buffered
@pytest.mark.parametrize("buffersize", [None, 1, 2, 10, 1000])
def test_results_are_the_same_with_any_buffersize(make: Make, buffersize: int | None) -> None:
    """(2)"""
    executor: Any = make()
    results = executor.map(tasks.add, range(100), range(50), buffersize=buffersize)

    assert list(results) == [2 * n for n in range(50)]


@buffered
def test_endless_input(make: Make) -> None:
    """(2)"""
    executor: Any = make()
    results = executor.map(tasks.add, itertools.count(), itertools.count(1), buffersize=3)

    assert list(itertools.islice(results, 200)) == [2 * n + 1 for n in range(200)]


@buffered
def test_input_is_taken_as_results_are_read(make: Make) -> None:
    """(2)"""
    executor: Any = make()
    source = Taken()
    results = executor.map(tasks.square, source, buffersize=4)
    assert source.count == 4
    for n in range(20):
        assert next(results) == n * n
        assert source.count <= n + 6


@buffered
def test_a_full_buffer_takes_no_more_input(make: Make, gate: Gate) -> None:
    """(2)"""
    executor: Any = make(2)
    source = Taken()
    results = executor.map(tasks.hold_some, itertools.repeat(gate.path), source, buffersize=5)
    gate.wait_for(1)
    assert next(results) == 0
    assert source.count <= 6
    gate.open()

    assert next(results) == 1


@buffered
@pytest.mark.parametrize("chunksize", [2, 7])
def test_chunksize_counts_in_chunks(make: Make, chunksize: int) -> None:
    """(2)"""
    executor: Any = make()
    source = Taken()
    results = executor.map(tasks.square, source, buffersize=3, chunksize=chunksize)
    assert source.count <= 3 * chunksize
    assert list(itertools.islice(results, 50)) == [n * n for n in range(50)]


@buffered
def test_empty_input_with_a_buffer(make: Make) -> None:
    """(2)"""
    executor: Any = make()

    assert list(executor.map(tasks.square, [], buffersize=4)) == []
    assert list(executor.map(tasks.add, [], itertools.count(), buffersize=4)) == []


@buffered
def test_an_exception_comes_at_its_place_with_a_buffer(make: Make) -> None:
    """(2)"""
    executor: Any = make()
    results = executor.map(tasks.fail_odd, [0, 2, 4, 7, 8], buffersize=2)

    assert [next(results), next(results), next(results)] == [0, 2, 4]
    with pytest.raises(ValueError, match="7"):
        next(results)


@buffered
def test_nothing_more_is_submitted_after_shutdown(make: Make) -> None:
    """(2, 8) What is in the buffer still comes; the rest of the input stays where it is."""
    executor: Any = make()
    source = Taken()
    results = executor.map(tasks.square, source, buffersize=2)
    executor.shutdown(wait=True)
    taken = source.count
    try:
        values = list(itertools.islice(results, 10))
    except RuntimeError as error:
        assert "cannot schedule new futures after shutdown" in str(error)
    else:
        assert values == [0, 1]
    assert source.count <= taken + 1
