"""Exceptions of tasks come home as they are, with the traceback of the child as their cause (6)."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, wait
from typing import Any

import pytest

from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, EVERYONE, Make, Scripts, everyone, kinds, separate

falsy = kinds(*(EVERYONE if sys.version_info >= (3, 14) else ("zfarm",)))  # older libraries swallow them

SAMPLES: list[BaseException] = [
    KeyError("key"),
    OSError(2, "no such thing", "a file"),
    FileNotFoundError(2, "no such file", "a file"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    StopIteration(5),
    SystemExit(3),
    GeneratorExit("over"),
    TimeoutError("late"),
    subprocess.CalledProcessError(4, ["command"], b"out", b"err"),
    json.JSONDecodeError("bad", "{", 1),
    ExceptionGroup("group", [ValueError(1), ExceptionGroup("inner", [KeyError(2)])]),
    RuntimeError("x" * 1_000_000),
]


@everyone
@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_type_args_and_attributes_come_home(make: Make, error: BaseException) -> None:
    """(6)"""
    found = make().submit(tasks.fail, error).exception(DEADLINE_S)

    assert type(found) is type(error)
    assert repr(found) == repr(error)
    assert str(found) == str(error)
    attributes = {key: value for key, value in vars(error).items() if key != "__notes__"}
    assert {key: repr(vars(found)[key]) for key in attributes} == {k: repr(v) for k, v in attributes.items()}


@everyone
def test_exceptions_of_ones_own_keep_attributes_and_notes(make: Make) -> None:
    """(6)"""
    future = make().submit(tasks.fail_attributed)
    with pytest.raises(tasks.Attributed) as caught:
        future.result(DEADLINE_S)

    assert caught.value.args == (7, "seven")
    assert (caught.value.code, caught.value.extra) == (7, [1, 2])
    assert caught.value.__notes__ == ["a note"]
    assert future.exception() is caught.value


@falsy
@pytest.mark.parametrize("error", [tasks.FalseByBool("no"), tasks.FalseByLen("none")], ids=repr)
def test_falsy_exceptions_are_exceptions(make: Make, error: Exception) -> None:
    """(6)"""
    executor = make()
    future = executor.submit(tasks.fail, error)
    with pytest.raises(type(error), match=str(error)):
        future.result(DEADLINE_S)
    assert type(future.exception()) is type(error)
    with pytest.raises(type(error)):
        list(executor.map(tasks.fail, [error]))
    futures = {future, executor.submit(tasks.fail, error)}
    done, _ = wait(futures, DEADLINE_S, FIRST_EXCEPTION)
    assert done


@separate
def test_the_cause_shows_the_traceback_of_the_child_with_source_lines(make: Make) -> None:
    """(6)"""
    future = make().submit(tasks.fail, RuntimeError(123))
    with pytest.raises(RuntimeError) as caught:
        future.result(DEADLINE_S)

    cause = str(caught.value.__cause__)
    assert "Traceback (most recent call last)" in cause
    assert "raise error  # the line that the traceback shows" in cause
    assert "RuntimeError: 123" in cause


@separate
def test_the_cause_shows_what_the_exception_was_raised_from(make: Make) -> None:
    """(6)"""
    error = make().submit(tasks.fail_chained).exception(DEADLINE_S)

    assert type(error) is LookupError
    cause = str(error.__cause__)
    assert "ZeroDivisionError" in cause
    assert "The above exception was the direct cause of the following exception" in cause


@separate
def test_map_shows_the_traceback_of_the_child(make: Make) -> None:
    """(2, 6)"""
    with pytest.raises(ValueError) as caught:
        list(make().map(tasks.fail_odd, [0, 2, 3]))

    assert "raise ValueError(x)" in str(caught.value.__cause__)


@separate
def test_the_interpreter_prints_the_traceback_of_the_child(scripts: Scripts) -> None:
    """(6)"""
    code, _, err = scripts.run("""
        def work(n):
            raise RuntimeError(n)  # in the child

        with Executor(max_workers=1) as executor:
            executor.submit(work, 123).result()
    """)

    assert code == 1
    assert "raise RuntimeError(n)  # in the child" in err
    assert "The above exception was the direct cause of the following exception" in err
    assert err.rstrip().endswith("RuntimeError: 123")
    assert err.count("RuntimeError: 123") == 2


@everyone
def test_an_exception_harms_no_other_call(make: Make) -> None:
    """(6)"""
    executor = make(1)
    futures = [executor.submit(tasks.fail_odd, n) for n in range(100)]
    errors: list[Any] = [future.exception(DEADLINE_S) for future in futures]

    assert [error.args[0] for error in errors if error] == list(range(1, 100, 2))
    assert [future.result() for future in futures[::2]] == list(range(0, 100, 2))


@everyone
def test_an_exception_that_cannot_be_printed_comes_home(make: Make) -> None:
    """(6, 11)"""
    executor = make()
    error = executor.submit(tasks.fail, tasks.Unprintable("hidden")).exception(DEADLINE_S)

    assert type(error) is tasks.Unprintable
    assert error.args == ("hidden",)
    assert executor.submit(tasks.square, 2).result(DEADLINE_S) == 4
