"""Executors under asyncio: run_in_executor, wrap_future, cancelling in both directions (7)."""

from __future__ import annotations

import asyncio
import concurrent.futures
from concurrent.futures import Executor
from typing import Any

import pytest

from tests.conformance import tasks
from tests.conformance.support import DEADLINE_S, Gate, Make, everyone, wait_until


@everyone
def test_run_in_executor(make: Make) -> None:
    """(7)"""

    async def main(executor: Executor) -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, tasks.square, n) for n in range(100)]
        return await asyncio.wait_for(asyncio.gather(*calls), DEADLINE_S)

    assert asyncio.run(main(make())) == [n * n for n in range(100)]


@everyone
def test_an_exception_is_raised_by_await(make: Make) -> None:
    """(7)"""

    async def main(executor: Executor) -> None:
        with pytest.raises(tasks.Attributed):
            await asyncio.get_running_loop().run_in_executor(executor, tasks.fail_attributed)

    asyncio.run(main(make()))


@everyone
def test_wrap_future(make: Make) -> None:
    """(7)"""

    async def main(executor: Executor) -> int:
        return await asyncio.wait_for(asyncio.wrap_future(executor.submit(tasks.square, 7)), DEADLINE_S)

    assert asyncio.run(main(make())) == 49


@everyone
def test_cancelling_the_asyncio_future_cancels_the_call(make: Make, gate: Gate) -> None:
    """(7)"""
    executor = make(1)
    executor.submit(tasks.hold, gate.path, "first")
    futures = [executor.submit(tasks.hold, gate.path, str(n)) for n in range(5)]
    gate.wait_for(1)

    async def main(future: concurrent.futures.Future[Any]) -> None:
        wrapped = asyncio.wrap_future(future)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(main(futures[4]))
    wait_until(futures[4].cancelled)
    gate.open()
    concurrent.futures.wait(futures, DEADLINE_S)

    assert "4" not in gate.came()


@everyone
def test_cancelling_the_call_cancels_the_asyncio_future(make: Make, gate: Gate) -> None:
    """(7)"""
    executor = make(1)
    executor.submit(tasks.hold, gate.path, "first")
    futures = [executor.submit(tasks.hold, gate.path, str(n)) for n in range(5)]
    gate.wait_for(1)

    async def main(future: concurrent.futures.Future[Any]) -> None:
        wrapped = asyncio.wrap_future(future)
        assert future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(wrapped, DEADLINE_S)

    asyncio.run(main(futures[4]))


@everyone
def test_cancelling_a_task_that_awaits_a_running_call_harms_nothing(make: Make, gate: Gate) -> None:
    """(7)"""
    executor = make(1)

    async def main() -> int:
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(executor, tasks.hold, gate.path)
        waiter = asyncio.ensure_future(asyncio.wait_for(running, DEADLINE_S))
        await asyncio.to_thread(gate.wait_for, 1)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        gate.open()
        return await asyncio.wait_for(loop.run_in_executor(executor, tasks.square, 3), DEADLINE_S)

    assert asyncio.run(main()) == 9
