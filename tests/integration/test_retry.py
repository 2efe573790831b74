"""Calls that are run again after exceptions that they name, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import ROOT, TcpFarm, wait_until
from tests.integration.test_faults import mark, marked

pytestmark = pytest.mark.timeout(180)


class Busy(RuntimeError):
    """What it is worth to come back for. Its arguments are not those of its base class."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"{host}:{port} is busy")
        self.port = port


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[zfarm.Executor]:
    monkeypatch.setenv("ZFARM_RETRY_BACKOFF_S", "0.01")
    with zfarm.Executor(max_workers=2) as farm:
        yield farm


def busy_until(path: str, number: int, run: int) -> int:
    """Fail as long as this is not that run of it."""
    mark(path, number)
    if marked(Path(path))[number] < run:
        raise Busy("head", number)
    return number


def test_a_named_exception_is_retried_and_the_value_comes(executor: zfarm.Executor, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    farm = executor.options(retries=4, retry_on=RuntimeError)

    assert farm.submit(busy_until, str(runs), 7, 4).result(60) == 7
    assert marked(runs)[7] == 4


def test_the_last_exception_is_the_outcome_with_a_note(executor: zfarm.Executor, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    error = executor.options(retries=2, retry_on=Busy).submit(busy_until, str(runs), 7, 99).exception(60)

    assert isinstance(error, Busy)
    assert error.port == 7
    assert marked(runs)[7] == 3
    (note,) = error.__notes__
    assert "run 3" in note
    assert "retried 2 times" in note
    assert isinstance(error.__cause__, zfarm.RemoteTraceback)


@pytest.mark.parametrize("named", [KeyError, (ValueError, EOFError)])
def test_another_exception_is_an_outcome_at_once(
    executor: zfarm.Executor, tmp_path: Path, named: Any
) -> None:
    runs = tmp_path / "runs"
    error = executor.options(retries=4, retry_on=named).submit(busy_until, str(runs), 7, 9).exception(60)

    assert isinstance(error, Busy)
    assert marked(runs)[7] == 1
    assert not getattr(error, "__notes__", [])


def test_retries_alone_retry_no_exception(executor: zfarm.Executor, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert isinstance(executor.options(retries=4).submit(busy_until, str(runs), 7, 9).exception(60), Busy)
    assert marked(runs)[7] == 1


def test_only_the_items_of_a_map_that_fail_are_run_again(executor: zfarm.Executor, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    farm = executor.options(retries=3, retry_on=(Busy, EOFError))
    numbers = range(1, 21)
    needed = [3 if n % 5 == 0 else 1 for n in numbers]

    assert list(farm.map(busy_until, [str(runs)] * 20, numbers, needed)) == list(numbers)
    assert [marked(runs)[n] for n in numbers] == needed


def test_an_item_that_fails_to_the_end_fails_at_its_place(executor: zfarm.Executor, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    results = executor.options(retries=2, retry_on=Busy).map(busy_until, [str(runs)] * 3, range(3), [1, 9, 1])

    assert next(results) == 0
    with pytest.raises(Busy) as caught:
        next(results)
    assert "retried 2 times" in caught.value.__notes__[0]
    assert marked(runs)[1] == 3


def die_then_raise(path: str) -> None:
    mark(path, 1)
    if marked(Path(path))[1] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raise Busy("head", 1)


def test_deaths_and_exceptions_share_the_retries(executor: zfarm.Executor, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    error = executor.options(retries=2, retry_on=Busy).submit(die_then_raise, str(runs)).exception(60)

    assert isinstance(error, Busy)
    assert marked(runs)[1] == 3
    assert "run 3" in error.__notes__[0]


def test_what_cannot_be_pickled_is_not_retried(executor: zfarm.Executor) -> None:
    farm = executor.options(retries=3, retry_on=Exception, timeout=None)
    error = farm.submit(lambda: threading.Lock()).exception(60)

    assert isinstance(error, zfarm.NotPortable)
    assert not getattr(error, "__notes__", [])


PROGRAM = """
import sys, zfarm

class Mine(Exception):
    def __init__(self, a, b):
        super().__init__(a + b)

class Derived(Mine):
    pass

def flaky(path, good):
    with open(path, "a") as file:
        file.write("x")
    with open(path) as file:
        runs = len(file.read())
    if runs < good:
        raise Derived(1, 2)
    return runs

if __name__ == "__main__":
    with zfarm.Executor(max_workers=1) as farm:
        print(farm.options(retries=3, retry_on=Mine).submit(flaky, sys.argv[1], 3).result(60))
        error = farm.options(retries=1, retry_on=Mine).submit(flaky, sys.argv[1] + "2", 9).exception(60)
        print(type(error) is Derived, len(open(sys.argv[1] + "2").read()))
        inner = type("Inner", (Exception,), {})
        def raising():
            raise inner("no")
        error = farm.options(retries=1, retry_on=inner).submit(raising).exception(60)
        print(type(error).__name__, error.__notes__[0])
"""


def test_exceptions_of_the_main_program_are_known(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ran = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "runs")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ZFARM_RETRY_BACKOFF_S": "0.01"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    first, second, third = ran.stdout.splitlines()
    assert first == "3"
    assert second == "True 2"
    assert third.startswith("Inner zfarm: this is how run 2")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"retry_on": OSError}, ValueError, "needs retries"),
        ({"retry_on": OSError, "retries": None}, ValueError, "needs retries"),
        ({"retry_on": OSError, "retries": 0}, ValueError, "contradict"),
        ({"retry_on": OSError, "max_attempts": 1}, ValueError, "contradict"),
        ({"retry_on": OSError, "retries": -1}, ValueError, "retries"),
        ({"retry_on": (), "retries": 1}, ValueError, "names no exception"),
        ({"retry_on": "OSError", "retries": 1}, TypeError, "exception class"),
        ({"retry_on": [OSError], "retries": 1}, TypeError, "exception class"),
        ({"retry_on": (OSError, 3), "retries": 1}, TypeError, "3 is none"),
        ({"retry_on": OSError(), "retries": 1}, TypeError, "exception class"),
        ({"retry_on": KeyboardInterrupt, "retries": 1}, TypeError, "may be retried"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    from zfarm.terms import PLAIN

    with pytest.raises(error, match=says):
        PLAIN.but(**options)


def test_views_keep_both_halves() -> None:
    from zfarm.terms import PLAIN

    assert PLAIN.but(retries=3).but(retry_on=OSError).max_attempts == 4
    assert PLAIN.but(retries=3, retry_on=OSError).but(retry_on=None).retry_on == ()
    with pytest.raises(ValueError, match="needs retries"):
        PLAIN.but(retries=3, retry_on=OSError).but(retries=None)


def always_busy(path: str) -> None:
    mark(path, 1)
    raise Busy("head", 1)


def test_exceptions_are_counted_over_a_killed_broker(farm: TcpFarm, tmp_path: Path) -> None:
    farm.variables = {"ZFARM_RETRY_BACKOFF_S": "1.0"}
    broker = farm.start_broker()
    farm.start_worker(1)
    runs = tmp_path / "runs"
    with zfarm.Executor(farm.connection) as client:
        future = client.options(retries=3, retry_on=Busy).submit(always_busy, str(runs))
        for run in (1, 2):
            wait_until(lambda run=run: marked(runs)[1] == run, f"run {run}")  # type: ignore[misc]
            wait_until(lambda run=run: farm.status()["tasks"]["retried"] >= 1, "it is counted")  # type: ignore[misc]
            os.kill(broker.pid, signal.SIGKILL)
            broker.wait()
            broker = farm.start_broker(port=farm.port)
        error = future.exception(90)

    assert isinstance(error, Busy)
    assert marked(runs)[1] == 4
    assert "retried 3 times" in error.__notes__[0]
