"""Initializers, and children that are replaced after a number of tasks (13, 14)."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import BrokenExecutor, wait
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conformance import tasks
from tests.conformance.support import (
    DEADLINE_S,
    Gate,
    Make,
    Scripts,
    everyone,
    only_zfarm,
    outcome,
    separate,
    wait_until,
)


@everyone
def test_tasks_see_what_the_initializer_set(make: Make) -> None:
    """(13)"""
    executor = make(2, initializer=tasks.set_setting, initargs=("a value",))

    assert executor.submit(tasks.get_setting).result(DEADLINE_S) == "a value"
    assert list(executor.map(tasks.get_setting, range(20))) == ["a value"] * 20
    tasks.set_setting(None)


@separate
def test_every_child_runs_the_initializer_once_before_its_first_task(make: Make, gate: Gate) -> None:
    """(13)"""
    executor = make(2, initializer=tasks.count_up)
    futures = [executor.submit(tasks.hold_count, gate.path, str(n)) for n in range(2)]
    gate.wait_for(2)
    gate.open()
    counts = dict(future.result(DEADLINE_S) for future in futures)

    assert list(counts.values()) == [2, 2]


@separate
def test_initializers_of_two_executors_do_not_mix(make: Make) -> None:
    """(13)"""
    one = make(1, initializer=tasks.set_setting, initargs=(1,))
    two = make(1, initializer=tasks.set_setting, initargs=(2,))
    none = make(1)
    for _ in range(3):
        assert one.submit(tasks.get_setting).result(DEADLINE_S) == 1
        assert two.submit(tasks.get_setting).result(DEADLINE_S) == 2
        assert none.submit(tasks.get_setting).result(DEADLINE_S) is None


@everyone
@pytest.mark.parametrize("initializer", [5, "text", [tasks.nothing]])
def test_an_initializer_must_be_callable(make: Make, initializer: Any) -> None:
    """(13)"""
    with pytest.raises(TypeError, match="initializer must be a callable"):
        make(1, initializer=initializer)


@everyone
def test_an_initializer_that_raises_breaks_the_executor(make: Make, tmp_path: Path) -> None:
    """(13) For the call that waits, and for those that come later."""
    path = tmp_path / "trace"
    executor = make(2, initializer=tasks.fail_traced, initargs=(str(path),))
    errors = [outcome(lambda: executor.submit(tasks.square, 3)) for _ in range(3)]
    assert all(isinstance(error, BrokenExecutor) for error in errors)
    with pytest.raises(BrokenExecutor):
        list(executor.map(tasks.square, range(10)))
    executor.shutdown(wait=True)

    assert 1 <= tasks.count(str(path)) <= 10  # no endless respawn


@separate
@pytest.mark.parametrize("how", ["sys.exit", "3", "SIGKILL"])
def test_an_initializer_that_ends_its_child_breaks_the_executor(
    make: Make, kind: str, tmp_path: Path, how: str
) -> None:
    """(13)"""
    path = tmp_path / "trace"
    executor = make(2, initializer=tasks.exit_traced, initargs=(str(path), how))
    futures = []
    calls = 1 if kind == "processes" else 20  # the standard library's forgets one that comes as it breaks
    try:
        futures += [executor.submit(tasks.square, n) for n in range(calls)]
    except BrokenExecutor:
        assert how  # it may be known before the last is submitted
    done, not_done = wait(futures, DEADLINE_S)
    assert not not_done
    assert all(isinstance(future.exception(0), BrokenExecutor) for future in done)
    assert isinstance(outcome(lambda: executor.submit(tasks.square, 3)), BrokenExecutor)
    executor.shutdown(wait=True)

    assert 1 <= tasks.count(str(path)) <= 10


@only_zfarm
def test_the_error_of_the_initializer_is_told(make: Make, tmp_path: Path) -> None:
    """(13)"""
    from zfarm.errors import InitializerFailed

    executor = make(1, initializer=tasks.fail_traced, initargs=(str(tmp_path / "trace"),))
    error = outcome(lambda: executor.submit(tasks.square, 3))

    assert isinstance(error, InitializerFailed)
    assert "the initializer failed" in f"{error} {error.__cause__}"


@only_zfarm
def test_an_initializer_may_be_a_closure(make: Make) -> None:
    """(13)"""
    value = ["closed over"]
    executor = make(1, initializer=lambda: tasks.set_setting(value[0]))

    assert executor.submit(tasks.get_setting).result(DEADLINE_S) == "closed over"


@separate
@pytest.mark.parametrize("how", ["file", "-c", "stdin"])
def test_globals_of_the_program_set_by_its_initializer(scripts: Scripts, how: str) -> None:
    """(13, 15) Both functions are the program's own, and share its globals."""
    out = scripts.prints(
        """
        setting = "before"

        def initialize(value):
            global setting
            setting = value

        def work(n):
            return setting

        with Executor(max_workers=2, initializer=initialize, initargs=("after",)) as executor:
            print(set(executor.map(work, range(20))), setting)
        """,
        how,
    )

    assert out == "{'after'} before\n"


@separate
def test_an_initializer_of_the_program_that_raises(scripts: Scripts) -> None:
    """(13)"""
    out = scripts.run("""
        from concurrent.futures import BrokenExecutor

        def initialize():
            raise ValueError("broken")

        with Executor(max_workers=2, initializer=initialize) as executor:
            try:
                print(executor.submit(pow, 2, 3).result())
            except BrokenExecutor as error:
                print("broken")
    """).out

    assert out == "broken\n"


# ---------------------------------------------------------------- max_tasks_per_child


@separate
@pytest.mark.parametrize(
    ("number", "error"), [(0, ValueError), (-2, ValueError), ("3", TypeError), (1.5, TypeError)]
)
def test_max_tasks_per_child_is_a_positive_integer(make: Make, number: Any, error: type[Exception]) -> None:
    """(14)"""
    with pytest.raises(error, match="max_tasks_per_child must be"):
        make(1, max_tasks_per_child=number)


@separate
def test_a_child_is_replaced_after_so_many_tasks(make: Make) -> None:
    """(14)"""
    executor = make(1, max_tasks_per_child=3)
    pids = [executor.submit(tasks.pid).result(DEADLINE_S) for _ in range(7)]

    assert list(Counter(pids).values()) == [3, 3, 1]
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids[:6]), "old children reaped")


@only_zfarm
def test_nothing_is_lost_when_children_are_replaced(make: Make) -> None:
    """(14) Process pools of several Pythons hang here."""
    executor = make(2, max_tasks_per_child=4)
    futures = [executor.submit(tasks.count_up) for _ in range(20)]
    results = [future.result(DEADLINE_S) for future in futures]

    assert len(set(results)) == 20  # each child counts up by itself
    assert max(count for _, count in results) <= 4


@separate
def test_new_children_run_the_initializer(make: Make) -> None:
    """(13, 14)"""
    executor = make(1, max_tasks_per_child=1, initializer=tasks.set_setting, initargs=(7,))

    assert [executor.submit(tasks.get_setting).result(DEADLINE_S) for _ in range(3)] == [7, 7, 7]


@only_zfarm
def test_items_of_a_map_count_as_tasks(make: Make) -> None:
    """(14) As they do in a process pool with its chunksize of one."""
    executor = make(1, max_tasks_per_child=5)
    results = list(executor.map(tasks.count_up, range(40)))

    assert len(set(results)) == 40
    assert max(count for _, count in results) <= 5
