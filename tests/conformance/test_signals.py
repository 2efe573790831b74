"""A parent that is killed leaves nothing; Ctrl-C ends promptly and cleanly (10)."""

from __future__ import annotations

import os
import signal
import subprocess

import psutil
import pytest

from tests import leaks
from tests.conformance.support import DEADLINE_S, Scripts, only_zfarm, wait_until

PROMPT_S = 8.0
"""How long an interrupted program may take to end."""

LONG_CALL = """
    import os, signal, sys, time

    def work(*_):
        time.sleep(1000)

    def ready():
        print("ready", os.getpid(), flush=True)
        time.sleep(1000)

"""


def start(scripts: Scripts, body: str) -> subprocess.Popen[str]:
    """Start a program in a group of its own and wait until a task of it has said that it is ready."""
    process = scripts.start(LONG_CALL + body, start_new_session=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready"):
        _, err = process.communicate(timeout=DEADLINE_S)
        pytest.fail(f"the script is not ready: {line!r}\n{err}")
    return process


def nothing_left(before: set[int]) -> None:
    """Wait until every process that was started since is gone."""
    wait_until(lambda: not leaks.our_processes(frozenset(psutil.pids()) - before), "all processes gone")


WORLDS = {
    "idle": """
    def ready():
        print("ready", os.getpid(), flush=True)

    executor = Executor(max_workers=2)
    executor.submit(ready).result()
    signal.pause()
    """,
    "busy": """
    executor = Executor(max_workers=2)
    futures = [executor.submit(ready)] + [executor.submit(work) for n in range(20)]
    futures[-1].result()
    """,
    "deaf": """
    def ready():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        print("ready", os.getpid(), flush=True)
        time.sleep(1000)

    executor = Executor(max_workers=1)
    executor.submit(ready).result()
    """,
    "holding the interpreter's lock": """
    def ready():
        print("ready", os.getpid(), flush=True)
        sum(iter(int, 1))

    executor = Executor(max_workers=1)
    executor.submit(ready).result()
    """,
    "with children of its own": """
    def ready():
        import subprocess
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        print("ready", os.getpid(), flush=True)
        time.sleep(1000)

    executor = Executor(max_workers=1)
    executor.submit(ready).result()
    """,
    "with a farm in a task": """
    def ready():
        print("ready", os.getpid(), flush=True)
        time.sleep(1000)

    def nested():
        with Executor(max_workers=1) as inner:
            inner.submit(ready).result()

    executor = Executor(max_workers=1)
    executor.submit(nested).result()
    """,
}


@only_zfarm
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_a_parent_that_is_killed_leaves_nothing(scripts: Scripts, world: str) -> None:
    """(10)"""
    before = set(psutil.pids())
    process = start(scripts, world)
    assert len(leaks.our_processes(frozenset(psutil.pids()) - before)) >= 3
    process.kill()
    process.communicate(timeout=DEADLINE_S)

    nothing_left(before)


@only_zfarm
@pytest.mark.parametrize("world", ["idle", "busy", "deaf"])
def test_a_parent_that_is_terminated_leaves_nothing(scripts: Scripts, world: str) -> None:
    """(10)"""
    before = set(psutil.pids())
    process = start(scripts, WORLDS[world])
    process.terminate()
    process.communicate(timeout=DEADLINE_S)

    assert process.returncode == -signal.SIGTERM
    nothing_left(before)


FORMS = {
    "waiting in a with block": """
    with Executor(max_workers=2) as executor:
        futures = [executor.submit(ready)] + [executor.submit(work) for n in range(20)]
        futures[-1].result()
    """,
    "waiting without a block": """
    executor = Executor(max_workers=2)
    futures = [executor.submit(ready)] + [executor.submit(work) for n in range(20)]
    futures[-1].result()
    """,
    "in a map": """
    with Executor(max_workers=2) as executor:
        executor.submit(ready)
        list(executor.map(work, range(100)))
    """,
    "in shutdown": """
    with Executor(max_workers=2) as executor:
        executor.submit(ready)
    """,
    "at the end of the program": """
    executor = Executor(max_workers=2)
    executor.submit(ready)
    """,
}


@only_zfarm
@pytest.mark.parametrize("target", ["group", "parent"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_an_interrupted_program_ends_promptly_and_cleanly(scripts: Scripts, form: str, target: str) -> None:
    """(10)"""
    before = set(psutil.pids())
    process = start(scripts, form)
    (os.killpg if target == "group" else os.kill)(process.pid, signal.SIGINT)
    code, _, err = scripts.finish(process, PROMPT_S)

    assert err.count("KeyboardInterrupt") <= 1, err
    assert err.count("Traceback") <= 1, err
    assert code in (-signal.SIGINT, 130, 1, 0), err  # the interpreter's own code where it was already leaving
    nothing_left(before)


@only_zfarm
def test_an_interrupt_at_the_end_of_the_program_says_that_calls_are_given_up(scripts: Scripts) -> None:
    """The exit code is that of a program that has ended well: without a word nobody would know."""
    process = start(scripts, FORMS["at the end of the program"])
    process.send_signal(signal.SIGINT)
    _, _, err = scripts.finish(process, PROMPT_S)

    assert "the calls still open are given up" in err


@only_zfarm
def test_an_interrupt_that_is_caught_leaves_the_executor_in_order(scripts: Scripts) -> None:
    """(10) As in a notebook: the cell is interrupted, and the next one runs."""
    process = start(
        scripts,
        """
    executor = Executor(max_workers=2)
    future = executor.submit(ready)
    try:
        future.result()
    except KeyboardInterrupt:
        print("caught", flush=True)
    print(executor.submit(pow, 2, 5).result(), flush=True)
    print(list(executor.map(pow, range(4), range(4))), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """,
    )
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = scripts.finish(process)

    assert err == ""
    assert out == "caught\n32\n[1, 1, 4, 27]\n"
    assert code == -signal.SIGKILL


@only_zfarm
def test_a_parent_that_is_killed_in_the_middle_of_submitting_leaves_nothing(scripts: Scripts) -> None:
    """(10)"""
    before = set(psutil.pids())
    process = scripts.start("""
        executor = Executor(max_workers=2)
        print("ready", executor.submit(pow, 2, 3).result(), flush=True)
        futures = [executor.submit(pow, 2, n % 100) for n in range(10_000_000)]
    """)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready 8\n"
    process.kill()
    process.communicate(timeout=DEADLINE_S)

    nothing_left(before)
