"""Odd and deadly tasks harm themselves at most; a fork, and the death of a helper, is answered for."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, wait
from typing import Any

import psutil
import pytest

from tests import leaks
from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, Make, Scripts, only_zfarm, wait_until


def write_rubbish() -> str:
    for descriptor in (1, 2):
        os.write(descriptor, b"\x00\xff rubbish \n" * 10)
    return "done"


def close_descriptors(first: int, last: int) -> str:
    os.closerange(first, last)
    return "done"


def close_streams() -> str:
    sys.stdout.close()
    sys.stderr.close()
    sys.stdin.close()
    return "done"


def replace_streams() -> str:
    sys.stdout = sys.stderr = None
    return "done"


def kill_group() -> str:
    os.killpg(os.getpgrp(), signal.SIGKILL)
    signal.pause()
    return "never"


def fork_and_leave() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def become_leader() -> int:
    os.setpgid(0, 0)
    return os.getpgrp()


def ignore_signals() -> str:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    return "done"


def raise_in_finalizer() -> str:
    class Odd:
        def __del__(self) -> None:
            raise ValueError("in __del__")

    Odd()
    return "done"


def leave_a_thread() -> str:
    import threading

    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return "done"


def collect_nothing() -> str:
    import gc

    gc.disable()
    gc.freeze()
    return "done"


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1)


def forget_modules() -> str:
    for name in [name for name in sys.modules if name.startswith("tests.")]:
        del sys.modules[name]
    return "done"


ODD: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "writes rubbish to 1 and 2": (write_rubbish, ()),
    "closes 0, 1 and 2": (close_descriptors, (0, 3)),
    "closes its pipes": (close_descriptors, (3, 256)),
    "closes everything": (close_descriptors, (0, 4096)),
    "closes its streams": (close_streams, ()),
    "has no streams": (replace_streams, ()),
    "kills its group": (kill_group, ()),
    "forks": (fork_and_leave, ()),
    "leads a group": (become_leader, ()),
    "ignores signals": (ignore_signals, ()),
    "raises in a finalizer": (raise_in_finalizer, ()),
    "leaves a thread": (leave_a_thread, ()),
    "stops the collector": (collect_nothing, ()),
    "recurses for ever": (recurse, ()),
    "forgets modules": (forget_modules, ()),
}


@only_zfarm
@pytest.mark.parametrize(("function", "args"), ODD.values(), ids=ODD.keys())
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_odd_task_harms_itself_at_most(
    make: Make, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    executor = make(2)
    before = [executor.submit(tasks.square, n) for n in range(20)]
    odd = executor.submit(function, *args)
    after = [executor.submit(tasks.square, n) for n in range(20)]
    wait([odd], DEADLINE_S)

    assert odd.done()
    assert [future.result(DEADLINE_S) for future in before + after] == [n * n for n in range(20)] * 2
    assert list(executor.map(tasks.square, range(50))) == [n * n for n in range(50)]
    error = odd.exception(0)
    assert error is None or isinstance(error, (BrokenExecutor, RecursionError, OSError))


@only_zfarm
def test_printing_after_the_streams_were_closed_is_an_error_of_that_task(make: Make) -> None:
    executor = make(1)
    executor.submit(close_descriptors, 1, 2).exception(DEADLINE_S)
    executor.submit(print, "into nothing", flush=True).exception(DEADLINE_S)

    assert executor.submit(tasks.square, 3).result(DEADLINE_S) == 9


@only_zfarm
@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 10 << 30, reason="needs 10 GiB of memory")
def test_a_result_of_a_gibibyte(make: Make) -> None:
    executor = make(1)

    assert len(executor.submit(bytes, 1 << 30).result(100)) == 1 << 30
    assert executor.submit(tasks.square, 3).result(DEADLINE_S) == 9


# ---------------------------------------------------------------- fork

BARE_FORK = {"PYTHONWARNINGS": "ignore:This process:DeprecationWarning"}
"""Python 3.12 warns of every fork in a program with threads, and these are the programs' own."""


@only_zfarm
def test_a_forked_process_is_told_that_the_farm_is_not_its_own(scripts: Scripts) -> None:
    out = scripts.prints(
        """
        import os, sys
        from zfarm.errors import ForkError

        executor = Executor(max_workers=1)
        print(executor.submit(pow, 2, 3).result(), flush=True)
        pid = os.fork()
        if pid == 0:
            for use in (lambda: executor.submit(pow, 2, 3), lambda: list(executor.map(abs, [1]))):
                try:
                    use()
                except ForkError as error:
                    print("fork" in str(error), flush=True)
            sys.exit(0)  # through atexit and all finalizers, as multiprocessing does not
        print(os.waitpid(pid, 0)[1], flush=True)
        print(executor.submit(pow, 2, 4).result(), flush=True)
        executor.shutdown()
    """,
        env=BARE_FORK,
    )

    assert out == "8\nTrue\nTrue\n0\n16\n"


@only_zfarm
def test_a_forked_process_may_have_a_farm_of_its_own(scripts: Scripts) -> None:
    out = scripts.prints("""
        import multiprocessing

        def work():
            with Executor(max_workers=1) as inner:
                print(inner.submit(pow, 2, 5).result(), flush=True)

        with Executor(max_workers=1) as executor:
            print(executor.submit(pow, 2, 3).result(), flush=True)
            process = multiprocessing.get_context("fork").Process(target=work)
            process.start()
            process.join()
            print(process.exitcode, executor.submit(pow, 2, 4).result(), flush=True)
    """)

    assert out == "8\n32\n0 16\n"


@only_zfarm
def test_a_forked_process_that_ends_or_waits_disturbs_nothing(scripts: Scripts) -> None:
    out = scripts.prints(
        """
        import os
        executor = Executor(max_workers=1)
        future = executor.submit(pow, 2, 3)
        if os.fork() == 0:
            del executor, future
            os._exit(0)
        os.wait()
        print(future.result(), executor.submit(pow, 2, 4).result())
    """,
        env=BARE_FORK,
    )

    assert out == "8 16\n"


# ---------------------------------------------------------------- the death of the farm's own processes


def helpers(executor: Any, before: frozenset[int]) -> list[int]:
    """All processes of the executor, the oldest first."""
    executor.submit(tasks.nothing).result(DEADLINE_S)
    return sorted(leaks.our_processes(frozenset(psutil.pids()) - before))


@only_zfarm
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_helper_process_that_is_killed_is_made_good_or_answered_for(make: Make, which: int) -> None:
    before = frozenset(psutil.pids())
    executor = make(2)
    pids = helpers(executor, before)
    futures = [executor.submit(tasks.square, n) for n in range(200)]
    os.kill(pids[which], signal.SIGKILL)
    _, not_done = wait(futures, DEADLINE_S)

    assert not not_done
    for n, future in enumerate(futures):
        error = future.exception(0)
        assert isinstance(error, BrokenExecutor) or future.result() == n * n
    wait_until(lambda: works_or_is_broken(executor))


def works_or_is_broken(executor: Any) -> bool:
    try:
        return bool(executor.submit(tasks.square, 3).result(DEADLINE_S) == 9)
    except BrokenExecutor:
        return True
