"""What a call holds is freed soon after it ran, without a garbage collection (3)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, Make, everyone, separate, wait_until


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def freed(reference: weakref.ref[tasks.Thing]) -> None:
    wait_until(lambda: reference() is None, "freed")


@everyone
def test_a_bound_method_and_its_object_are_freed_at_the_client(make: Make) -> None:
    """(3)"""
    executor = make()
    thing = tasks.Thing()
    reference = weakref.ref(thing)
    future = executor.submit(thing.method)
    del thing
    future.result(DEADLINE_S)

    freed(reference)


@everyone
def test_arguments_are_freed_at_the_client_while_the_future_lives(make: Make) -> None:
    """(3)"""
    executor = make()
    thing, keyword = tasks.Thing(), tasks.Thing()
    references = weakref.ref(thing), weakref.ref(keyword)
    future = executor.submit(tasks.get_attribute, thing, name="value")
    other = executor.submit(tasks.call, tasks.nothing, *())
    del thing
    future.result(DEADLINE_S)
    other.result(DEADLINE_S)
    del keyword

    freed(references[0])
    freed(references[1])


@everyone
def test_a_result_is_freed_with_its_future(make: Make) -> None:
    """(3)"""
    executor = make()
    future = executor.submit(tasks.Thing)
    reference = weakref.ref(future.result(DEADLINE_S))
    del future

    freed(reference)


@separate
def test_an_exception_is_freed_with_its_future(make: Make) -> None:
    """(3)"""
    executor = make()
    future = executor.submit(tasks.fail_attributed)
    reference = weakref.ref(future.exception(DEADLINE_S))
    del future

    wait_until(lambda: reference() is None, "freed")


@everyone
def test_a_raised_exception_makes_no_cycle_with_its_future(make: Make) -> None:
    """(3)"""
    executor = make()
    future = executor.submit(tasks.fail_attributed)
    reference = weakref.ref(future)
    with pytest.raises(tasks.Attributed):
        future.result(DEADLINE_S)
    del future

    wait_until(lambda: reference() is None, "freed")


@everyone
def test_results_of_map_are_dropped_as_they_are_yielded(make: Make) -> None:
    """(2, 3)"""
    executor = make()
    for thing in executor.map(tasks.Thing, range(10)):
        reference = weakref.ref(thing)
        del thing
        freed(reference)


@separate
def test_arguments_and_results_are_freed_in_the_child(make: Make) -> None:
    """(3)"""
    executor = make(1)
    for _ in range(5):
        executor.submit(tasks.remember, tasks.Thing()).result(DEADLINE_S)
        executor.submit(tasks.make_thing).result(DEADLINE_S)

    assert executor.submit(tasks.still_alive).result(DEADLINE_S) == 0


@separate
def test_items_of_a_map_are_freed_in_the_child(make: Make) -> None:
    """(3)"""
    executor = make(1)
    assert len(list(executor.map(tasks.make_thing, range(20)))) == 20
    list(executor.map(tasks.remember, [tasks.Thing() for _ in range(20)]))

    assert executor.submit(tasks.still_alive).result(DEADLINE_S) == 0


@everyone
def test_callbacks_are_given_the_future_and_keep_nothing(make: Make) -> None:
    """(3)"""
    executor = make()
    thing = tasks.Thing()
    reference = weakref.ref(thing)
    future = executor.submit(tasks.same, thing)
    future.add_done_callback(lambda done: done.result())
    del thing
    future.result(DEADLINE_S)
    del future

    freed(reference)
