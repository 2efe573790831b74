"""Calls that must be stopped, whatever they do: by their timeout, or because somebody wants it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import wait_until
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


# ---------------------------------------------------------------- Future.cancel(force=True)


def begin(path: str, fn: Callable[..., Any], *args: Any) -> Any:
    """Leave the pid of the child in ``path``, and go on with ``fn``."""
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    return fn(*args)


def improve(path: str) -> str:
    """Return the best so far when interrupted."""
    try:
        begin(path, time.sleep, 60)
    except KeyboardInterrupt:
        return "best so far"
    return "best"


def cling() -> None:
    """Ignore every KeyboardInterrupt."""
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            continue


def started(path: Path) -> int:
    """The pid of the child in which the call has started."""
    return int(wait_until(lambda: path.exists() and path.read_text(), "the call runs"))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("fn", [spin, hold_interpreter, cling])
@pytest.mark.parametrize("grace", [0.0, 0.3])
def test_a_forced_cancel_stops_any_call_and_gives_the_slot_back(
    executor: zfarm.Executor, tmp_path: Path, fn: Callable[..., Any], grace: float
) -> None:
    future = executor.submit(begin, str(tmp_path / "pid"), fn)
    pid = started(tmp_path / "pid")
    wait_until(future.running, "the future knows")
    assert not future.cancel(), "the plain one keeps the contract"
    since = time.monotonic()
    assert future.cancel(force=True, grace=grace)

    assert future.cancelled()
    assert future.done()
    with pytest.raises(CancelledError):
        future.result()
    assert executor.submit(abs, -2).result(30) == 2
    assert took(since) < 2.0 + grace
    wait_until(lambda: not is_alive(pid), "the child is gone")


def test_an_interrupted_call_may_return_its_best_value(executor: zfarm.Executor, tmp_path: Path) -> None:
    future = executor.submit(improve, str(tmp_path / "pid"))
    started(tmp_path / "pid")
    assert not future.cancel(force=True, grace=20)

    assert future.result(0) == "best so far"
    assert executor.submit(abs, -2).result(30) == 2


def test_a_call_that_lets_the_interrupt_through_is_cancelled(
    executor: zfarm.Executor, tmp_path: Path
) -> None:
    future = executor.submit(begin, str(tmp_path / "pid"), time.sleep, 60)
    started(tmp_path / "pid")
    since = time.monotonic()

    assert future.cancel(force=True, grace=30)
    assert took(since) < 10, "it did not need its grace"


def test_a_forced_cancel_of_what_waits_or_has_ended(executor: zfarm.Executor, tmp_path: Path) -> None:
    running = executor.submit(begin, str(tmp_path / "pid"), time.sleep, 60)
    waiting = executor.submit(begin, str(tmp_path / "never"), abs, -1)
    started(tmp_path / "pid")
    assert waiting.cancel(force=True, grace=5)
    assert running.cancel(force=True)
    ended = executor.submit(abs, -3)
    assert ended.result(30) == 3
    assert not ended.cancel(force=True)
    assert ended.result() == 3
    assert not (tmp_path / "never").exists()


def test_a_grace_that_cannot_be_is_refused(executor: zfarm.Executor) -> None:
    future = executor.submit(abs, -1)
    for grace in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="grace"):
            future.cancel(force=True, grace=grace)
