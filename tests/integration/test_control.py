"""Calls that must be stopped: by their timeout, whatever they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zfarm
from zfarm.errors import TaskTimeout

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def executor() -> Iterator[zfarm.Executor]:
    """An embedded farm with one slot: whoever does not give it back blocks the next call."""
    with zfarm.Executor(max_workers=1) as farm:
        assert farm.submit(abs, -1).result(30) == 1
        yield farm


def spin() -> None:
    """Loop for ever."""
    while True:
        pass


def hold_interpreter() -> int:
    """One bytecode that lasts for minutes, in which no signal handler of Python runs."""
    return (1 << 10**9) ** 3 % 7


class Slow:
    """Takes long to unpickle."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[int]]:
        return time.sleep, (60,)


def took(since: float) -> float:
    return time.monotonic() - since


@pytest.mark.parametrize(
    ("fn", "args"),
    [(spin, ()), (hold_interpreter, ()), (time.sleep, (60,)), (id, (Slow(),))],
    ids=["loop", "holds the interpreter", "sleep", "unpickling"],
)
def test_a_timeout_stops_any_call_and_gives_the_slot_back(
    executor: zfarm.Executor, fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    since = time.monotonic()
    error = executor.options(timeout=0.7).submit(fn, *args).exception(30)

    assert type(error) is TaskTimeout
    assert isinstance(error, TimeoutError)
    assert "0.7 s" in str(error)
    assert 0.7 <= took(since) < 2.5
    assert executor.submit(abs, -2).result(30) == 2
    assert took(since) < 4.0


def test_a_timeout_harms_nobody_else_and_is_not_retried(executor: zfarm.Executor) -> None:
    timed = executor.options(timeout=0.3)
    stopped = timed.submit(spin)
    quick = [timed.submit(abs, -n) for n in range(20)]
    others = [executor.submit(abs, -n) for n in range(200)]

    assert [future.result(30) for future in others] == list(range(200))
    assert [future.result(30) for future in quick] == list(range(20))
    error = stopped.exception(30)
    assert isinstance(error, TaskTimeout)
    assert len(error.deaths) == 1, "it ran once"


def test_each_item_of_a_map_has_its_own_timeout(executor: zfarm.Executor) -> None:
    timed = executor.options(timeout=1.0)
    assert list(timed.map(time.sleep, [0.3] * 5)) == [None] * 5
    results = timed.map(time.sleep, [0, 60])
    assert next(results) is None
    with pytest.raises(TaskTimeout):
        next(results)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(0, ValueError), (-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)],
)
def test_a_timeout_that_cannot_be_is_refused(executor: zfarm.Executor, timeout: Any, error: type) -> None:
    with pytest.raises(error, match="timeout"):
        executor.options(timeout=timeout)
