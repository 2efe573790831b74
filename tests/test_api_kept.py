"""Results that stay where they are: handles for later calls, brought home when asked."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import zfarm
from tests.face.processes import wait_until
from zfarm.edge import segments

DEADLINE_S = 30.0
SIZE = 100_000


@pytest.fixture
def farm() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=1) as executor:
        executor.submit(pow, 1, 1).result(DEADLINE_S)
        yield executor


def make(size: int, value: float = 1.0) -> Any:
    return np.full(size, value)


def total(*arrays: Any) -> float:
    return float(sum(array.sum() for array in arrays))


def spoil(array: Any) -> float:
    array[:] = 0
    return total(array)


def memory_files() -> list[str]:
    names = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return [
        path for path in (os.readlink(name) for name in names if os.path.lexists(name)) if "zfarm-" in path
    ]


@pytest.mark.parametrize("size", [10, SIZE])
def test_a_result_is_the_argument_of_later_calls_and_comes_when_asked(
    farm: zfarm.Executor, size: int
) -> None:
    keeping = farm.options(keep=True)
    one = keeping.submit(make, size).result(DEADLINE_S)
    two = keeping.submit(make, size, 2.0)

    assert isinstance(one, zfarm.Kept)
    assert one.nbytes > size * 8
    assert farm.submit(total, one, two).result(DEADLINE_S) == 3 * size
    assert farm.submit(spoil, one).result(DEADLINE_S) == 0
    back = one.get()
    back[0] = 7
    assert one.get().sum() == size
    assert farm.submit(total, one).result(DEADLINE_S) == size


@pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here")
def test_it_goes_with_its_handle_and_outlives_its_farm(farm: zfarm.Executor) -> None:
    before = len(memory_files())
    one, other = (
        farm.options(keep=True).submit(make, SIZE, value).result(DEADLINE_S) for value in (1.0, 2.0)
    )
    assert len(memory_files()) == before + 2
    future = farm.submit(total, other)
    del other
    gc.collect()
    assert future.result(DEADLINE_S) == 2 * SIZE
    wait_until(lambda: len(memory_files()) == before + 1, "the descriptor")
    os.kill(farm._link.road._house.pid, signal.SIGKILL)  # type: ignore[attr-defined]

    assert farm.submit(total, one).result(DEADLINE_S) == SIZE
    for value in range(5):
        farm.submit(make, SIZE, float(value)).result(DEADLINE_S)
    assert one.get().sum() == SIZE


@pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here")
def test_what_is_kept_beyond_the_limit_is_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFARM_SHARED_BYTES_MAX", "4000000")
    with zfarm.Executor(max_workers=1) as farm:
        assert farm.submit(abs, -1).result(DEADLINE_S) == 1
        before = len(memory_files())
        keeping = farm.options(keep=True)
        for _ in range(2):
            kept = [keeping.submit(make, SIZE, float(n)).result(DEADLINE_S) for n in range(10)]
            assert len(memory_files()) - before <= 4_000_000 // (8 * SIZE)
            assert [one.get().sum() / SIZE for one in kept] == list(range(10))
            assert [farm.submit(total, one).result(DEADLINE_S) / SIZE for one in kept] == list(range(10))
            kept.clear()

        def has_room() -> bool:
            one = keeping.submit(make, SIZE).result(DEADLINE_S)
            return len(memory_files()) > before and one.nbytes > SIZE

        wait_until(has_room, "the room of what is gone")


def test_errors_come_as_ever(farm: zfarm.Executor) -> None:
    error = farm.options(keep=True).submit(total, 1).exception(DEADLINE_S)

    assert isinstance(error, AttributeError)


def test_where_it_is_not_possible_that_is_said(farm: zfarm.Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(zfarm.ConfigurationError, match="submit"):
        farm.options(keep=True).map(total, [1])
    with pytest.raises(TypeError, match="keep"):
        farm.options(keep=1)  # type: ignore[arg-type]
    monkeypatch.setattr(farm._link, "harbour", None)  # as of a job
    with pytest.raises(zfarm.ConfigurationError, match="of a job"):
        farm.options(keep=True)


@pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here")
def test_a_handle_that_goes_while_its_farm_ends_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(memory_files())
    with zfarm.Executor(max_workers=1) as executor:
        handles = [executor.options(keep=True).submit(make, SIZE).result(DEADLINE_S)]
        end = executor._link._end

        def let_go_and_end() -> None:
            handles.clear()  # the loop has had its last turn, and nobody knows of the end yet
            end()

        monkeypatch.setattr(executor._link, "_end", let_go_and_end)
    assert len(memory_files()) == before
