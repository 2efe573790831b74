"""Every stage of pickling may raise, exit or crash, and harms its own call at most (11).

What a process pool cannot survive here (it breaks, or hangs) is asked of zfarm alone.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, Make, only_zfarm, outcome, separate


class Trouble(Exception):
    """What the stages raise."""


def trouble(how: str) -> NoReturn:
    if how == "raise":
        raise Trouble("in pickling")
    if how == "exit":
        sys.exit("in pickling")
    os._exit(41)


class NoDump:
    """Cannot be pickled anywhere."""

    def __init__(self, how: str = "raise") -> None:
        self.how = how

    def __reduce__(self) -> Any:
        trouble(self.how)


def load_trouble(how: str, home: int, at_home: bool) -> Any:
    """The unpickling half of NoLoad: makes trouble at home only, or everywhere else."""
    if (os.getpid() == home) is at_home:
        trouble(how)
    return NoLoad(how, home, at_home)


class NoLoad:
    """Cannot be unpickled in the process ``home`` (or in all others)."""

    def __init__(self, how: str, home: int, at_home: bool) -> None:
        self.parts = (how, home, at_home)

    def __reduce__(self) -> Any:
        return load_trouble, self.parts


class ErrorNoDump(Exception):
    def __reduce__(self) -> Any:
        raise Trouble("the exception's own")


class ErrorNoLoad(Exception):
    """As many classes do, it gives itself args that its __init__ does not take: it cannot be unpickled."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class ErrorExitsAtLoad(Exception):
    def __reduce__(self) -> Any:
        return load_trouble, ("exit", -1, False)


def raise_made(make_error: Callable[..., BaseException], *args: Any) -> NoReturn:
    raise make_error(*args)


def made(make_value: Callable[..., Any], *args: Any) -> Any:
    return make_value(*args)


def deep(depth: int) -> list[Any]:
    """A list in a list in a list: more of them than the pickler can follow."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def still_fine(executor: Any, threads: set[threading.Thread]) -> None:
    """The executor works as before, on the same threads."""
    assert executor.submit(tasks.square, 12).result(DEADLINE_S) == 144
    assert list(executor.map(tasks.square, range(10))) == [n * n for n in range(10)]
    assert all(thread.is_alive() for thread in threads)


def ready(make: Make) -> tuple[Any, set[threading.Thread]]:
    """An executor that has run a call, and all threads that there are then."""
    executor = make(2)
    executor.submit(tasks.nothing).result(DEADLINE_S)
    return executor, set(threading.enumerate())


# ---------------------------------------------------------------- arguments, in the client


@separate
def test_an_argument_that_cannot_be_pickled(make: Make) -> None:
    """(11)"""
    executor, threads = ready(make)
    error = outcome(lambda: executor.submit(tasks.same, NoDump()))

    assert isinstance(error, Exception)
    assert "in pickling" in f"{error} {error.__cause__} {error.__context__}"
    still_fine(executor, threads)


@only_zfarm
@pytest.mark.parametrize(
    ("value", "culprit"),
    [
        (threading.Lock(), "lock"),
        ((n for n in range(3)), "generator"),
        (sys._getframe(), "frame"),
        ({"deep": [1, {"inside": threading.Lock()}]}, "lock"),
        (NoDump(), "NoDump"),
    ],
    ids=["lock", "generator", "frame", "inside", "reduce"],
)
def test_the_culprit_is_named_at_the_call(make: Make, value: Any, culprit: str) -> None:
    """(11)"""
    executor, _ = ready(make)
    with pytest.raises(TypeError, match=culprit) as caught:
        executor.submit(tasks.same, value)

    from zfarm.errors import NotPortable

    assert type(caught.value) is NotPortable


@only_zfarm
def test_an_argument_whose_pickling_exits(make: Make) -> None:
    """(11)"""
    executor, threads = ready(make)
    assert isinstance(outcome(lambda: executor.submit(tasks.same, NoDump("exit"))), BaseException)
    still_fine(executor, threads)


@only_zfarm
def test_an_argument_in_the_middle_of_a_map(make: Make) -> None:
    """(2, 11)"""
    executor, threads = ready(make)
    with pytest.raises((TypeError, Trouble)):
        list(executor.map(tasks.same, [1, 2, NoDump(), 4]))
    still_fine(executor, threads)


@separate
def test_an_argument_that_is_too_deep(make: Make) -> None:
    """(11)"""
    executor, threads = ready(make)
    assert isinstance(outcome(lambda: executor.submit(tasks.same, deep(100_000))), Exception)
    still_fine(executor, threads)


# ---------------------------------------------------------------- arguments, in the child


@only_zfarm
@pytest.mark.parametrize(("how", "kind_of_error"), [("raise", Trouble), ("exit", SystemExit)])
def test_an_argument_that_cannot_be_unpickled(
    make: Make, how: str, kind_of_error: type[BaseException]
) -> None:
    """(11)"""
    executor, threads = ready(make)
    others = [executor.submit(tasks.square, n) for n in range(20)]
    future = executor.submit(tasks.same, NoLoad(how, os.getpid(), at_home=False))
    others += [executor.submit(tasks.square, n) for n in range(20)]

    assert type(future.exception(DEADLINE_S)) is kind_of_error
    assert "in pickling" in str(future.exception())
    assert [other.result(DEADLINE_S) for other in others] == [n * n for n in range(20)] * 2
    still_fine(executor, threads)


@only_zfarm
def test_an_argument_whose_unpickling_kills_the_child(make: Make) -> None:
    """(11, 12)"""
    executor, threads = ready(make)
    from zfarm.errors import TaskLost

    others = [executor.submit(tasks.square, n) for n in range(20)]
    future = executor.submit(tasks.same, NoLoad("die", os.getpid(), at_home=False))
    others += [executor.submit(tasks.square, n) for n in range(20)]

    assert type(future.exception(DEADLINE_S)) is TaskLost
    assert [other.result(DEADLINE_S) for other in others] == [n * n for n in range(20)] * 2
    still_fine(executor, threads)


@only_zfarm
def test_an_item_of_a_map_that_cannot_be_unpickled(make: Make) -> None:
    """(2, 11)"""
    executor, threads = ready(make)
    bad = NoLoad("raise", os.getpid(), at_home=False)
    results = executor.map(tasks.same, [1, 2, 3, bad, 5])

    assert [next(results), next(results), next(results)] == [1, 2, 3]
    with pytest.raises(Trouble):
        next(results)
    still_fine(executor, threads)


@only_zfarm
def test_a_function_that_is_not_there_in_the_child(make: Make) -> None:
    """(11) A module that exists in this process only, and says that it can be imported."""
    executor, threads = ready(make)
    import types

    module = types.ModuleType("tests_made_up_module")
    sys.modules["tests_made_up_module"] = module
    try:
        exec("def work(): return 5", vars(module))
        error = outcome(lambda: executor.submit(module.work))
    finally:
        del sys.modules["tests_made_up_module"]

    assert error is None or "tests_made_up_module" in str(error)
    still_fine(executor, threads)


# ---------------------------------------------------------------- results, in the child


@separate
@pytest.mark.parametrize(("how", "kind_of_error"), [("raise", Exception), ("exit", BaseException)])
def test_a_result_that_cannot_be_pickled(make: Make, how: str, kind_of_error: type[BaseException]) -> None:
    """(11)"""
    executor, threads = ready(make)
    error = executor.submit(made, NoDump, how).exception(DEADLINE_S)

    assert isinstance(error, kind_of_error)
    assert "in pickling" in f"{error} {error.__cause__} {error.__context__}"
    still_fine(executor, threads)


@separate
def test_a_result_that_nobody_can_pickle(make: Make) -> None:
    """(11)"""
    executor, threads = ready(make)
    error = executor.submit(made, threading.Lock).exception(DEADLINE_S)

    assert isinstance(error, TypeError)
    assert "lock" in str(error)
    still_fine(executor, threads)


@only_zfarm
def test_a_result_whose_pickling_kills_the_child(make: Make) -> None:
    """(11, 12)"""
    executor, threads = ready(make)
    from zfarm.errors import TaskLost

    assert type(executor.submit(made, NoDump, "die").exception(DEADLINE_S)) is TaskLost
    still_fine(executor, threads)


@only_zfarm
def test_a_result_of_a_map_that_cannot_be_pickled(make: Make) -> None:
    """(2, 11)"""
    executor, threads = ready(make)
    results = executor.map(made, [int, int, NoDump, int])

    assert [next(results), next(results)] == [0, 0]
    with pytest.raises((TypeError, Trouble)):
        next(results)
    still_fine(executor, threads)


@separate
def test_a_result_that_is_too_deep(make: Make) -> None:
    """(11)"""
    executor, threads = ready(make)
    assert isinstance(executor.submit(deep, 100_000).exception(DEADLINE_S), Exception)
    still_fine(executor, threads)


# ---------------------------------------------------------------- results, in the client


@only_zfarm
@pytest.mark.parametrize(("how", "kind_of_error"), [("raise", Exception), ("exit", BaseException)])
def test_a_result_that_cannot_be_unpickled(make: Make, how: str, kind_of_error: type[BaseException]) -> None:
    """(11)"""
    executor, threads = ready(make)
    error = executor.submit(made, NoLoad, how, os.getpid(), True).exception(DEADLINE_S)

    assert isinstance(error, kind_of_error)
    assert "in pickling" in f"{error} {error.__cause__} {error.__context__}"
    still_fine(executor, threads)


# ---------------------------------------------------------------- exceptions


@only_zfarm
@pytest.mark.parametrize(
    ("make_error", "args"),
    [
        (ErrorNoDump, ("the text",)),
        (ErrorNoLoad, (5, "the text")),
        (ErrorExitsAtLoad, ("the text",)),
        (ValueError, ("the text", NoDump())),
    ],
    ids=["dump", "load", "exits", "argument"],
)
def test_an_exception_that_cannot_travel_is_told_of(
    make: Make, make_error: Any, args: tuple[Any, ...]
) -> None:
    """(6, 11)"""
    executor, threads = ready(make)
    if make_error is ValueError:
        error = executor.submit(raise_unpicklable_value_error).exception(DEADLINE_S)
    else:
        error = executor.submit(raise_made, make_error, *args).exception(DEADLINE_S)

    assert isinstance(error, BaseException)
    assert make_error.__name__ in f"{type(error).__name__} {error} {error.__cause__}"
    assert "the text" in f"{error} {error.__cause__}"
    still_fine(executor, threads)


def raise_unpicklable_value_error() -> NoReturn:
    raise ValueError("the text", NoDump())


@separate
def test_an_exception_that_cannot_be_pickled_ends_its_call_alone(make: Make) -> None:
    """(6, 11)"""
    executor, threads = ready(make)
    assert isinstance(executor.submit(raise_made, ErrorNoDump).exception(DEADLINE_S), Exception)
    still_fine(executor, threads)


@separate
def test_an_exception_that_cannot_print_itself(make: Make) -> None:
    """(6, 11)"""
    executor, threads = ready(make)
    assert type(executor.submit(raise_made, tasks.Unprintable).exception(DEADLINE_S)) is tasks.Unprintable
    still_fine(executor, threads)


@separate
def test_large_values_each_way(make: Make) -> None:
    """(11)"""
    executor, threads = ready(make)
    data = bytes(60_000_000)
    assert executor.submit(len, data).result(DEADLINE_S) == len(data)
    assert executor.submit(bytes, 60_000_000).result(DEADLINE_S) == data
    still_fine(executor, threads)
