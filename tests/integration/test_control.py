"""Calls that must be stopped, whatever they do: by their timeout, or because somebody wants it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zfarm
from tests.face.processes import wait_until
from tests.integration.test_faults import hold, marked
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


def test_a_callback_may_force_a_cancel_with_grace(executor: zfarm.Executor, tmp_path: Path) -> None:
    running = executor.submit(begin, str(tmp_path / "pid"), time.sleep, 60)
    waiting = executor.submit(abs, -1)
    started(tmp_path / "pid")
    wait_until(lambda: not executor._link.inbox, "the farm has both")
    answers: list[bool] = []
    waiting.add_done_callback(lambda _: answers.append(running.cancel(force=True, grace=30)))
    assert waiting.cancel()

    with pytest.raises(CancelledError):  # it has not ended with the KeyboardInterrupt that it let through
        running.exception(30)
    assert answers == [False], "it was not known yet"


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


# ---------------------------------------------------------------- options


def test_force_cancel_makes_every_cancel_stop_what_runs(executor: zfarm.Executor, tmp_path: Path) -> None:
    forced = executor.options(force_cancel=True)
    future = forced.submit(begin, str(tmp_path / "plain"), spin)
    started(tmp_path / "plain")
    assert future.cancel()
    assert executor.submit(abs, -1).result(30) == 1

    results = forced.map(begin, [str(tmp_path / "first"), str(tmp_path / "map")], [os.getpid, spin])
    assert next(results) == started(tmp_path / "first")
    started(tmp_path / "map")
    results.close()  # type: ignore[attr-defined]
    assert executor.submit(abs, -2).result(30) == 2

    forced.submit(begin, str(tmp_path / "shutdown"), spin)
    started(tmp_path / "shutdown")
    since = time.monotonic()
    forced.shutdown(cancel_futures=True)
    assert took(since) < 10
    assert executor.submit(abs, -3).result(30) == 3, "its shutdown is not the farm's"
    with pytest.raises(zfarm.FarmClosed):
        forced.submit(abs, -1)


def test_asyncio_stops_a_running_call_with_force_cancel(executor: zfarm.Executor, tmp_path: Path) -> None:
    async def impatient() -> None:
        loop = asyncio.get_running_loop()
        forced = executor.options(force_cancel=True)
        call = loop.run_in_executor(forced, begin, str(tmp_path / "pid"), spin)
        await loop.run_in_executor(None, started, tmp_path / "pid")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(impatient())
    assert executor.submit(abs, -2).result(30) == 2


def append(path: str, what: str) -> None:
    with open(path, "a") as file:
        file.write(what)


def test_a_higher_priority_goes_first(executor: zfarm.Executor, tmp_path: Path) -> None:
    order, go = tmp_path / "order", tmp_path / "go"
    first = executor.submit(hold, str(tmp_path / "runs"), 1, str(go))
    wait_until((tmp_path / "runs").exists, "it runs")
    late = executor.options(priority=-1)
    soon = executor.options(priority=7)
    futures = [
        view.submit(append, str(order), what)
        for view, what in ((late, "5"), (executor, "3"), (soon, "1"), (executor, "4"), (soon, "2"))
    ]
    go.touch()
    assert first.result(30) == 1
    for future in futures:
        future.result(30)
    assert order.read_text() == "12345"


def die() -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("options", "times"), [({"max_attempts": 2}, 2), ({"retries": 3}, 4), ({"retries": 0}, 1)]
)
def test_a_call_gets_the_attempts_that_were_asked_for(
    executor: zfarm.Executor, options: dict[str, Any], times: int
) -> None:
    error = executor.options(name="the deadly one", **options).submit(die).exception(60)

    assert isinstance(error, zfarm.TaskLost)
    assert len(error.deaths) == times
    assert "the deadly one" in str(error)


def test_views_keep_what_is_not_said_again(executor: zfarm.Executor) -> None:
    view = executor.options(timeout=0.3, name="night").options(retries=0)
    future = view.submit(spin)
    assert isinstance(future.exception(30), TaskTimeout)
    assert "night" in str(future.exception())
    assert view.options(timeout=None).submit(time.sleep, 0.6).exception(30) is None


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"retries": -1}, ValueError, "retries"),
        ({"retries": 1.5}, TypeError, "retries"),
        ({"max_attempts": 0}, ValueError, "max_attempts"),
        ({"max_attempts": 1, "retries": 1}, ValueError, "give one"),
        ({"priority": "high"}, TypeError, "priority"),
        ({"priority": 10**9}, ValueError, "priority"),
        ({"name": ""}, ValueError, "name"),
        ({"name": 3}, TypeError, "name"),
        ({"name": "a\nb"}, ValueError, "printable"),
        ({"force_cancel": 1}, TypeError, "force_cancel"),
        ({"scratch": 1}, ValueError, "scratch"),
        ({"timeout": 10**400}, ValueError, "timeout"),
        ({"timeout": Decimal("sNaN")}, ValueError, "timeout"),
        ({"timeout": np.zeros(2)}, TypeError, "timeout"),
        ({"retries": 10**5000}, ValueError, "retries"),
        ({"memory": 10**5000}, ValueError, "memory"),
        ({"resources": {"gpu": 10**5000}}, ValueError, "'gpu'"),
        ({"resources": {"gpu": Decimal("1E+999999")}}, ValueError, "'gpu'"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    executor: zfarm.Executor, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        executor.options(**options)


@pytest.mark.parametrize(
    ("grace", "error"),
    [
        (-1, ValueError),
        (float("nan"), ValueError),
        (10**400, ValueError),
        (1e13, ValueError),
        ("2", TypeError),
        (True, TypeError),
    ],
)
def test_a_grace_that_cannot_be_is_refused_and_the_call_goes_on(
    executor: zfarm.Executor, tmp_path: Path, grace: Any, error: type[Exception]
) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    future = executor.submit(hold, str(runs), 7, str(go))
    wait_until(lambda: marked(runs), "the call runs")

    with pytest.raises(error, match="grace must be"):
        future.cancel(force=True, grace=grace)
    go.touch()
    assert future.result(30) == 7
