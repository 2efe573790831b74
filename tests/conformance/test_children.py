"""What a task may do in its child, and what it finds there (17, 18)."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import support, tasks
from tests.conformance.support import DEADLINE_S, Gate, Make, Scripts, only_zfarm, separate, wait_until


@separate
def test_tasks_run_in_the_main_thread(make: Make) -> None:
    """(17)"""
    executor = make(1)

    assert executor.submit(tasks.is_main_thread).result(DEADLINE_S)
    assert executor.submit(tasks.catch_signal).result(DEADLINE_S)


@separate
def test_children_are_not_daemonic(make: Make) -> None:
    """(17)"""
    executor = make(1)

    assert executor.submit(is_daemon).result(DEADLINE_S) is False
    assert executor.submit(run_process, 3).result(DEADLINE_S) == 9
    assert executor.submit(run_pool, 4).result(DEADLINE_S) == [0, 1, 4, 9]


def is_daemon() -> bool:
    return multiprocessing.current_process().daemon


def run_process(n: int) -> int:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=put_square, args=(queue, n))
    process.start()
    value: int = queue.get()
    process.join()
    queue.close()
    return value


def put_square(queue: Any, n: int) -> None:
    queue.put(n * n)


def run_pool(n: int) -> list[int]:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(tasks.square, range(n))


@separate
def test_a_task_may_run_programs(make: Make) -> None:
    """(17)"""
    assert make(1).submit(run_program).result(DEADLINE_S) == ("out", "in", 5)


def run_program() -> tuple[str, str, int]:
    code = "import sys; print('out', end=''); print(sys.stdin.read(), end='', file=sys.stderr); sys.exit(5)"
    done = subprocess.run(
        [sys.executable, "-c", code], input="in", capture_output=True, text=True, check=False
    )
    return done.stdout, done.stderr, done.returncode


@separate
def test_a_task_may_have_an_executor_of_its_own(make: Make, kind: str) -> None:
    """(17)"""
    assert make(1).submit(run_executor, kind).result(DEADLINE_S) == [0, 1, 4]


def run_executor(kind: str) -> list[int]:
    with support.make_executor(kind, 1, {}) as inner:
        return list(inner.map(tasks.square, range(3)))


@separate
def test_threads_of_a_task_run(make: Make) -> None:
    """(17)"""
    assert make(1).submit(run_thread, 5).result(DEADLINE_S) == 25


def run_thread(n: int) -> int:
    values: list[int] = []
    thread = threading.Thread(target=lambda: values.append(n * n))
    thread.start()
    thread.join()
    return values[0]


@separate
def test_proxies_of_a_manager_work_as_arguments(make: Make) -> None:
    """(17)"""
    executor = make(2)
    with multiprocessing.get_context("fork").Manager() as manager:
        table, queue, lock = manager.dict(), manager.Queue(), manager.Lock()
        futures = [executor.submit(use_proxies, table, queue, lock, n) for n in range(4)]
        for future in futures:
            future.result(DEADLINE_S)

        assert dict(table) == {n: n * n for n in range(4)}
        assert sorted(queue.get() for _ in range(4)) == [0, 1, 2, 3]


def use_proxies(table: Any, queue: Any, lock: Any, n: int) -> None:
    with lock:
        table[n] = n * n
    queue.put(n)


@separate
def test_a_lot_of_output_reaches_the_terminal(scripts: Scripts) -> None:
    """(18)"""
    out = scripts.prints("""
        import os, subprocess, sys

        def work():
            for n in range(3000):
                print("p" * 99)
            sys.stdout.flush()
            os.write(1, b"w" * 30_000 + b"\\n")
            subprocess.run([sys.executable, "-c", "print('s' * 100_000)"], check=True)
            return "done"

        with Executor(max_workers=1) as executor:
            print(executor.submit(work).result())
    """)

    assert out == ("p" * 99 + "\n") * 3000 + "w" * 30_000 + "\n" + "s" * 100_000 + "\ndone\n"


@separate
def test_errors_of_tasks_reach_the_terminal(scripts: Scripts) -> None:
    """(18)"""
    code, out, err = scripts.run("""
        import sys, warnings

        def work():
            print("to stderr", file=sys.stderr)
            warnings.warn("a warning")

        with Executor(max_workers=1) as executor:
            executor.submit(work).result()
    """)

    assert (code, out) == (0, "")
    assert "to stderr" in err
    assert "UserWarning: a warning" in err


@only_zfarm
def test_output_appears_while_the_task_runs(make: Make, gate: Gate, capfd: Any) -> None:
    """(18)"""
    future = make(1).submit(print_and_hold, gate.path)
    gate.wait_for(1)
    seen = ""

    def appeared() -> bool:
        nonlocal seen
        seen += capfd.readouterr().out
        return "before the gate" in seen

    wait_until(appeared)
    gate.open()
    future.result(DEADLINE_S)


def print_and_hold(gate: str) -> None:
    print("before the gate", flush=True)
    tasks.hold(gate)


@separate
def test_reading_from_the_terminal_ends_at_once(make: Make) -> None:
    """(18)"""
    assert make(1).submit(read_all).result(DEADLINE_S) == ""


def read_all() -> str:
    return sys.stdin.read()


@separate
def test_random_numbers_differ_between_children(make: Make, gate: Gate) -> None:
    """(18)"""
    random.seed(5)  # the client's own stream says nothing about the children's
    executor = make(3)
    futures = [executor.submit(draw_held, gate.path, str(n)) for n in range(3)]
    gate.wait_for(3)
    gate.open()
    drawn = [future.result(DEADLINE_S) for future in futures]

    assert len({pid for pid, _, _ in drawn}) == 3
    assert len({number for _, number, _ in drawn}) == 3


@only_zfarm
def test_numpys_random_numbers_differ_between_children(make: Make, gate: Gate) -> None:
    """(18) In a forked process pool they are the same."""
    executor = make(3)
    futures = [executor.submit(draw_held, gate.path, str(n)) for n in range(3)]
    gate.wait_for(3)
    gate.open()

    assert len({future.result(DEADLINE_S)[2] for future in futures}) == 3


def draw_held(gate: str, name: str) -> tuple[int, float, float]:
    import numpy as np

    tasks.hold(gate, name)
    return os.getpid(), random.random(), float(np.random.random())


@separate
def test_module_state_persists_within_a_child(make: Make) -> None:
    """(18)"""
    executor = make(1)
    counts = [executor.submit(tasks.count_up).result(DEADLINE_S) for _ in range(4)]

    assert len({pid for pid, _ in counts}) == 1
    assert [count for _, count in counts] == [counts[0][1] + n for n in range(4)]


@separate
def test_a_function_of_the_program_keeps_its_globals_in_a_child(scripts: Scripts) -> None:
    """(18) A cache in a global of ``__main__`` is filled once."""
    out = scripts.prints("""
        cache = {}

        def work(n):
            cache[n] = cache.get(n, 0) + 1
            return cache[n]

        with Executor(max_workers=1) as executor:
            print(executor.submit(work, 5).result(), executor.submit(work, 5).result())
            print(list(executor.map(work, [5, 5, 6])))
            print(cache)
    """)

    assert out == "1 2\n[3, 4, 1]\n{}\n"


@only_zfarm
def test_children_stay_where_they_are_between_calls(make: Make) -> None:
    """(18)"""
    executor = make(1)

    assert len({executor.submit(tasks.pid).result(DEADLINE_S) for _ in range(10)}) == 1


@separate
def test_a_file_written_by_a_task_is_there(make: Make, tmp_path: Path) -> None:
    """(15)"""
    path = tmp_path / "written"
    make(1).submit(path.write_text, "text").result(DEADLINE_S)

    assert path.read_text() == "text"


@pytest.mark.parametrize("size", [0, 1, 1000, 5_000_000])
@separate
def test_bytes_of_any_size_and_kind(make: Make, size: int) -> None:
    """(19)"""
    executor = make(1)
    for value in (os.urandom(size), bytearray(os.urandom(size))):
        back = executor.submit(tasks.same, value).result(DEADLINE_S)
        assert type(back) is type(value)
        assert back == value
