"""What libraries take for granted of an executor (20)."""

from __future__ import annotations

import concurrent.futures
import functools
import inspect
import threading
from collections import deque
from typing import Any

import numpy as np

from tests.conformance import support, tasks
from tests.conformance.support import DEADLINE_S, Make, Scripts, everyone, only_zfarm


@everyone
def test_it_is_an_executor_with_a_number_of_workers(make: Make) -> None:
    """(20)"""
    executor: Any = make(2)
    number = executor._max_workers

    assert (type(number), number) == (int, 2)
    assert isinstance(executor, concurrent.futures.Executor)


@everyone
def test_its_methods_take_what_the_base_class_takes(make: Make) -> None:
    """(20)"""
    executor: Any = make(1)
    for name in ("submit", "map", "shutdown"):
        ours = inspect.signature(getattr(executor, name)).parameters
        for parameter in inspect.signature(getattr(concurrent.futures.Executor, name)).parameters.values():
            if parameter.name == "self" or parameter.kind is parameter.VAR_POSITIONAL:
                continue
            assert parameter.name in ours
            assert ours[parameter.name].kind == parameter.kind or parameter.kind is parameter.VAR_KEYWORD


class Model:
    """An object whose bound method is mapped over things, as emcee, deap and SciPy do."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def scale(self, x: Any) -> Any:
        return self.factor * x

    def __call__(self, x: Any) -> Any:
        return self.factor + x


@everyone
def test_map_takes_bound_methods_partials_and_callable_objects(make: Make) -> None:
    """(20)"""
    executor = make()
    model = Model(3)

    assert list(executor.map(model.scale, range(4))) == [0, 3, 6, 9]
    assert list(executor.map(model, range(4))) == [3, 4, 5, 6]
    assert list(executor.map(functools.partial(pow, 2), range(4))) == [1, 2, 4, 8]
    assert list(executor.map(functools.partial(tasks.add, 1), range(3), deque([1, 2, 3]))) == [2, 4, 6]


@everyone
def test_map_goes_over_rows_of_an_array(make: Make) -> None:
    """(20)"""
    rows = np.arange(12.0).reshape(4, 3)

    assert list(make().map(np.sum, rows)) == rows.sum(axis=1).tolist()


@only_zfarm
def test_map_takes_closures(make: Make) -> None:
    """(20)"""
    offset = 10
    history: list[int] = []

    def objective(x: int) -> int:
        history.append(x)
        return x + offset + len(history)

    values = list(make(1).map(lambda x: objective(x) - len(history), range(5)))
    assert values == [10, 11, 12, 13, 14]
    assert history == []  # what a task changes is its child's


@everyone
def test_ten_threads_share_one_executor(make: Make) -> None:
    """(20)"""
    executor = make(2)
    results: dict[int, Any] = {}

    def use(number: int) -> None:
        futures = [executor.submit(tasks.add, number, n) for n in range(100)]
        mapped = list(executor.map(tasks.square, range(number, number + 50)))
        results[number] = [future.result(DEADLINE_S) for future in futures], mapped

    threads = [threading.Thread(target=use, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * DEADLINE_S)

    assert results == {
        number: ([number + n for n in range(100)], [n * n for n in range(number, number + 50)])
        for number in range(10)
    }


@everyone
def test_several_executors_live_at_once(make: Make) -> None:
    """(20)"""
    executors = [make(1) for _ in range(3)]
    futures = [executor.submit(tasks.square, n) for n in range(30) for executor in executors]

    assert [future.result(DEADLINE_S) for future in futures] == [n * n for n in range(30) for _ in executors]


@only_zfarm
def test_several_threads_make_and_use_executors(kind: str) -> None:
    """(20) A forking process pool may deadlock here."""
    results: list[int] = []

    def use(number: int) -> None:
        for _ in range(2):
            with support.make_executor(kind, 1, {}) as executor:
                results.append(executor.submit(tasks.square, number).result(DEADLINE_S))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * DEADLINE_S)

    assert sorted(results) == [0, 0, 1, 1, 4, 4, 9, 9]


@only_zfarm
def test_nothing_is_forked_in_the_clients_process(scripts: Scripts) -> None:
    """(20) os.fork in a process that has threads is undefined, and Python 3.12 warns of it."""
    out = scripts.prints("""
        import sys, threading
        forks = []
        sys.addaudithook(lambda name, args: forks.append(name) if name in ("os.fork", "os.forkpty") else None)
        gate = threading.Event()
        thread = threading.Thread(target=gate.wait)
        thread.start()
        with Executor(max_workers=2) as executor:
            print(list(executor.map(pow, range(4), range(4))))
        gate.set()
        thread.join()
        print(forks)
    """)

    assert out == "[1, 1, 4, 27]\n[]\n"


@only_zfarm
def test_executors_and_futures_say_what_they_are(make: Make) -> None:
    """(20)"""
    executor = make(1)
    future = executor.submit(tasks.square, 2)
    future.result(DEADLINE_S)

    assert "finished" in repr(future)
    assert "Executor" in repr(executor)
