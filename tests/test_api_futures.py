"""Futures that are light until somebody waits: whatever comes first, nobody waits in vain."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures import CancelledError, InvalidStateError, as_completed, wait
from typing import Any

import pytest

from zfarm.futures import Future

DEADLINE_S = 20.0


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False


def done_later(future: Future[Any], value: Any = 5) -> threading.Thread:
    thread = threading.Thread(target=future.set_result, args=(value,))
    thread.start()
    return thread


def test_it_is_a_future_of_the_standard_library() -> None:
    future: Future[int] = Future()

    assert isinstance(future, concurrent.futures.Future)
    assert not future.done()
    assert "pending" in repr(future)
    assert "named" in repr(Future(None, "named"))


def test_nothing_heavy_is_made_before_somebody_waits() -> None:
    future: Future[int] = Future()
    future.set_result(1)
    assert future.result() == 1

    assert not future._armed


def test_a_value_an_exception_and_a_falsy_one() -> None:
    value, error, falsy = (Future[int]() for _ in range(3))
    value.set_result(7)
    error.set_exception(KeyError("k"))
    falsy.set_exception(Falsy())

    assert value.result() == 7
    assert value.exception() is None
    assert "returned int" in repr(value)
    with pytest.raises(KeyError):
        error.result()
    with pytest.raises(Falsy):
        falsy.result()
    assert "raised Falsy" in repr(falsy)


@pytest.mark.parametrize("armed", [False, True])
def test_what_is_done_is_done(armed: bool) -> None:
    future: Future[int] = Future()
    if armed:
        future.add_done_callback(lambda done: None)
    assert future.set_running_or_notify_cancel()
    assert future.running()
    assert not future.cancel()
    future.set_result(1)
    with pytest.raises(InvalidStateError):
        future.set_result(2)
    with pytest.raises(InvalidStateError):
        future.set_exception(ValueError())
    with pytest.raises(RuntimeError):
        future.set_running_or_notify_cancel()
    assert not future.cancel()

    assert future.result() == 1


@pytest.mark.parametrize("armed", [False, True])
def test_cancelling_tells_everybody(armed: bool) -> None:
    future: Future[int] = Future()
    called: list[Any] = []
    if armed:
        future.add_done_callback(called.append)
    assert future.cancel()
    assert future.cancel()
    assert future.cancelled()
    assert future.done()
    assert not future.set_running_or_notify_cancel()
    with pytest.raises(CancelledError):
        future.result()
    with pytest.raises(CancelledError):
        future.exception()
    with pytest.raises(InvalidStateError):
        future.set_result(1)

    assert called == [future] * armed
    assert wait([future], 0).done == {future}


def test_waiting_before_the_result_is_there() -> None:
    future: Future[int] = Future()
    thread = done_later(future)
    assert future.result(DEADLINE_S) == 5
    thread.join()


def test_waiting_for_a_result_that_does_not_come() -> None:
    future: Future[int] = Future()
    with pytest.raises(TimeoutError):
        future.result(0)
    with pytest.raises(TimeoutError):
        future.exception(0.001)
    future.set_result(1)

    assert future.result() == 1


def test_a_race_between_waiting_and_the_result() -> None:
    for n in range(500):
        future: Future[int] = Future()
        thread = done_later(future, n)
        assert future.result(DEADLINE_S) == n
        thread.join()


def test_a_race_between_a_callback_and_the_result() -> None:
    for n in range(300):
        future: Future[int] = Future()
        called = threading.Event()
        thread = done_later(future, n)
        future.add_done_callback(lambda done, called=called: called.set())  # type: ignore[misc]
        assert called.wait(DEADLINE_S)
        thread.join()


def test_wait_and_as_completed_over_all_kinds() -> None:
    futures = [Future[int]() for _ in range(6)]
    futures[0].set_result(0)
    futures[1].set_exception(ValueError())
    futures[2].cancel()
    assert wait(futures, 0).not_done == set(futures[3:])
    threads = [done_later(future) for future in futures[3:5]]
    seen: set[Any] = set()
    with pytest.raises(TimeoutError):
        seen.update(iter(as_completed(futures, 0.2)))
    futures[5].set_result(1)

    assert seen >= set(futures[:3])
    assert set(as_completed(futures, DEADLINE_S)) == set(futures)
    for thread in threads:
        thread.join()


def test_a_callback_that_exits_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    future: Future[int] = Future()
    called: list[Any] = []

    def leave(done: Any) -> None:
        raise SystemExit("gone")

    future.add_done_callback(leave)
    future.add_done_callback(called.append)
    future.set_result(1)

    assert called == [future]
    assert "exception calling callback" in caplog.text
