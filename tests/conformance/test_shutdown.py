"""Shutdown in all combinations, from any thread, once or more, and by deleting the executor (8, 9, 10)."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import threading
import weakref
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import leaks
from tests.conformance import support, tasks
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

CLOSED = r"^cannot schedule new futures after shutdown"


@everyone
@pytest.mark.parametrize("waits", [True, False])
def test_no_calls_are_taken_after_shutdown(make: Make, waits: bool) -> None:
    """(8)"""
    executor = make()
    executor.submit(tasks.nothing).result(DEADLINE_S)
    executor.shutdown(wait=waits)
    with pytest.raises(RuntimeError, match=CLOSED):
        executor.submit(pow, 2, 5)
    with pytest.raises(RuntimeError, match=CLOSED):
        executor.map(tasks.square, range(3))


@everyone
def test_an_executor_that_was_never_used_shuts_down(make: Make) -> None:
    """(8)"""
    executor = make()
    executor.shutdown()
    with pytest.raises(RuntimeError, match=CLOSED):
        executor.submit(tasks.nothing)


@everyone
def test_shutdown_twice_is_shutdown_once(make: Make) -> None:
    """(8)"""
    executor = make()
    future = executor.submit(tasks.square, 4)
    for waits in (True, True, False, True):
        executor.shutdown(wait=waits)

    assert future.result(0) == 16


@everyone
def test_the_with_block_waits_for_everything(make: Make) -> None:
    """(8)"""
    with make() as executor:
        futures = [executor.submit(tasks.square, n) for n in range(300)]

    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match=CLOSED):
        executor.submit(tasks.nothing)


@everyone
def test_the_with_block_waits_when_it_raises(make: Make, tmp_path: Path) -> None:
    """(8)"""
    futures: list[Future[Any]] = []

    def block() -> None:
        with make() as executor:
            futures.extend(executor.submit(tasks.square, n) for n in range(50))
            raise LookupError("in the block")

    with pytest.raises(LookupError, match="in the block"):
        block()
    assert [future.result(0) for future in futures] == [n * n for n in range(50)]


@everyone
def test_shutdown_without_waiting_lets_the_calls_finish(make: Make, gate: Gate) -> None:
    """(8)"""
    executor = make()
    held = executor.submit(tasks.hold, gate.path, "call", 1)
    futures = [executor.submit(tasks.square, n) for n in range(100)]
    executor.shutdown(wait=False)
    assert not held.done()
    gate.open()

    assert held.result(DEADLINE_S) == 1
    assert [future.result(DEADLINE_S) for future in futures] == [n * n for n in range(100)]


@everyone
@pytest.mark.parametrize("waits", [True, False])
def test_cancel_futures_cancels_what_has_not_started(make: Make, gate: Gate, waits: bool) -> None:
    """(8)"""
    executor = make(1)
    futures = [executor.submit(tasks.hold, gate.path, str(n), n) for n in range(50)]
    gate.wait_for(1)
    closing = threading.Thread(target=executor.shutdown, kwargs={"wait": waits, "cancel_futures": True})
    closing.start()
    wait_until(lambda: futures[-1].cancelled())
    gate.open()
    closing.join(DEADLINE_S)
    assert not closing.is_alive()
    wait_until(lambda: all(future.done() for future in futures))

    ran = [future.result() for future in futures if not future.cancelled()]
    assert ran[0] == 0
    assert len(ran) == len(gate.came()) <= 3


@kinds("threads", "zfarm")  # a process pool forgets its manager at the first call
def test_a_second_shutdown_may_still_cancel_and_wait(make: Make, gate: Gate) -> None:
    """(8)"""
    executor = make(1)
    futures = [executor.submit(tasks.hold, gate.path, str(n)) for n in range(20)]
    gate.wait_for(1)
    executor.shutdown(wait=False)
    assert not futures[-1].done()
    closing = threading.Thread(target=executor.shutdown, kwargs={"cancel_futures": True})
    closing.start()
    wait_until(lambda: futures[-1].cancelled())
    assert closing.is_alive()  # it waits for the call that runs
    gate.open()
    closing.join(DEADLINE_S)

    assert not closing.is_alive()
    assert futures[0].result(0) is None


@everyone
def test_shutdown_from_several_threads_at_once(make: Make, gate: Gate) -> None:
    """(8)"""
    executor = make()
    futures = [executor.submit(tasks.hold, gate.path, str(n), n) for n in range(4)]
    gate.wait_for(1)
    threads = [threading.Thread(target=executor.shutdown, kwargs={"wait": n % 2 == 0}) for n in range(6)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert not any(thread.is_alive() for thread in threads)
    assert [future.result(DEADLINE_S) for future in futures] == [0, 1, 2, 3]


@everyone
def test_calls_that_race_with_shutdown_end_or_are_refused(make: Make) -> None:
    """(8)"""
    executor = make()
    accepted: list[Future[int]] = []
    refused: list[str] = []
    halfway = threading.Event()

    def submit_until_refused() -> None:
        for n in range(1_000_000):
            try:
                accepted.append(executor.submit(tasks.square, n))
            except RuntimeError as error:
                refused.append(str(error))
                return
            if n == 50:
                halfway.set()

    threads = [threading.Thread(target=submit_until_refused) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert halfway.wait(DEADLINE_S)
    executor.shutdown(wait=True)
    for thread in threads:
        thread.join(DEADLINE_S)

    assert len(refused) == 3
    assert all(future.done() for future in accepted)
    assert all("after shutdown" in text for text in refused)


@separate
def test_processes_and_threads_are_gone_when_shutdown_returns(make: Make) -> None:
    """(10)"""
    threads = set(threading.enumerate())
    processes = {child.pid for child in psutil.Process().children(recursive=True)}
    executor = make(2)
    list(executor.map(tasks.square, range(100)))
    assert {child.pid for child in psutil.Process().children(recursive=True)} - processes
    executor.shutdown(wait=True)

    assert {child.pid for child in psutil.Process().children(recursive=True)} - processes == set()
    assert set(threading.enumerate()) - threads == set()


@only_zfarm
def test_sockets_and_files_are_gone_when_shutdown_returns(make: Make) -> None:
    """(10)"""
    watched = Path(os.environ["XDG_RUNTIME_DIR"])
    before = leaks.take_stock(watched)
    executor = make(2)
    list(executor.map(tasks.square, range(100)))
    executor.shutdown(wait=True)

    # a thread that was joined may stand in the system's list for a moment more
    assert leaks.wait_settled(before, watched, 0.5) == []


@everyone
def test_results_still_come_when_the_executor_is_deleted(kind: str) -> None:
    """(9)"""
    executor = support.make_executor(kind, 2, {})
    futures = [executor.submit(tasks.square, n) for n in range(300)]
    reference = weakref.ref(executor)
    del executor
    gc.collect()

    assert [future.result(DEADLINE_S) for future in futures] == [n * n for n in range(300)]
    assert reference() is None


@everyone
def test_a_deleted_executor_is_freed_and_goes(kind: str) -> None:
    """(9) What it started must be gone: the check after every test waits for that."""
    executor = support.make_executor(kind, 2, {})
    assert list(executor.map(abs, range(-5, 5))) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
    reference = weakref.ref(executor)
    del executor

    wait_until(lambda: reference() is None, "freed without a garbage collection")


@everyone
def test_an_executor_deleted_while_a_call_runs(kind: str, gate: Gate) -> None:
    """(9)"""
    executor = support.make_executor(kind, 1, {})
    future = executor.submit(tasks.hold, gate.path, "call", 3)
    gate.wait_for(1)
    del executor
    gc.collect()
    gate.open()

    assert future.result(DEADLINE_S) == 3


@everyone
def test_an_executor_in_a_cycle_is_collected(kind: str) -> None:
    """(9)"""

    class Owner:
        def __init__(self) -> None:
            self.executor = support.make_executor(kind, 1, {})
            self.me = self

    owner = Owner()
    assert owner.executor.submit(tasks.square, 3).result(DEADLINE_S) == 9
    reference = weakref.ref(owner)
    del owner
    gc.collect()

    assert reference() is None


@everyone
def test_many_executors_one_after_the_other(kind: str) -> None:
    """(10)"""
    for n in range(5):
        with support.make_executor(kind, 2, {}) as executor:
            assert executor.submit(tasks.square, n).result(DEADLINE_S) == n * n


@everyone
def test_shutdown_while_results_of_map_are_read(make: Make) -> None:
    """(8)"""
    executor = make()
    results = executor.map(tasks.square, range(200))
    assert next(results) == 0
    executor.shutdown(wait=False)

    assert list(results) == [n * n for n in range(1, 200)]


@everyone
def test_nobody_waits_for_a_cancelled_future(make: Make, gate: Gate) -> None:
    """(5, 8)"""
    executor = make(1)
    futures = [executor.submit(tasks.hold, gate.path, str(n)) for n in range(10)]
    gate.wait_for(1)
    for future in futures[3:]:
        assert future.cancel()
    gate.open()
    executor.shutdown(wait=True)

    assert wait(futures, DEADLINE_S).not_done == set()
    with pytest.raises(concurrent.futures.CancelledError):
        futures[9].result(0)
