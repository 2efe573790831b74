"""The streams of many calls as one: tagged, lazy, with errors, ended early, in asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import zfarm

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def farm() -> Iterator[zfarm.Executor]:
    """Two slots of this machine."""
    with zfarm.Executor(max_workers=2) as farm:
        yield farm


def squares(many: int) -> Iterator[int]:
    """Emit so many squares."""
    for n in range(many):
        yield n * n


def fail_at(many: int) -> Iterator[int]:
    """Emit two numbers; at 3, fail."""
    yield many
    yield -many
    if many == 3:
        raise ZeroDivisionError("three")


def touch(path: str) -> Iterator[str]:
    """Make a file, and tell its name."""
    Path(path).touch()
    yield Path(path).name


def emit_and_wait(gate: str) -> None:
    """Emit once, then wait for a file."""
    zfarm.emit("here")
    while not Path(gate).exists():
        time.sleep(0.005)


def test_every_item_of_every_call_comes_once_in_its_order(farm: zfarm.Executor) -> None:
    got: dict[int, list[zfarm.StreamItem[Any]]] = {}
    for item in farm.stream_map(squares, (n for n in range(0, 1000, 40))):
        got.setdefault(item.index, []).append(item)

    assert sorted(got) == list(range(1, 25))  # the first emits nothing
    for index, items in got.items():
        assert [(item.input, item.number, item.value) for item in items] == [
            (40 * index, n + 1, n * n) for n in range(40 * index)
        ]


def test_the_input_is_taken_as_the_items_are_read(farm: zfarm.Executor, tmp_path: Path) -> None:
    taken: list[int] = []

    def gates() -> Iterator[str]:
        for n in range(20):
            taken.append(n)
            yield str(tmp_path / str(n))

    merged = iter(farm.stream_map(emit_and_wait, gates(), buffersize=3))
    seen = {next(merged).index, next(merged).index}
    assert seen == {0, 1}
    assert taken == [0, 1, 2]
    for n in range(20):
        (tmp_path / str(n)).touch()
    assert {item.index for item in merged} == set(range(2, 20))
    assert len(taken) == 20


def test_two_calls_that_run_at_once_are_read_at_once(farm: zfarm.Executor, tmp_path: Path) -> None:
    gates = [str(tmp_path / name) for name in "ab"]
    merged = iter(farm.stream_map(emit_and_wait, gates))
    assert {next(merged).input, next(merged).input} == set(gates)
    for gate in gates:
        Path(gate).touch()
    assert list(merged) == []


def test_what_a_call_raises_ends_the_loop_after_its_items(farm: zfarm.Executor) -> None:
    merged = iter(farm.stream_map(fail_at, [3], buffersize=1))
    assert [next(merged).value, next(merged).value] == [3, -3]
    with pytest.raises(ZeroDivisionError, match="three"):
        next(merged)


def test_errors_are_items_when_asked_for(farm: zfarm.Executor) -> None:
    items = list(farm.stream_map(fail_at, range(6), return_exceptions=True))

    assert sorted(item.value for item in items if item.error is None) == sorted(
        [*range(6), *range(0, -6, -1)]
    )
    (failed,) = [item for item in items if item.error is not None]
    assert (failed.index, failed.input, failed.value) == (3, 3, None)
    assert isinstance(failed.error, ZeroDivisionError)


def test_an_input_that_cannot_be_sent_is_an_item_too(farm: zfarm.Executor) -> None:
    lock = threading.Lock()
    got = {item.index: item for item in farm.stream_map(squares, [1, lock, 1], return_exceptions=True)}

    assert [got[index].value for index in (0, 2)] == [0, 0]
    assert isinstance(got[1].error, zfarm.NotPortable)
    assert (got[1].input, got[1].value, got[1].number, got[1].attempt) == (lock, None, 0, 0)
    with pytest.raises(zfarm.NotPortable):
        list(farm.stream_map(squares, [1, lock, 1]))


def test_breaking_off_cancels_what_has_not_started(farm: zfarm.Executor, tmp_path: Path) -> None:
    gates = [str(tmp_path / str(n)) for n in range(10)]
    merged = farm.stream_map(emit_and_wait, gates, buffersize=10)
    for item in merged:
        assert item.value == "here"
        futures = [source.future for source in merged._sources]
        break
    assert not merged._sources  # they were let go of
    ended = list(islice(as_completed(futures, 30), 8))
    assert all(future.cancelled() for future in ended)
    for gate in gates[:2]:
        Path(gate).touch()

    assert farm.submit(pow, 2, 3).result(30) == 8  # the other eight would wait for ever for their gates


def test_breaking_off_cancels_what_waits_for_its_argument(farm: zfarm.Executor, tmp_path: Path) -> None:
    later: Future[str] = Future()
    merged = iter(farm.stream_map(touch, [str(tmp_path / "now"), later]))
    assert next(merged).value == "now"
    merged.close()  # type: ignore[attr-defined]  # it is a generator

    later.set_result(str(tmp_path / "later"))
    farm.shutdown()

    assert [path.name for path in tmp_path.iterdir()] == ["now"]


def test_a_loop_of_asyncio_reads_it_too(farm: zfarm.Executor) -> None:
    async def main() -> list[tuple[int, int]]:
        ticks = 0
        found = []
        async for item in farm.stream_map(squares, [300] * 5):
            found.append((item.index, item.value))
            if item.number % 100 == 0:
                await asyncio.sleep(0)
                ticks += 1
        assert ticks == 15
        return found

    assert sorted(asyncio.run(main())) == sorted((index, n * n) for index in range(5) for n in range(300))


def test_a_loop_of_asyncio_that_ends_while_it_waits_harms_nobody(
    farm: zfarm.Executor, tmp_path: Path
) -> None:
    merged = farm.stream_map(emit_and_wait, [str(tmp_path / "gate")])

    async def read() -> None:
        async with asyncio.timeout(0.5):
            async for _ in merged:
                pass

    with pytest.raises(TimeoutError):
        asyncio.run(read())
    (tmp_path / "gate").touch()

    assert farm.submit(pow, 2, 5).result(30) == 32


def test_terms_hold_for_its_calls(farm: zfarm.Executor, tmp_path: Path) -> None:
    merged = farm.options(timeout=0.2).stream_map(emit_and_wait, [str(tmp_path / "never")])
    with pytest.raises(zfarm.TaskTimeout):
        list(merged)


def test_what_cannot_be_is_said_at_once(farm: zfarm.Executor) -> None:
    with pytest.raises(ValueError, match="buffersize"):
        farm.stream_map(squares, [1], buffersize=0)


def test_it_works_inside_a_task(farm: zfarm.Executor) -> None:
    def nested() -> int:
        return sum(item.value for item in zfarm.current_farm().stream_map(squares, [10, 10]))

    assert [future.result(30) for future in [farm.submit(nested) for _ in range(4)]] == [570] * 4


def test_futures_come_as_they_end(farm: zfarm.Executor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    slow: zfarm.Future[Any] = farm.submit(emit_and_wait, str(gate))
    quick: zfarm.Future[Any] = farm.submit(pow, 2, 2)
    ended = farm.as_completed([slow, quick])
    assert next(ended) is quick
    gate.touch()
    assert list(ended) == [slow]
