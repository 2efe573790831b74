"""Futures as arguments: a call that waits for its arguments, however they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import Future as StandardFuture
from typing import Any

import pytest

import zfarm

DEADLINE_S = 30.0


@pytest.fixture
def farm() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=2) as executor:
        yield executor


def add(*numbers: Any, more: Any = 0) -> Any:
    return sum(numbers) + more


def fail() -> None:
    raise KeyError("a reason")


def nested() -> int:
    farm = zfarm.current_farm()
    return farm.submit(add, farm.submit(add, 1, 2), more=farm.submit(add, 3)).result()


def test_results_stand_where_futures_stood(farm: zfarm.Executor) -> None:
    first = farm.submit(add, 1, 2)
    second = farm.submit(add, first, 10, more=farm.submit(add, first, first))

    assert second.result(DEADLINE_S) == 19
    assert farm.submit(nested).result(DEADLINE_S) == 6
    assert farm.options(priority=1, name="sum").submit(add, first).result(DEADLINE_S) == 3


def test_a_chain_of_calls_is_submitted_at_once(farm: zfarm.Executor) -> None:
    future: Any = 0
    for _ in range(300):
        future = farm.submit(add, future, 1)

    assert future.result(DEADLINE_S) == 300


def test_futures_of_other_executors(farm: zfarm.Executor) -> None:
    with ThreadPoolExecutor(1) as pool, zfarm.Executor(max_workers=1) as other:
        gate = threading.Event()
        slow = pool.submit(lambda: gate.wait(DEADLINE_S) and 1)
        future = farm.submit(add, slow, other.submit(add, 5))
        assert not future.done()
        gate.set()

        assert future.result(DEADLINE_S) == 6


def test_an_argument_that_raises_is_what_the_call_raises(farm: zfarm.Executor) -> None:
    failed = farm.submit(fail)
    future = farm.submit(add, farm.submit(add, 1), failed)

    with pytest.raises(KeyError) as caught:
        future.result(DEADLINE_S)
    assert caught.value is failed.exception()


def test_an_argument_that_is_cancelled_cancels_the_call(farm: zfarm.Executor) -> None:
    never: StandardFuture[int] = StandardFuture()
    future = farm.submit(add, never)
    follower = farm.submit(add, future)
    never.cancel()

    assert future.cancelled()
    with pytest.raises(CancelledError):
        follower.result(DEADLINE_S)


def test_a_call_that_waits_says_so_and_can_be_cancelled() -> None:
    never: StandardFuture[int] = StandardFuture()
    with zfarm.Executor(max_workers=1) as farm:
        future = farm.submit(add, 1, never)
        assert future.why().code == "argument"
        assert "argument 2" in future.why()
        threads = threading.active_count()
        others = [farm.submit(add, never) for _ in range(50)]
        assert threading.active_count() == threads
        assert future.cancel()
        assert future.cancelled()
        for other in others:
            other.cancel()
    never.set_result(1)  # nobody waits for it any more


def test_shutdown_waits_for_calls_that_wait() -> None:
    gate: StandardFuture[int] = StandardFuture()
    farm = zfarm.Executor(max_workers=1)
    future = farm.submit(add, gate, 1)
    farm.shutdown(wait=False)
    closing = threading.Thread(target=farm.shutdown)
    closing.start()
    assert not future.done()
    gate.set_result(2)
    closing.join(DEADLINE_S)

    assert future.result(0) == 3
    assert not closing.is_alive()


def test_shutdown_may_cancel_calls_that_wait() -> None:
    gate: StandardFuture[int] = StandardFuture()
    farm = zfarm.Executor(max_workers=1)
    future = farm.submit(add, gate, 1)
    farm.shutdown(cancel_futures=True)

    assert future.cancelled()


def test_a_result_that_cannot_be_sent_fails_the_call_with_its_culprit(farm: zfarm.Executor) -> None:
    with ThreadPoolExecutor(1) as pool:
        error = farm.submit(add, pool.submit(threading.Lock)).exception(DEADLINE_S)

    assert isinstance(error, zfarm.NotPortable)
    assert "argument 1" in str(error)


def test_futures_inside_of_other_things_are_refused(farm: zfarm.Executor) -> None:
    with pytest.raises(zfarm.NotPortable, match="argument 1"):
        farm.submit(add, [farm.submit(time.sleep, 0)])
