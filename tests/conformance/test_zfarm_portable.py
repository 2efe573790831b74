"""What process pools cannot send, zfarm can: any function and class, wherever it was made."""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, Make, Scripts, only_zfarm

HOWS = ["file", "-c", "stdin"]


def adder(n: int) -> Callable[[int], int]:
    return lambda x: x + n


def factorial_closure() -> Callable[[int], int]:
    def factorial(n: int) -> int:
        return 1 if n == 0 else n * factorial(n - 1)

    return factorial


def with_defaults(a: int, *, b: int = 5) -> int:
    return a + b


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any) -> Any:
        return "decorated", function(*args)

    return inner


@decorated
def doubled(n: int) -> int:
    return 2 * n


@functools.lru_cache
def cached(n: int) -> int:
    return n + 1


class Calls:
    @staticmethod
    def static(n: int) -> int:
        return n + 1

    @classmethod
    def of_class(cls, n: int) -> tuple[str, int]:
        return cls.__name__, n

    def __call__(self, n: int) -> int:
        return -n


@functools.singledispatch
def dispatched(value: Any) -> str:
    return "something"


@dispatched.register
def _(value: int) -> str:
    return "a number"


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], Any]] = {
    "lambda": (lambda x: x + 1, (1,), 2),
    "lambda with a default": (lambda x, y=5: x + y, (1,), 6),
    "closure": (adder(3), (4,), 7),
    "closure that calls itself": (factorial_closure(), (5,), 120),
    "partial of a lambda": (functools.partial(lambda a, b: a - b, 10), (3,), 7),
    "keyword-only default": (with_defaults, (1,), 6),
    "decorated": (doubled, (4,), ("decorated", 8)),
    "lru_cache": (cached, (4,), 5),
    "static method": (Calls.static, (4,), 5),
    "class method": (Calls.of_class, (4,), ("Calls", 4)),
    "callable object": (Calls(), (4,), -4),
    "single dispatch": (dispatched, (4,), "a number"),
    "builtin": (len, ("abc",), 3),
    "method of a value": ("a-b".replace, ("-", "+"), "a+b"),
    "itemgetter": (operator.itemgetter(1), ([1, 2],), 2),
    "methodcaller": (operator.methodcaller("upper"), ("a",), "A"),
    "class": (complex, (1, 2), 1 + 2j),
    "ufunc": (np.add, (1, 2), 3),
    "module function": (math.gcd, (12, 18), 6),
    "unbound method": (str.upper, ("a",), "A"),
    "lambda in a lambda": (lambda n: list(map(lambda m: m * n, [n])), (3,), [9]),  # noqa: C417
    "generator inside": (lambda n: sum(x for x in range(n)), (4,), 6),
}


@only_zfarm
def test_every_kind_of_function(make: Make) -> None:
    executor = make(2)
    for name, (function, args, expected) in CASES.items():
        assert executor.submit(function, *args).result(DEADLINE_S) == expected, name
        assert list(executor.map(function, *([arg] for arg in args))) == [expected], name


@only_zfarm
def test_functions_as_arguments_and_results(make: Make) -> None:
    executor = make(1)
    plus = executor.submit(lambda n: lambda x: x + n, 5).result(DEADLINE_S)

    assert plus(1) == 6
    assert executor.submit(lambda f, x: f(x), lambda x: x * 2, 4).result(DEADLINE_S) == 8
    assert executor.submit(tasks.call, adder(1), 1).result(DEADLINE_S) == 2


@only_zfarm
def test_classes_made_in_a_function(make: Make) -> None:
    class Local:
        def __init__(self, value: int) -> None:
            self.value = value

        def method(self) -> int:
            return self.value * 2

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Local) and other.value == self.value

        __hash__ = None  # type: ignore[assignment]

    class Derived(Local):
        def method(self) -> int:
            return super().method() + 1

    class Shade(enum.Enum):
        DARK = 1

    executor = make(1)
    back = executor.submit(tasks.same, Derived(4)).result(DEADLINE_S)
    assert type(back) is Derived
    assert back == Derived(4)
    assert executor.submit(Derived(3).method).result(DEADLINE_S) == 7
    assert executor.submit(lambda: Shade.DARK).result(DEADLINE_S) is Shade.DARK
    assert executor.submit(lambda value: isinstance(value, Local), Derived(1)).result(DEADLINE_S)


@only_zfarm
def test_exceptions_of_classes_made_in_a_function(make: Make) -> None:
    class LocalError(Exception):
        pass

    def fail() -> None:
        raise LocalError("local")

    with pytest.raises(LocalError, match="local"):
        make(1).submit(fail).result(DEADLINE_S)


@only_zfarm
def test_a_closure_is_taken_as_it_is_at_submit(make: Make) -> None:
    executor = make(1)
    value = [0]
    futures = []
    for n in range(20):
        value[0] = n
        futures.append(executor.submit(lambda: value[0]))

    assert [future.result(DEADLINE_S) for future in futures] == list(range(20))


@only_zfarm
def test_a_loop_variable_in_a_lambda_is_the_one_at_submit(make: Make) -> None:
    """Late binding makes all the same in one process; here each is sent as it is when it is submitted."""
    executor = make(1)
    futures = [executor.submit(lambda: n) for n in range(10)]  # noqa: B023

    assert [future.result(DEADLINE_S) for future in futures] == list(range(10))


@only_zfarm
def test_the_traceback_of_a_lambda_has_its_source(scripts: Scripts) -> None:
    code, _, err = scripts.run("""
        with Executor(max_workers=1) as executor:
            executor.submit(lambda x: 1 / x, 0).result()  # this very line
    """)

    assert code == 1
    assert err.count("# this very line") == 2
    assert err.rstrip().endswith("ZeroDivisionError: division by zero")


@only_zfarm
@pytest.mark.parametrize("how", HOWS)
def test_anything_of_the_program(scripts: Scripts, how: str) -> None:
    out = scripts.prints(
        """
        import functools, math
        offset = 10

        def outer(n):
            def inner(x):
                return x + n + offset
            return inner

        class Model:
            def __init__(self): self.hidden = lambda x: x * 3
            def run(self, x): return self.hidden(x) + offset

        @functools.cache
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)

        with Executor(max_workers=2) as executor:
            print(executor.submit(outer(1), 2).result(), list(executor.map(lambda x: x * x, range(4))))
            print(executor.submit(Model().run, 5).result(), executor.submit(fib, 30).result())
            print(executor.submit(lambda: math.floor(2.5)).result())
        """,
        how,
    )

    assert out == "13 [0, 1, 4, 9]\n25 832040\n2\n"


@only_zfarm
def test_a_large_closure_is_sent_and_used_many_times(make: Make) -> None:
    table = np.arange(500_000)

    def look_up(n: int) -> int:
        return int(table[n])

    executor = make(2)
    assert list(executor.map(look_up, range(0, 500_000, 50_000))) == list(range(0, 500_000, 50_000))
    futures = [executor.submit(look_up, n) for n in range(20)]
    assert [future.result(DEADLINE_S) for future in futures] == list(range(20))


@only_zfarm
def test_iterators_and_context_managers_made_in_a_task_stay_there(make: Make) -> None:
    @contextlib.contextmanager
    def managed() -> Iterator[int]:
        yield 5

    def use() -> list[int]:
        with managed() as value:
            return list(itertools.repeat(value, 3))

    assert make(1).submit(use).result(DEADLINE_S) == [5, 5, 5]
