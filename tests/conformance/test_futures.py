"""Futures: their states, cancel, wait and as_completed in all modes (5)."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Future, as_completed, wait
from typing import Any

import pytest

from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, Gate, Gates, Make, everyone, only_zfarm, wait_until


@everyone
def test_a_future_goes_from_pending_over_running_to_finished(make: Make, gate: Gate) -> None:
    """(5)"""
    executor = make(1)
    first = executor.submit(tasks.hold, gate.path, "first", 1)
    others = [executor.submit(tasks.hold, gate.path, str(n), n) for n in range(5)]
    wait_until(first.running)
    assert not first.done()
    assert not others[-1].running()
    assert not others[-1].done()
    gate.open()

    assert first.result(DEADLINE_S) == 1
    assert first.done()
    assert not first.running()
    assert not first.cancelled()
    assert first.exception() is None


@everyone
def test_a_running_call_cannot_be_cancelled(make: Make, gate: Gate) -> None:
    """(5)"""
    future = make(1).submit(tasks.hold, gate.path, "call", 5)
    gate.wait_for(1)
    assert future.cancel() is False
    assert not future.cancelled()
    gate.open()

    assert future.result(DEADLINE_S) == 5
    assert future.cancel() is False


@everyone
def test_a_waiting_call_can_be_cancelled_and_never_runs(make: Make, gate: Gate) -> None:
    """(5)"""
    executor = make(1)
    first = executor.submit(tasks.hold, gate.path, "first")
    futures = [executor.submit(tasks.hold, gate.path, str(n)) for n in range(6)]
    gate.wait_for(1)
    victim = futures[4]
    assert victim.cancel() is True
    assert victim.cancel() is True
    assert victim.cancelled()
    assert victim.done()
    gate.open()
    done, not_done = wait([first, *futures], DEADLINE_S)

    assert not not_done
    assert len(done) == 7
    assert "4" not in gate.came()
    with pytest.raises(concurrent.futures.CancelledError):
        victim.result()
    with pytest.raises(concurrent.futures.CancelledError):
        victim.exception()


@only_zfarm
def test_every_call_that_waits_can_be_cancelled(make: Make, gate: Gate) -> None:
    """(4, 5) Process pools take one call more than they have workers, and cannot give it back."""
    executor = make(1)
    first = executor.submit(tasks.hold, gate.path, "first")
    gate.wait_for(1)
    futures = [executor.submit(tasks.hold, gate.path, str(n)) for n in range(20)]
    assert all(future.cancel() for future in futures)
    assert wait(futures, DEADLINE_S).not_done == set()
    gate.open()
    first.result(DEADLINE_S)
    executor.shutdown(wait=True)

    assert gate.came() == ["first"]


@everyone
def test_result_and_exception_time_out(make: Make, gate: Gate) -> None:
    """(5)"""
    future = make(1).submit(tasks.hold, gate.path)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.01)
    gate.open()

    assert future.exception(DEADLINE_S) is None


@everyone
def test_a_result_can_be_waited_for_from_several_threads(make: Make, gate: Gate) -> None:
    """(5)"""
    future = make(1).submit(tasks.hold, gate.path, "call", 9)
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.append(future.result(DEADLINE_S))) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.wait_for(1)
    gate.open()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert seen == [9] * 4


@everyone
def test_a_value_may_be_read_again_and_again(make: Make) -> None:
    """(5)"""
    future = make().submit(tasks.same, [1])

    assert future.result(DEADLINE_S) is future.result()


# ---------------------------------------------------------------- wait


@everyone
def test_wait_for_the_first(make: Make, gate: Gate) -> None:
    """(5)"""
    executor = make(2)
    slow = executor.submit(tasks.hold, gate.path)
    fast = executor.submit(tasks.square, 2)

    done, not_done = wait([slow, fast], DEADLINE_S, FIRST_COMPLETED)
    assert (done, not_done) == ({fast}, {slow})


@everyone
def test_wait_for_the_first_when_one_is_there_already(make: Make, gate: Gate) -> None:
    """(5)"""
    executor = make(2)
    fast = executor.submit(tasks.square, 2)
    fast.result(DEADLINE_S)
    slow = executor.submit(tasks.hold, gate.path)

    done, not_done = wait([slow, fast], return_when=FIRST_COMPLETED)
    assert (done, not_done) == ({fast}, {slow})


@everyone
def test_wait_for_the_first_exception(make: Make, gate: Gate) -> None:
    """(5)"""
    executor = make(2)
    good = executor.submit(tasks.square, 2)
    slow = executor.submit(tasks.hold, gate.path)
    good.result(DEADLINE_S)
    bad = executor.submit(tasks.divide, 1, 0)

    done, not_done = wait([good, slow, bad], DEADLINE_S, FIRST_EXCEPTION)
    assert (done, not_done) == ({good, bad}, {slow})


@everyone
def test_wait_for_an_exception_that_does_not_come(make: Make) -> None:
    """(5)"""
    executor = make()
    futures = {executor.submit(tasks.square, n) for n in range(5)}

    assert wait(futures, DEADLINE_S, FIRST_EXCEPTION) == (futures, set())


@everyone
def test_wait_for_all(make: Make) -> None:
    """(5)"""
    executor = make()
    futures = {executor.submit(tasks.divide, 1, n % 2) for n in range(50)}

    assert wait(futures, DEADLINE_S, ALL_COMPLETED) == (futures, set())


@everyone
def test_wait_with_a_timeout(make: Make, gate: Gate) -> None:
    """(5)"""
    executor = make(2)
    fast = executor.submit(tasks.square, 2)
    fast.result(DEADLINE_S)
    slow = executor.submit(tasks.hold, gate.path)

    assert wait([fast, slow], timeout=0.05) == ({fast}, {slow})


@everyone
def test_wait_counts_cancelled_calls_as_done(make: Make, gate: Gate) -> None:
    """(5)"""
    executor = make(1)
    futures = [executor.submit(tasks.hold, gate.path, str(n)) for n in range(8)]
    gate.wait_for(1)
    assert futures[7].cancel()
    gate.open()
    done, not_done = wait(futures, DEADLINE_S)

    assert not not_done
    assert len(done) == 8


@only_zfarm
def test_wait_is_told_of_calls_that_shutdown_cancels(make: Make, gate: Gate) -> None:
    """(5, 8) In the standard library, wait() hangs here."""
    executor = make(1)
    futures = [executor.submit(tasks.hold, gate.path, str(n)) for n in range(20)]
    gate.wait_for(1)
    waiting = threading.Thread(target=wait, args=(futures[5:],), daemon=True)
    waiting.start()
    executor.shutdown(wait=False, cancel_futures=True)
    waiting.join(DEADLINE_S)
    assert not waiting.is_alive()
    gate.open()

    assert wait(futures, DEADLINE_S).not_done == set()
    assert len(list(as_completed(futures, DEADLINE_S))) == 20


@everyone
def test_wait_spans_executors(make: Make) -> None:
    """(5, 20)"""
    one, other = make(1), make(1)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        futures: set[Future[Any]] = {pool.submit(tasks.square, 3) for pool in (one, other, threads)}

        assert wait(futures, DEADLINE_S) == (futures, set())
        assert [future.result() for future in as_completed(futures, DEADLINE_S)] == [9, 9, 9]


# ---------------------------------------------------------------- as_completed


@everyone
def test_as_completed_yields_in_the_order_of_completion(make: Make, gates: Gates) -> None:
    """(5)"""
    executor = make(2)
    first, second = gates.new(), gates.new()
    one = executor.submit(tasks.hold, first.path)
    two = executor.submit(tasks.hold, second.path)
    completed = as_completed([one, two], DEADLINE_S)
    second.open()
    assert next(completed) is two
    first.open()
    assert next(completed) is one


@everyone
def test_as_completed_yields_each_once_and_everything(make: Make) -> None:
    """(5)"""
    executor = make()
    futures = [executor.submit(tasks.fail_odd, n) for n in range(40)]

    seen = list(as_completed([*futures, *futures], DEADLINE_S))
    assert len(seen) == 40
    assert set(seen) == set(futures)


@everyone
def test_as_completed_times_out_after_what_is_done(make: Make, gate: Gate) -> None:
    """(5)"""
    executor = make(2)
    fast = executor.submit(tasks.square, 3)
    fast.result(DEADLINE_S)
    slow = executor.submit(tasks.hold, gate.path)
    completed = as_completed([fast, slow], timeout=0)

    assert next(completed) is fast
    with pytest.raises(concurrent.futures.TimeoutError):
        next(completed)
