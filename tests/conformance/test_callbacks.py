"""Callbacks of futures: when they run, and what they may do (6)."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, Gate, Make, everyone, only_zfarm, wait_until


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What the logger of concurrent.futures was told: level and type of the exception, and no frames."""
    records: list[Any] = []

    def take(record: logging.LogRecord) -> bool:
        records.append((record.levelno, record.exc_info and record.exc_info[0]))
        return False  # nobody else gets it: a kept traceback would keep the executor's frames

    logger = logging.getLogger("concurrent.futures")
    logger.addFilter(take)
    yield records
    logger.removeFilter(take)


@everyone
@pytest.mark.parametrize(("call", "value"), [((tasks.square, 3), 9), ((tasks.divide, 1, 0), None)])
def test_a_callback_runs_here_with_the_future(make: Make, call: Any, value: Any) -> None:
    """(6)"""
    seen: list[Any] = []
    future = make().submit(*call)
    future.add_done_callback(lambda done: seen.append((done, done.done(), os.getpid())))
    future.exception(DEADLINE_S)
    wait_until(lambda: seen)

    assert seen == [(future, True, os.getpid())]
    assert future.exception() is not None or future.result() == value


@everyone
def test_callbacks_run_in_the_order_they_were_added(make: Make, gate: Gate) -> None:
    """(6)"""
    seen: list[int] = []
    future = make().submit(tasks.hold, gate.path)
    for n in range(10):
        future.add_done_callback(lambda done, n=n: seen.append(n))  # type: ignore[misc]
    gate.open()
    wait_until(lambda: len(seen) == 10)

    assert seen == list(range(10))


@everyone
def test_a_callback_of_a_finished_future_runs_at_once_and_here(make: Make) -> None:
    """(6)"""
    future = make().submit(tasks.square, 3)
    future.result(DEADLINE_S)
    seen: list[int] = []
    future.add_done_callback(lambda done: seen.append(threading.get_ident()))

    assert seen == [threading.get_ident()]


@everyone
def test_callbacks_of_a_cancelled_future_run(make: Make, gate: Gate) -> None:
    """(6)"""
    executor = make(1)
    executor.submit(tasks.hold, gate.path)
    futures = [executor.submit(tasks.hold, gate.path, str(n)) for n in range(5)]
    seen: list[bool] = []
    futures[4].add_done_callback(lambda done: seen.append(done.cancelled()))
    gate.wait_for(1)
    assert futures[4].cancel()
    wait_until(lambda: seen)

    assert seen == [True]


@everyone
def test_a_callback_that_raises_is_logged_and_harms_nothing(
    make: Make, gate: Gate, logged: list[Any]
) -> None:
    """(6)"""
    executor = make()
    future = executor.submit(tasks.hold, gate.path, "call", 3)
    seen: list[Any] = []
    future.add_done_callback(lambda done: tasks.fail(ArithmeticError("of the callback")))
    future.add_done_callback(seen.append)
    gate.open()
    assert future.result(DEADLINE_S) == 3
    wait_until(lambda: seen)

    assert logged == [(logging.ERROR, ArithmeticError)]
    assert executor.submit(tasks.square, 4).result(DEADLINE_S) == 16


@everyone
def test_callbacks_may_submit_to_the_same_executor(make: Make) -> None:
    """(6) A chain in which each call is submitted by the callback of the one before."""
    executor = make()
    seen: list[int] = []

    def go_on(future: Future[int]) -> None:
        seen.append(future.result())
        if len(seen) < 200:
            executor.submit(tasks.square, len(seen)).add_done_callback(go_on)

    executor.submit(tasks.square, 0).add_done_callback(go_on)
    wait_until(lambda: len(seen) == 200)

    assert seen == [n * n for n in range(200)]


@everyone
def test_a_callback_may_submit_many(make: Make) -> None:
    """(6)"""
    executor = make()
    futures: list[Future[int]] = []

    def submit_many(done: Future[int]) -> None:
        futures.extend(executor.submit(tasks.square, n) for n in range(300))

    executor.submit(tasks.square, 1).add_done_callback(submit_many)
    wait_until(lambda: len(futures) == 300)

    assert [future.result(DEADLINE_S) for future in futures] == [n * n for n in range(300)]


@everyone
def test_a_callback_may_shut_down_without_waiting(make: Make) -> None:
    """(6, 8)"""
    executor = make()
    futures = [executor.submit(tasks.square, n) for n in range(20)]
    futures[0].add_done_callback(lambda done: executor.shutdown(wait=False))

    assert [future.result(DEADLINE_S) for future in futures] == [n * n for n in range(20)]
    wait_until(lambda: refuses(executor))


@only_zfarm
def test_a_callback_that_shuts_down_and_waits_does_not_hang(make: Make, gate: Gate) -> None:
    """(6, 8) "From any thread" includes the one that runs callbacks, which cannot wait for itself."""
    executor = make()
    ended = threading.Event()

    def shut_down(done: Future[Any]) -> None:
        try:
            executor.shutdown(wait=True)
        finally:
            ended.set()

    future = executor.submit(tasks.hold, gate.path, "call", 5)
    future.add_done_callback(shut_down)
    gate.open()

    assert future.result(DEADLINE_S) == 5
    assert ended.wait(DEADLINE_S)


def refuses(executor: Executor) -> bool:
    """True if the executor takes no calls any more."""
    try:
        executor.submit(tasks.nothing)
    except RuntimeError:
        return True
    return False
