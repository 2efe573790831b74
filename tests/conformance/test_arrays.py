"""numpy arrays arrive private and writable, in the form they had (19)."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import numpy as np
import pytest

from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, Gate, Make, everyone, only_zfarm, separate

RECORD = np.dtype([("name", "U8"), ("value", "f8"), ("inner", [("a", "i4"), ("b", "u1", (2,))])])


def samples() -> dict[str, Any]:
    base = np.arange(24, dtype="f8").reshape(4, 6)
    record = np.zeros(5, RECORD)
    record["name"], record["value"] = "name", np.arange(5)
    return {
        "plain": base,
        "large": np.arange(1_000_000, dtype="i8"),
        "large fortran": np.asfortranarray(np.arange(1_000_000, dtype="f4").reshape(1000, 1000)),
        "fortran": np.asfortranarray(base),
        "transposed": base.T,
        "strided": base[::2, ::3],
        "reversed": base[::-1],
        "scalar": np.float64(2.5),
        "zero dimensions": np.array(7),
        "empty": np.empty((0, 3)),
        "structured": record,
        "records": record.view(np.recarray),
        "object": np.array([1, "two", [3], None], dtype=object),
        "masked": np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False], fill_value=-1),
        "dates": np.array(["2024-01-01", "NaT"], dtype="M8[D]"),
        "text": np.array(["a", "bcd"]),
        "complex": np.array([1 + 2j]),
        "boolean": np.array([True, False]),
    }


def describe(value: Any) -> tuple[Any, ...]:
    """What must not change on the way, as far as pickle itself keeps it (strides are packed anew)."""
    if not isinstance(value, np.ndarray):
        return type(value), value.dtype.descr, value
    order = value.flags.f_contiguous and not value.flags.c_contiguous
    content = repr(value.tolist()) if value.size < 1000 else zlib.crc32(value.tobytes())
    return type(value), value.dtype.descr, value.shape, bool(order), content


def describe_and_write(value: Any) -> tuple[Any, ...]:
    """What the child sees of it; then it writes into it, as it must be able to."""
    seen = describe(value)
    if isinstance(value, np.ndarray) and value.size:
        value.flat[0] = value.flat[-1]
    return seen


@everyone
@pytest.mark.parametrize("name", samples())
def test_arrays_of_every_form_go_there_and_back(make: Make, name: str) -> None:
    """(19)"""
    value = samples()[name]
    before = describe(value)
    executor = make(1)
    assert executor.submit(describe_and_write, copy.copy(value)).result(DEADLINE_S) == before
    back = executor.submit(tasks.same, value).result(DEADLINE_S)

    assert describe(back) == before
    if isinstance(back, np.ndarray) and back.size:
        assert back.flags.writeable
        back.flat[0] = back.flat[-1]


@separate
@pytest.mark.parametrize("size", [10, 2_000_000])
def test_a_task_that_writes_into_its_array_changes_nobody_elses(make: Make, size: int) -> None:
    """(19)"""
    executor = make(2)
    array = np.ones(size)
    sums = [executor.submit(sum_and_clear, array) for _ in range(4)]

    assert [future.result(DEADLINE_S) for future in sums] == [size] * 4
    assert list(executor.map(sum_and_clear, [array] * 4)) == [size] * 4
    assert array.sum() == size


def sum_and_clear(array: Any) -> float:
    total = float(array.sum())
    array[:] = 0
    return total


@only_zfarm
@pytest.mark.parametrize("size", [10, 2_000_000])
def test_writing_after_submit_does_not_reach_the_task(make: Make, gate: Gate, size: int) -> None:
    """(19) A process pool pickles later, in a thread."""
    executor = make(1)
    executor.submit(tasks.hold, gate.path)
    array = np.ones(size)
    future = executor.submit(sum_and_clear, array)
    array[:] = 5
    gate.open()

    assert future.result(DEADLINE_S) == size


@separate
@pytest.mark.parametrize("size", [10, 2_000_000])
def test_results_are_private_and_writable(make: Make, size: int) -> None:
    """(19)"""
    executor = make(1)
    one, other = (executor.submit(keep_zeros, size).result(DEADLINE_S) for _ in range(2))
    one[:] = 7
    assert not other.any()

    assert not executor.submit(keep_zeros, size).result(DEADLINE_S).any()


_kept: dict[int, Any] = {}


def keep_zeros(size: int) -> Any:
    """The same array each time, kept in the child."""
    return _kept.setdefault(size, np.zeros(size))


@separate
def test_arrays_inside_of_other_things(make: Make) -> None:
    """(19)"""
    value = {"list": [np.arange(200_000), (np.ones(3),)], "again": None}
    value["again"] = value["list"]
    back = make(1).submit(tasks.same, value).result(DEADLINE_S)

    assert back["again"] is back["list"]
    assert (back["list"][0] == np.arange(200_000)).all()
    back["list"][0][0] = 5


@everyone
def test_generators_of_random_numbers_keep_their_state(make: Make) -> None:
    """(19)"""
    expected = np.random.default_rng(5).random(3).tolist()

    assert make(1).submit(draw, np.random.default_rng(5)).result(DEADLINE_S) == expected


def draw(generator: Any) -> Any:
    return generator.random(3).tolist()


@separate
def test_bytearrays_are_writable_and_private(make: Make) -> None:
    """(19)"""
    data = bytearray(3_000_000)
    back = make(1).submit(tasks.same, data).result(DEADLINE_S)
    back[0] = 5

    assert data[0] == 0
