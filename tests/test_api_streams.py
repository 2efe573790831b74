"""What a task says while it runs, on an embedded farm: items, progress, and what cannot be said."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import zfarm
from tests.conformance.support import DEADLINE_S


@pytest.fixture
def farm() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=2) as farm:
        yield farm


def learn(rounds: int) -> str:
    """Emit squares, and tell how far it is."""
    for number in range(rounds):
        zfarm.progress(number + 1, rounds, f"round {number}")
        zfarm.emit(number**2)
    return "learnt"


def letters(text: str) -> Any:
    """A generator with a return value."""
    yield from text
    return len(text)


def emit_and_fail() -> None:
    """Emit, and raise."""
    zfarm.emit("before")
    raise LookupError("after")


def emit_what_cannot_travel() -> str:
    """Emit a lock, which nobody can pickle."""
    try:
        zfarm.emit(threading.Lock())
    except TypeError as error:
        return str(error)
    return "nothing"


def emit_and_change() -> None:
    """Emit a list, and change it afterwards."""
    values = [1]
    zfarm.emit(values)
    values.append(2)


def test_items_come_in_order_with_their_numbers(farm: zfarm.Executor) -> None:
    future = farm.submit(learn, 5)
    items = list(future.stream())
    assert [(item.value, item.number, item.attempt) for item in items] == [
        (n * n, n + 1, 1) for n in range(5)
    ]
    assert future.result(DEADLINE_S) == "learnt"


def test_the_last_progress_is_known_when_the_task_has_ended(farm: zfarm.Executor) -> None:
    """Found by a short task, whose progress was thrown away with its lease."""
    future = farm.submit(learn, 7)
    future.result(DEADLINE_S)
    progress = future.progress
    assert progress is not None
    assert (progress.done, progress.total, progress.note) == (7, 7, "round 6")


def test_a_generator_streams_what_it_yields_and_returns_what_it_returns(farm: zfarm.Executor) -> None:
    future = farm.submit(letters, "abc")
    assert [item.value for item in future.stream()] == ["a", "b", "c"]
    assert future.result(DEADLINE_S) == 3


def test_async_for(farm: zfarm.Executor) -> None:
    async def read() -> list[int]:
        return [item.value async for item in farm.submit(learn, 4).stream()]

    assert asyncio.run(read()) == [0, 1, 4, 9]


def test_a_callback_gets_every_item(farm: zfarm.Executor) -> None:
    got: list[Any] = []
    all_there = threading.Event()

    def take(item: zfarm.Item[Any] | BaseException) -> None:
        assert isinstance(item, zfarm.Item)
        got.append(item.value)
        if len(got) == 5:
            all_there.set()

    future = farm.submit(learn, 5)
    future.on_item(take)
    assert all_there.wait(DEADLINE_S)
    assert got == [n * n for n in range(5)]
    assert future.result(DEADLINE_S) == "learnt"


def test_the_exception_of_the_task_ends_its_stream(farm: zfarm.Executor) -> None:
    stream = iter(farm.submit(emit_and_fail).stream())
    assert next(stream).value == "before"
    with pytest.raises(LookupError, match="after"):
        next(stream)


def test_a_task_that_says_nothing_has_an_empty_stream(farm: zfarm.Executor) -> None:
    future = farm.submit(pow, 2, 3)
    assert list(future.stream()) == []
    assert (future.result(DEADLINE_S), future.progress) == (8, None)


def test_items_are_pickled_at_once(farm: zfarm.Executor) -> None:
    assert [item.value for item in farm.submit(emit_and_change).stream()] == [[1]]


def test_what_cannot_be_pickled_is_refused_in_the_task(farm: zfarm.Executor) -> None:
    assert "lock" in farm.submit(emit_what_cannot_travel).result(DEADLINE_S)


@pytest.mark.parametrize("say", [lambda: zfarm.emit(1), lambda: zfarm.progress(1)], ids=["emit", "progress"])
def test_outside_of_a_task_there_is_nobody_to_speak_for(say: Any) -> None:
    with pytest.raises(RuntimeError, match="runs no task"):
        say()
