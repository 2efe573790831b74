"""map on a farm: batches that nobody sees, items that are blamed alone, cancels that reach everything."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.test_api_farm import DEADLINE_S, touch_and_wait, wait_until


@pytest.fixture
def farm() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=2) as farm:
        yield farm


class Item:
    pass


def die_at(n: int, bad: tuple[int, ...]) -> int:
    if n in bad:
        os.kill(os.getpid(), 9)
    return n


def fail_at(n: int, bad: int) -> int:
    if n == bad:
        raise ValueError(n)
    return n


def note(path: str, n: int) -> int:
    with open(path, "a") as file:
        file.write(f"{n}\n")
    return n


def test_short_items_travel_by_the_thousand(farm: zfarm.Executor) -> None:
    link = farm._link
    assert list(farm.map(abs, range(300_000))) == list(range(300_000))

    assert link._machine._next_task < 300


def test_ranges_stay_ranges(farm: zfarm.Executor) -> None:
    assert list(farm.map(abs, range(10, -50_000, -7))) == [abs(n) for n in range(10, -50_000, -7)]
    assert list(farm.map(abs, range(0))) == []
    assert next(farm.map(abs, range(10**12), buffersize=100)) == 0


def test_no_iterable_at_all(farm: zfarm.Executor) -> None:
    assert list(farm.map(abs)) == []
    assert list(farm.map(abs, buffersize=3)) == []


def test_only_the_item_that_kills_is_blamed(farm: zfarm.Executor) -> None:
    list(farm.map(die_at, range(1000), [()] * 1000))  # so that batches are large
    results = farm.map(die_at, range(1000), [(777,)] * 1000)
    seen: list[int] = []
    with pytest.raises(zfarm.TaskLost) as caught:
        seen.extend(iter(results))

    assert seen == list(range(777))
    assert [death.signal for death in caught.value.deaths] == [9, 9, 9]
    assert caught.value.maybe_ran
    assert "die_at" in str(caught.value)


def test_the_results_before_a_death_come_first(farm: zfarm.Executor) -> None:
    results = farm.map(die_at, range(400), [(300,)] * 400)
    assert [next(results) for _ in range(300)] == list(range(300))
    with pytest.raises(zfarm.TaskLost):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_an_item_that_cannot_be_sent_comes_at_its_place(farm: zfarm.Executor) -> None:
    results = farm.map(type, [1, "a", threading.Lock(), 2])
    assert [next(results), next(results)] == [int, str]
    with pytest.raises(zfarm.NotPortable, match="item 2"):
        next(results)


@pytest.mark.parametrize("bad", [0, 1, 63, 5_000, 19_999])
def test_an_exception_in_the_middle_of_a_batch(farm: zfarm.Executor, bad: int) -> None:
    results = farm.map(fail_at, range(20_000), [bad] * 20_000)
    for n in range(bad):
        assert next(results) == n
    with pytest.raises(ValueError, match=str(bad)):
        next(results)


def test_items_are_freed_once_their_results_are_there(farm: zfarm.Executor) -> None:
    items = [Item() for _ in range(50)]
    references = [weakref.ref(item) for item in items]
    gc.disable()
    try:
        results = farm.map(type, items)
        del items
        assert next(results) is Item
        assert len(list(results)) == 49
        wait_until(lambda: not any(reference() for reference in references))
    finally:
        gc.enable()


def test_a_dropped_iterator_cancels_what_has_not_started(farm: zfarm.Executor, tmp_path: Path) -> None:
    paths = [str(tmp_path / str(n)) for n in range(50)]
    first, others = tmp_path / "first", tmp_path / "others"
    results = farm.map(touch_and_wait, paths, [str(first)] + [str(others)] * 49)
    first.touch()
    next(results)
    del results  # two items run now and wait
    others.touch()
    farm.shutdown()

    assert [os.path.exists(path) for path in paths[10:]] == [False] * 40


def test_shutdown_cancels_what_has_not_started(tmp_path: Path) -> None:
    farm = zfarm.Executor(max_workers=1)
    release = str(tmp_path / "release")
    paths = [str(tmp_path / str(n)) for n in range(30)]
    results = farm.map(touch_and_wait, paths, [release] * 30)
    wait_until(lambda: os.path.exists(paths[0]))
    farm.shutdown(wait=False, cancel_futures=True)
    Path(release).touch()
    assert next(results)
    with pytest.raises(CancelledError):
        list(results)
    farm.shutdown()

    assert [os.path.exists(path) for path in paths[10:]] == [False] * 20  # the child has some at hand


def test_each_item_runs_once_while_nobody_dies(farm: zfarm.Executor, tmp_path: Path) -> None:
    path = str(tmp_path / "notes")
    results = list(farm.map(note, [path] * 5000, range(5000)))
    lines = Path(path).read_text().split()

    assert results == list(range(5000))
    assert Counter(map(int, lines)) == Counter(range(5000))


def test_several_maps_at_once_from_several_threads(farm: zfarm.Executor) -> None:
    sums: list[int] = []
    threads = [
        threading.Thread(target=lambda: sums.append(sum(farm.map(abs, range(20_000))))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert sums == [sum(range(20_000))] * 6


def test_a_timeout_that_would_never_come_is_refused(farm: zfarm.Executor) -> None:
    with pytest.raises(ValueError, match="timeout must be a number of seconds, not nan"):
        farm.map(abs, [1], timeout=float("nan"))


def test_a_timeout_counts_from_the_call(farm: zfarm.Executor, tmp_path: Path) -> None:
    release = str(tmp_path / "release")
    results = farm.map(touch_and_wait, [str(tmp_path / "one")], [release], timeout=0.05)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        next(results)
    Path(release).touch()

    assert time.monotonic() - began < DEADLINE_S


def test_a_buffer_is_filled_again_as_results_are_read(farm: zfarm.Executor) -> None:
    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        while taken < 9_999:
            taken += 1
            yield taken

    results: Iterator[Any] = farm.map(abs, source(), buffersize=50)
    assert taken == 50
    for n in range(1, 1001):
        assert next(results) == n
        assert n <= taken <= n + 50
    assert list(results) == list(range(1001, 10_000))


def test_what_was_submitted_before_a_map_goes_before_it() -> None:
    for _ in range(5):  # the order was lost only while the farm was starting
        with zfarm.Executor(max_workers=1) as farm:
            first = farm.submit(time.monotonic)
            rest = farm.map(began, range(3))

            assert first.result(DEADLINE_S) < min(rest)


def began(_: int) -> float:
    """When this call began."""
    return time.monotonic()
