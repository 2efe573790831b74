"""Calls that submit calls: on the farm they run on, deeper than it has slots, and on farms of their own."""

from __future__ import annotations

import concurrent.futures
import os
from concurrent.futures import as_completed, wait
from typing import Any

import pytest

from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, Make, only_zfarm


@only_zfarm
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("function", [tasks.fib, tasks.fib_at_once])
def test_recursion_does_not_block_itself(make: Make, workers: int, function: Any) -> None:
    assert make(workers).submit(function, 7).result(3 * DEADLINE_S) == 13


@only_zfarm
def test_nesting_far_deeper_than_there_are_slots(make: Make) -> None:
    assert make(1).submit(tasks.dive, 25).result(3 * DEADLINE_S) == 25


@only_zfarm
def test_map_in_a_task(make: Make) -> None:
    def outer(n: int) -> list[int]:
        import zfarm

        return list(zfarm.current_farm().map(lambda x: x * n, range(4)))

    assert list(make(2).map(outer, range(4))) == [[x * n for x in range(4)] for n in range(4)]


@only_zfarm
def test_wait_and_as_completed_in_a_task(make: Make) -> None:
    def outer() -> tuple[int, list[int]]:
        import zfarm

        farm = zfarm.current_farm()
        futures = [farm.submit(tasks.square, n) for n in range(4)]
        done, _ = wait(futures)
        more = [farm.submit(tasks.square, n) for n in range(4)]
        return len(done), sorted(future.result() for future in as_completed(more))

    assert make(1).submit(outer).result(DEADLINE_S) == (4, [0, 1, 4, 9])


@only_zfarm
def test_the_farm_in_a_task_may_be_used_in_a_with_block(make: Make) -> None:
    def outer() -> int:
        import zfarm

        with zfarm.current_farm() as farm:
            return sum(farm.map(tasks.square, range(5)))

    executor = make(1)
    assert executor.submit(outer).result(DEADLINE_S) == 30
    assert executor.submit(outer).result(DEADLINE_S) == 30
    assert executor.submit(tasks.square, 2).result(DEADLINE_S) == 4


@only_zfarm
def test_an_exception_of_a_nested_call_comes_through_both(make: Make) -> None:
    def outer() -> Any:
        import zfarm

        return zfarm.current_farm().submit(tasks.fail_attributed).result()

    error: Any = make(1).submit(outer).exception(DEADLINE_S)
    assert type(error) is tasks.Attributed
    assert (error.code, error.extra) == (7, [1, 2])


@only_zfarm
def test_nested_calls_of_a_task_that_does_not_wait_still_run(make: Make, tmp_path: Any) -> None:
    path = str(tmp_path / "trace")

    def outer() -> str:
        import zfarm

        farm = zfarm.current_farm()
        for n in range(10):
            farm.submit(tasks.traced, path, n)
        return "done"

    executor = make(1)
    assert executor.submit(outer).result(DEADLINE_S) == "done"
    executor.shutdown(wait=True)

    assert tasks.count(path) == 10


@only_zfarm
def test_a_nested_call_that_dies_is_the_only_one_blamed(make: Make) -> None:
    def outer() -> tuple[str, int]:
        import zfarm

        farm = zfarm.current_farm()
        error = farm.submit(tasks.die, "SIGKILL").exception()
        return type(error).__name__, farm.submit(tasks.square, 5).result()

    assert make(1).submit(outer).result(DEADLINE_S) == ("TaskLost", 25)


@only_zfarm
def test_an_outer_call_that_dies_while_it_waits_is_run_again(make: Make, tmp_path: Any) -> None:
    path = str(tmp_path / "trace")

    def outer() -> int:
        import zfarm

        farm = zfarm.current_farm()
        value: int = farm.submit(tasks.square, 5).result()
        return int(tasks.die_once(path, "SIGKILL", value))

    assert make(1).submit(outer).result(DEADLINE_S) == 25
    assert tasks.count(path) == 2


@only_zfarm
def test_an_executor_in_a_task_is_a_farm_of_its_own(make: Make) -> None:
    def outer() -> tuple[int, list[int]]:
        import zfarm

        with zfarm.Executor(max_workers=1) as inner:
            return os.getpid(), list(inner.map(tasks.pid, range(3)))

    executor = make(1)
    outside = executor.submit(tasks.pid).result(DEADLINE_S)
    pid, inside = executor.submit(outer).result(DEADLINE_S)
    assert pid == outside
    assert outside not in inside
    assert executor.submit(outer).result(DEADLINE_S)[0] == outside


@only_zfarm
def test_there_is_no_current_farm_outside_of_a_task(kind: str) -> None:
    import zfarm

    with pytest.raises(RuntimeError, match="current_farm"):
        zfarm.current_farm()


@only_zfarm
def test_callbacks_of_nested_calls_run_in_the_task(make: Make) -> None:
    def outer() -> list[int]:
        import zfarm

        seen: list[int] = []
        futures = [zfarm.current_farm().submit(tasks.square, n) for n in range(5)]
        for future in futures:
            future.add_done_callback(lambda done: seen.append(done.result()))
        concurrent.futures.wait(futures)
        return sorted(seen)

    assert make(1).submit(outer).result(DEADLINE_S) == [0, 1, 4, 9, 16]


@only_zfarm
def test_many_tasks_that_wait_at_once(make: Make) -> None:
    def outer(n: int) -> int:
        import zfarm

        return int(zfarm.current_farm().submit(tasks.square, n).result())

    executor = make(2)
    futures = [executor.submit(outer, n) for n in range(30)]
    assert [future.result(3 * DEADLINE_S) for future in futures] == [n * n for n in range(30)]
