"""A child that dies costs one attempt of one task; sys.exit() is an exception like any other (12)."""

from __future__ import annotations

import os
import signal
from collections import Counter
from concurrent.futures import BrokenExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, Gate, Make, everyone, only_zfarm, separate, wait_until

WAYS = ["SIGKILL", "SIGTERM", "SIGSEGV", "segfault", "abort", "0", "3"]


def runs(path: Path) -> Counter[int]:
    """How often each value was traced."""
    return Counter(int(line) for line in path.read_text().split())


@everyone
@pytest.mark.parametrize("code", [0, 3, "a text", None])
def test_sys_exit_is_the_exception_of_its_task(make: Make, code: Any) -> None:
    """(12)"""
    error = make().submit(tasks.exit_with, code).exception(DEADLINE_S)

    assert type(error) is SystemExit
    assert error.code == code


@separate
@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_the_child_lives_on_after_exceptions_that_end_programs(make: Make, error: BaseException) -> None:
    """(12)"""
    executor = make(1)
    before = executor.submit(tasks.pid).result(DEADLINE_S)
    assert type(executor.submit(tasks.fail, error).exception(DEADLINE_S)) is type(error)

    assert executor.submit(tasks.pid).result(DEADLINE_S) == before


@separate
@pytest.mark.parametrize("how", WAYS)
def test_a_task_that_always_kills_its_child_ends(make: Make, how: str) -> None:
    """(12)"""
    future = make(1).submit(tasks.die, how)

    assert isinstance(future.exception(DEADLINE_S), BrokenExecutor)


@only_zfarm
@pytest.mark.parametrize("how", WAYS)
def test_the_error_says_how_often_and_how_the_child_died(make: Make, how: str) -> None:
    """(12)"""
    from zfarm.errors import TaskLost
    from zfarm.settings import settings

    executor = make(1)
    error = executor.submit(tasks.die, how).exception(DEADLINE_S)
    assert type(error) is TaskLost
    assert len(error.deaths) == settings.max_attempts
    name = {"segfault": "SIGSEGV", "abort": "SIGABRT"}.get(how, how)
    for death in error.deaths:
        if name.startswith("SIG"):
            assert death.signal == getattr(signal, name)
        else:
            assert (death.signal, death.exit_code) == (0, int(name))
    assert name in str(error)
    assert executor.submit(tasks.square, 3).result(DEADLINE_S) == 9


@only_zfarm
@pytest.mark.parametrize("how", ["SIGKILL", "segfault", "3"])
def test_a_task_whose_child_dies_once_is_run_again(make: Make, tmp_path: Path, how: str) -> None:
    """(12)"""
    path = tmp_path / "trace"

    assert make(1).submit(tasks.die_once, str(path), how, 5).result(DEADLINE_S) == 5
    assert runs(path) == {5: 2}


@only_zfarm
@pytest.mark.parametrize("workers", [1, 2])
def test_other_tasks_are_run_once_and_are_right(make: Make, tmp_path: Path, workers: int) -> None:
    """(12) The deadly one is somewhere in the middle of many short ones that travel together."""
    from zfarm.settings import settings

    path = tmp_path / "trace"
    executor = make(workers)
    futures = [executor.submit(tasks.die_at, n, 100, str(path)) for n in range(200)]
    wait(futures, DEADLINE_S)

    assert isinstance(futures.pop(100).exception(0), BrokenExecutor)
    assert [future.result(0) for future in futures] == [n for n in range(200) if n != 100]
    count = runs(path)
    assert count.pop(100) == settings.max_attempts
    assert set(count.values()) == {1}


@only_zfarm
@pytest.mark.parametrize("chunksize", [None, 1, 10, 200])
def test_one_item_of_a_map_kills_its_child(make: Make, tmp_path: Path, chunksize: int | None) -> None:
    """(2, 12)"""
    path = tmp_path / "trace"
    executor = make(2)
    options = {} if chunksize is None else {"chunksize": chunksize}
    results = executor.map(tasks.die_at, range(200), [100] * 200, [str(path)] * 200, **options)

    assert [next(results) for _ in range(100)] == list(range(100))
    with pytest.raises(BrokenExecutor):
        next(results)
    assert list(executor.map(tasks.square, range(10))) == [n * n for n in range(10)]


@only_zfarm
def test_every_other_item_of_a_map_survives_a_child_that_dies_once(make: Make, tmp_path: Path) -> None:
    """(2, 12)"""
    path = str(tmp_path / "trace")
    executor = make(2)
    values = [f"{path}{n if n in (40, 90) else 'none'}" for n in range(150)]
    for n in set(range(150)) - {40, 90}:
        Path(values[n]).write_text("not the first\n")
    results = executor.map(tasks.die_once, values, ["SIGKILL"] * 150, range(150))

    assert list(results) == list(range(150))


@only_zfarm
def test_a_child_killed_from_outside_while_it_runs_a_call(make: Make, gate: Gate) -> None:
    """(12)"""
    executor = make(1)
    future = executor.submit(tasks.hold, gate.path, "call", 5)
    waiting = [executor.submit(tasks.square, n) for n in range(20)]
    pids = Path(gate.path).with_name("call")
    wait_until(lambda: tasks.count(str(pids)) == 1)
    os.kill(int(pids.read_text()), signal.SIGKILL)
    wait_until(lambda: tasks.count(str(pids)) == 2)
    gate.open()

    assert future.result(DEADLINE_S) == 5
    assert [other.result(DEADLINE_S) for other in waiting] == [n * n for n in range(20)]


@only_zfarm
def test_an_idle_child_killed_from_outside_costs_nothing(make: Make) -> None:
    """(12)"""
    executor = make(1)
    for _ in range(5):  # more often than a task has attempts
        os.kill(executor.submit(tasks.pid).result(DEADLINE_S), signal.SIGKILL)

    assert executor.submit(tasks.square, 3).result(DEADLINE_S) == 9


@only_zfarm
def test_all_children_die_at_once(make: Make, tmp_path: Path) -> None:
    """(12)"""
    executor = make(2)
    paths = [tmp_path / str(n) for n in range(10)]
    futures = [executor.submit(tasks.die_once, str(path), "SIGKILL", n) for n, path in enumerate(paths)]

    assert [future.result(DEADLINE_S) for future in futures] == list(range(10))


@only_zfarm
def test_many_deadly_tasks_do_not_break_the_rest(make: Make) -> None:
    """(12)"""
    executor = make(2)
    deadly = [executor.submit(tasks.die, "SIGKILL") for _ in range(10)]
    good = [executor.submit(tasks.square, n) for n in range(100)]

    assert [future.result(DEADLINE_S) for future in good] == [n * n for n in range(100)]
    assert all(isinstance(future.exception(DEADLINE_S), BrokenExecutor) for future in deadly)


@only_zfarm
def test_output_of_a_child_before_its_death_is_not_swallowed(make: Make, capfd: Any) -> None:
    """(12, 18)"""
    make(1).submit(tasks.print_and_die, "last words").exception(DEADLINE_S)

    assert "last words" in capfd.readouterr().out


@separate
def test_shutdown_after_deaths_leaves_nothing(make: Make) -> None:
    """(10, 12)"""
    executor = make(2)
    futures = [executor.submit(tasks.die, "SIGKILL") for _ in range(3)]
    executor.shutdown(wait=True)

    assert all(isinstance(future.exception(0), BrokenExecutor) for future in futures)
