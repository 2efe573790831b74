"""Submission: any call with any keywords, hundreds at once, in order (1, 4)."""

from __future__ import annotations

import concurrent.futures
import os
from typing import Any

import pytest

from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, Gate, Make, everyone, separate, wait_until


@everyone
def test_submit_returns_a_future_of_the_value(make: Make) -> None:
    """(1)"""
    future = make().submit(pow, 2, 8)

    assert isinstance(future, concurrent.futures.Future)
    assert future.result(DEADLINE_S) == 256
    assert future.done()


@everyone
def test_keywords_named_like_parameters_reach_the_task(make: Make) -> None:
    """(1)"""
    names = ("self", "fn", "args", "kwargs", "timeout", "priority", "chunksize", "retries", "task", "func")
    keywords: dict[str, Any] = {name: number for number, name in enumerate(names)}

    assert make().submit(tasks.echo, 1, **keywords).result(DEADLINE_S) == ((1,), keywords)


@everyone
def test_the_function_is_positional_only(make: Make) -> None:
    """(1)"""
    executor: Any = make()
    with pytest.raises(TypeError):
        executor.submit(fn=tasks.echo, arg=1)
    with pytest.raises(TypeError):
        executor.submit(arg=1)
    with pytest.raises(TypeError):
        executor.submit()


@everyone
@pytest.mark.parametrize("number", [0, -1])
def test_max_workers_must_be_positive(make: Make, number: int) -> None:
    """(1)"""
    with pytest.raises(ValueError, match=r"^max_workers must be greater than 0$"):
        make(number)


@everyone
def test_max_workers_has_a_default(make: Make) -> None:
    """(1)"""
    executor: Any = make(None)

    assert executor._max_workers >= 1
    assert executor.submit(pow, 2, 3).result(DEADLINE_S) == 8


@separate
def test_tasks_run_in_other_processes(make: Make) -> None:
    """(1)"""
    assert make().submit(tasks.pid).result(DEADLINE_S) != os.getpid()


@everyone
def test_as_many_calls_run_at_once_as_there_are_workers(make: Make, gate: Gate) -> None:
    """(1)"""
    executor = make(3)
    futures = [executor.submit(tasks.hold, gate.path, str(n), n) for n in range(5)]
    gate.wait_for(3)
    assert len(gate.came()) == 3
    gate.open()

    assert [future.result(DEADLINE_S) for future in futures] == list(range(5))


@everyone
def test_one_worker_takes_calls_in_the_order_of_submission(make: Make, tmp_path: Any) -> None:
    """(1)"""
    executor = make(1)
    path = str(tmp_path / "trace")
    futures = [executor.submit(tasks.traced, path, n) for n in range(200)]
    concurrent.futures.wait(futures, DEADLINE_S)

    assert (tmp_path / "trace").read_text().split() == [str(n) for n in range(200)]


@everyone
def test_thousands_of_calls_have_their_own_results(make: Make) -> None:
    """(4)"""
    executor = make()
    futures = [executor.submit(tasks.square, n) for n in range(3000)]

    assert [future.result(DEADLINE_S) for future in futures] == [n * n for n in range(3000)]


@everyone
def test_hundreds_of_blocked_calls_are_accepted_and_can_be_cancelled(make: Make, gate: Gate) -> None:
    """(4)"""
    executor = make(2)
    futures = [executor.submit(tasks.hold, gate.path, str(n), n) for n in range(500)]
    gate.wait_for(2)
    one_by_one = futures[100:300]
    assert all(future.cancel() for future in one_by_one)
    executor.shutdown(wait=False, cancel_futures=True)
    wait_until(lambda: sum(future.cancelled() for future in futures) >= 495)  # nobody promised when
    gate.open()
    wait_until(lambda: all(future.done() for future in futures))

    assert all(future.cancelled() for future in one_by_one)
    ran = [future for future in futures if not future.cancelled()]
    assert 2 <= len(ran) <= 5  # those that ran or stood at the door when it was shut
    assert len(gate.came()) == len(ran)


@everyone
def test_submitting_never_waits_for_a_free_worker(make: Make, gate: Gate) -> None:
    """(4)"""
    executor = make(1)
    first = executor.submit(tasks.hold, gate.path)
    gate.wait_for(1)
    futures = [executor.submit(tasks.square, n) for n in range(1000)]
    assert not first.done()
    assert not any(future.done() for future in futures)
    gate.open()

    assert sum(future.result(DEADLINE_S) for future in futures) == sum(n * n for n in range(1000))


@everyone
def test_large_arguments_and_results_pass_unharmed(make: Make) -> None:
    """(1)"""
    data = os.urandom(1 << 20) * 24
    executor = make()
    futures = [executor.submit(tasks.same, data) for _ in range(3)]

    assert all(future.result(DEADLINE_S) == data for future in futures)
