"""What the tests of the contract share: kinds of executors, gates that hold tasks, scripts, deadlines."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

DEADLINE_S = 20.0
"""How long a condition may take to come true on a busy machine. Never the time that a passing test takes."""

ROOT = Path(__file__).parents[2]

EXECUTORS = {
    "threads": "from concurrent.futures import ThreadPoolExecutor as Executor",
    "processes": """
        import concurrent.futures, functools, multiprocessing
        Executor = functools.partial(concurrent.futures.ProcessPoolExecutor,
                                     mp_context=multiprocessing.get_context("fork"))
    """,
    "zfarm": "from zfarm import Executor",
}
"""The first lines of a script, by kind: they bind the name Executor."""


class Make(Protocol):
    """Makes executors of the kind that the test runs with; they are shut down after it."""

    def __call__(self, max_workers: int | None = 2, **options: Any) -> concurrent.futures.Executor: ...


def kinds(*names: str) -> pytest.MarkDecorator:
    """Run the test with these kinds of executors only."""
    return pytest.mark.parametrize("kind", names, indirect=True)


EVERYONE = ("threads", "processes", "zfarm")
SEPARATE = ("processes", "zfarm")  # those whose tasks run in processes of their own
everyone = kinds(*EVERYONE)
separate = kinds(*SEPARATE)
only_zfarm = kinds("zfarm")


def make_executor(kind: str, max_workers: int | None, options: dict[str, Any]) -> concurrent.futures.Executor:
    """One executor of that kind, as its users would make it."""
    if kind == "threads":
        return concurrent.futures.ThreadPoolExecutor(max_workers, **options)
    if kind == "processes":
        method = "spawn" if "max_tasks_per_child" in options else "fork"
        context = multiprocessing.get_context(method)
        return concurrent.futures.ProcessPoolExecutor(max_workers, mp_context=context, **options)
    import zfarm

    executor: concurrent.futures.Executor = zfarm.Executor(max_workers=max_workers, **options)
    return executor


def wait_until(condition: Callable[[], Any], what: str = "", deadline_s: float = DEADLINE_S) -> Any:
    """Wait until ``condition()`` is true and return its value; fail the test after ``deadline_s``."""
    end = time.monotonic() + deadline_s
    pause_s = 0.0005
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline_s} s: {what or condition}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)
    return value


class Gate:
    """Holds tasks (`tasks.hold`) in whatever process until it is opened, and knows which of them have come.

    A named pipe: opening it for reading blocks until somebody has it open for writing.
    """

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "gate")
        self._folder = folder
        self._descriptor = -1
        os.mkfifo(self.path)

    def came(self) -> list[str]:
        """The names of the calls that have come to the gate, in no order."""
        return [path.name for path in self._folder.iterdir() if path.name != "gate"]

    def wait_for(self, count: int) -> None:
        """Wait until so many calls have come."""
        wait_until(lambda: len(self.came()) >= count, f"{count} calls at the gate, but {self.came()}")

    def open(self) -> None:
        """Let all pass that wait and all that come later."""
        if self._descriptor < 0:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)

    def close(self) -> None:
        """Give back what open() took."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Gates:
    """All the gates of one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Gate] = []

    def new(self) -> Gate:
        """One more gate, shut."""
        folder = self._folder / f"gate{len(self._made)}"
        folder.mkdir()
        self._made.append(Gate(folder))
        return self._made[-1]

    def open(self) -> None:
        """Open all."""
        for gate in self._made:
            gate.open()

    def close(self) -> None:
        """Give back what open() took."""
        for gate in self._made:
            gate.close()


class Finished(NamedTuple):
    """How a script ended."""

    code: int
    out: str
    err: str


class Scripts:
    """Runs programs as users have them, in processes of their own, in an empty directory of their own."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder

    def text(self, body: str) -> str:
        """A whole program: the line that imports Executor, and the body."""
        return textwrap.dedent(EXECUTORS[self.kind]).strip() + "\n" + textwrap.dedent(body)

    def start(self, body: str, how: str = "file", **options: Any) -> subprocess.Popen[str]:
        """Start a program given as ``file``, ``-c`` or ``stdin``, with its streams on pipes."""
        text = self.text(body)
        arguments = [sys.executable]
        if how == "file":
            (self.folder / "script.py").write_text(text)
            arguments += ["script.py"]
        elif how == "-c":
            arguments += ["-c", text]
        return self.popen(arguments, text if how == "stdin" else None, **options)

    def popen(
        self, arguments: Sequence[str], text: str | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command in the scripts' directory, with zfarm importable from this source tree."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
        environment.pop("PYTHONUNBUFFERED", None)  # it would hide what is not flushed
        process = subprocess.Popen(
            list(arguments),
            stdin=subprocess.PIPE if text is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=environment,
            **options,
        )
        if text is not None and process.stdin is not None:
            process.stdin.write(text)
            process.stdin.close()
            process.stdin = None
        return process

    def finish(self, process: subprocess.Popen[str], deadline_s: float = DEADLINE_S) -> Finished:
        """Wait for a program's end; one that does not end in time is killed and fails the test."""
        try:
            out, err = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"the script did not end within {deadline_s} s; stdout:\n{out}\nstderr:\n{err}")
        return Finished(process.returncode, out, err)

    def run(self, body: str, how: str = "file", deadline_s: float = DEADLINE_S, **options: Any) -> Finished:
        """Run a program to its end, whatever that is."""
        return self.finish(self.start(body, how, **options), deadline_s)

    def prints(self, body: str, how: str = "file", **options: Any) -> str:
        """Run a program that must end well: exit code 0 and an empty stderr. What it wrote to stdout."""
        code, out, err = self.run(body, how, **options)
        assert err == ""
        assert code == 0
        return out


def outcome(call: Callable[[], concurrent.futures.Future[Any]]) -> BaseException | None:
    """The exception of a call, raised by submit at once or by its future later; None if it had none."""
    try:
        return call().exception(DEADLINE_S)
    except concurrent.futures.TimeoutError:
        pytest.fail("no outcome in time")
    except BaseException as error:
        return error
