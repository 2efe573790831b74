"""What a task says while it runs, on an embedded farm: items, progress, and what cannot be said."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.conformance.support import DEADLINE_S
from tests.face.processes import wait_until
from zfarm.streams import wake


@pytest.fixture
def farm() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=2) as farm:
        yield farm


def learn(rounds: Any) -> str:
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


def emit_later(gate: str) -> Iterator[int]:
    """Emit a number, and another one when there is a file."""
    yield 1
    while not os.path.exists(gate):
        time.sleep(0.005)
    yield 2


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


def read_in_asyncio(rounds: int) -> int:
    """Read streams of calls of its own farm, in an event loop."""

    async def read() -> int:
        farm = zfarm.current_farm()
        stream: zfarm.Stream[int] = farm.submit(learn, rounds).stream()
        items = [item.value async for item in stream]
        items += [item.value async for item in farm.stream_map(learn, [rounds, rounds])]
        return sum(items)

    return asyncio.run(read())


def test_an_event_loop_in_a_task_gives_its_slot_away_while_it_waits() -> None:
    """Found by one whose loop waited for ever for a call that had no slot to run in."""
    with zfarm.Executor(max_workers=1) as farm:
        assert farm.submit(read_in_asyncio, 3).result(DEADLINE_S) == 15


def say_too_early() -> None:
    """Emit, tell and send where no task runs."""
    for say in (lambda: zfarm.emit(1), lambda: zfarm.progress(1), lambda: zfarm.send_file(__file__)):
        with pytest.raises(RuntimeError, match="an initializer is no task"):
            say()


def test_an_initializer_is_told_that_nobody_hears_it() -> None:
    """Found by one who emitted in an initializer: it went nowhere, and nothing was said of that."""
    with zfarm.Executor(max_workers=1, initializer=say_too_early) as farm:
        future = farm.submit(learn, 2)
        assert [item.value for item in future.stream()] == [0, 1]


def wait_for(began: str, gate: str) -> int:
    """Wait until a file is there."""
    Path(began).touch()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return 3


def test_the_stream_of_a_call_that_waits_for_its_argument_has_all_of_it(
    farm: zfarm.Executor, tmp_path: Path
) -> None:
    """Found by a reader who came while it waited, and was given an empty stream."""
    began, gate = str(tmp_path / "began"), tmp_path / "gate"
    later = farm.submit(learn, farm.submit(wait_for, began, str(gate)))
    heard: list[Any] = []
    stream = later.stream()
    later.on_item(heard.append)
    abandoned = later.stream()
    del abandoned
    wait_until(lambda: os.path.exists(began), "the first call runs", DEADLINE_S)
    gate.touch()

    assert [item.value for item in stream] == [0, 1, 4]
    farm.shutdown()
    assert [item.value for item in heard if isinstance(item, zfarm.Item)] == [0, 1, 4]


def test_the_stream_of_a_call_whose_argument_fails_raises_that(farm: zfarm.Executor, tmp_path: Path) -> None:
    began, gate = str(tmp_path / "began"), tmp_path / "gate"
    failing = farm.submit(lambda: wait_for(began, str(gate)) / 0)
    stream = farm.submit(learn, failing).stream()
    gate.touch()
    with pytest.raises(ZeroDivisionError):
        list(stream)


def test_a_farm_that_ends_tells_who_reads_what_was_never_submitted(tmp_path: Path) -> None:
    never: Future[int] = Future()
    with zfarm.Executor(max_workers=1) as farm:
        stream = farm.submit(learn, never).stream()
        farm.shutdown(wait=False, cancel_futures=True)
        with pytest.raises((zfarm.StreamGap, CancelledError)):
            list(stream)


def test_what_a_reader_leaves_is_for_the_next_one_also_when_all_was_here(farm: zfarm.Executor) -> None:
    """Found by a reader who left a short stream, which had come to its end already."""
    future = farm.submit(learn, 10)
    numbers = []
    stream = future.stream()
    wait_until(lambda: stream._buffer.over, "all is here", DEADLINE_S)
    for end in (2, 7, 11):
        for item in stream:
            numbers.append(item.number)
            if item.number == end:
                break
        del stream
        stream = future.stream()
    assert numbers == list(range(1, 11))

    with pytest.raises(zfarm.StreamGap, match="items 1 to 10"):  # all of which was read
        list(stream)


def test_a_loop_of_asyncio_that_was_left_holds_nothing_back(farm: zfarm.Executor) -> None:
    async def read() -> list[int]:
        future, numbers = farm.submit(learn, 10), []
        for end in (2, 7, 11):
            async for item in future.stream():
                numbers.append(item.number)
                if item.number == end:
                    break
        return numbers

    assert asyncio.run(read()) == list(range(1, 11))


def test_a_loop_of_asyncio_that_ends_while_it_waits_harms_nobody(
    farm: zfarm.Executor, tmp_path: Path
) -> None:
    """Found by a reader with a timeout: the next item met a closed event loop, and ended the farm."""
    gate = tmp_path / "gate"
    future = farm.submit(emit_later, str(gate))
    stream = future.stream()
    got: list[int] = []

    async def read() -> None:
        async for item in stream:
            got.append(item.value)

    async def read_for_a_while() -> None:
        await asyncio.wait_for(read(), 0.2)

    for _ in range(2):
        with pytest.raises(TimeoutError):
            asyncio.run(read_for_a_while())
    loop = asyncio.new_event_loop()
    reading = loop.create_task(read())
    loop.run_until_complete(asyncio.wait({reading}, timeout=0.2))
    loop.close()  # with somebody in it who still waits
    gate.touch()

    assert future.result(DEADLINE_S) is None
    assert got + [item.value for item in stream] == [1, 2]
    reading._log_destroy_pending = False  # type: ignore[attr-defined]


def test_streams_that_were_read_are_forgotten(farm: zfarm.Executor) -> None:
    futures = [farm.submit(learn, 3) for _ in range(20)]
    assert [len(list(future.stream())) for future in futures] == [3] * 20
    assert sum(item.number for item in farm.stream_map(learn, [3] * 20)) == 20 * 6
    list(farm.submit(learn, 3).stream())
    assert len(farm._link.streams._channels) <= 2  # the last ones, until another one is read


def test_a_stream_that_was_read_keeps_no_result(farm: zfarm.Executor) -> None:
    """Found by one who had opened all streams before it read them: all results stayed in memory."""
    futures = [farm.submit(learn, 3) for _ in range(5)]
    streams = [future.stream() for future in futures]
    assert [len(list(stream)) for stream in streams] == [3] * 5
    assert [future.result(DEADLINE_S) for future in futures] == ["learnt"] * 5
    known = [weakref.ref(future) for future in futures]
    del futures, streams

    wait_until(lambda: not any(one() for one in known), "the futures to be gone")


def emit_large(many: int) -> int:
    """Emit so many items of which a reader who is behind takes few."""
    for _ in range(many):
        zfarm.emit(bytes(100_000))
    return many


def test_who_lets_go_of_its_stream_holds_up_no_other_reader(farm: zfarm.Executor) -> None:
    future = farm.submit(emit_large, 100)
    stream, other = future.stream(), future.stream()
    buffers = [stream._buffer, other._buffer]
    wait_until(lambda: all(buffer.pieces for buffer in buffers), "the first items", DEADLINE_S)
    numbers: list[int] = []
    reading = threading.Thread(target=lambda: numbers.extend(item.number for item in stream), daemon=True)
    reading.start()
    held = farm._link._machine._inflow._streams[future._task]
    wait_until(
        lambda: stream._buffer.taken[1] == held.next - 1 > held.taken == 0, "all it may have", DEADLINE_S
    )
    del other
    assert future.result(DEADLINE_S) == 100
    reading.join(DEADLINE_S)
    assert numbers == list(range(1, 101))


def test_what_a_reader_leaves_is_kept_from_when_it_left(
    farm: zfarm.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[Any] = []
    future = farm.submit(learn, 10)
    wait_until(future.done, "the end", DEADLINE_S)
    monkeypatch.setattr(farm._link.loop, "call_later", lambda fn, after_s: later.append(fn))
    for count in (1, 2):
        stream = future.stream()
        assert next(iter(stream)).number == count
        del stream
        wait_until(lambda: len(later) == count, "the reader to be gone", DEADLINE_S)  # noqa: B023
    later[0]()  # the first one is gone for long
    assert [item.number for item in future.stream()] == list(range(3, 11))


async def answer(_: int = 0) -> int:
    return 42


async def answers(_: int = 0) -> Any:
    yield 42


def test_what_is_no_stream_is_told_with_the_remedy(farm: zfarm.Executor) -> None:
    with pytest.raises(zfarm.NotPortable, match="stream_map"):
        list(farm.map(letters, ["abc"]))
    for function in (answer, answers):
        with pytest.raises(zfarm.NotPortable, match=r"asyncio\.run"):
            farm.submit(function).result(DEADLINE_S)


class Collecting(asyncio.Future[None]):
    """A reader that waits; as it is woken, the one before it is collected."""

    def __init__(self, awaiting: list[asyncio.Future[None]], before: asyncio.Future[None]) -> None:
        super().__init__()
        self._awaiting = awaiting
        self._before = before

    def get_loop(self) -> asyncio.AbstractEventLoop:
        if self._before in self._awaiting:  # as ``woken`` does
            self._awaiting.remove(self._before)
        return super().get_loop()


def test_readers_are_woken_while_others_go() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        awaiting: list[asyncio.Future[None]] = []
        first, last = loop.create_future(), loop.create_future()
        awaiting += [first, Collecting(awaiting, first), last]
        wake(awaiting)
        await asyncio.wait_for(last, DEADLINE_S)
        assert not awaiting

    asyncio.run(main())
