"""Shared objects: a handle in the arguments becomes the object, once per child, and goes with its handle."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import zfarm
from tests.face.processes import wait_until
from zfarm.edge import segments, shared

DEADLINE_S = 30.0


@pytest.fixture
def farm() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=1) as executor:
        yield executor


class Counted:
    """An object that knows where it was unpickled."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __setstate__(self, state: dict[str, Any]) -> None:
        _made.append(1)
        self.__dict__.update(state, times=len(_made))


_made: list[int] = []


def look(thing: Any) -> tuple[int, float, bool]:
    return thing.times, float(thing.array.sum()), thing.array.flags.writeable


def look_inside(things: dict[str, list[Any]]) -> float:
    return float(things["a"][0].array.sum())


def kept() -> int:
    return len(shared._kept)


def die(thing: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def total(array: np.ndarray, seconds: float = 0.0) -> float:
    import time

    time.sleep(seconds)
    return float(array.sum())


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_task_sees_the_object_itself_unpickled_once(farm: zfarm.Executor, size: int) -> None:
    handle = farm.share(Counted(np.arange(float(size))))
    seen = [farm.submit(look, handle).result(DEADLINE_S) for _ in range(5)]

    assert {times for times, _, _ in seen} == {1}
    assert {value for _, value, _ in seen} == {np.arange(float(size)).sum()}
    assert farm.submit(look_inside, {"a": [handle]}).result(DEADLINE_S) == seen[0][1]
    assert list(farm.map(total, [farm.share(np.ones(size))] * 3)) == [size] * 3
    assert f"{handle.nbytes:,}" in repr(handle)


@pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here")
def test_what_was_shared_is_released_with_its_handle(farm: zfarm.Executor) -> None:
    handle = farm.share(np.arange(100_000.0))
    other = farm.share(np.arange(200_000.0))
    assert farm.submit(total, handle).result(DEADLINE_S) == np.arange(100_000.0).sum()
    assert farm._link.harbour is not None
    stowage = farm._link.harbour.stowage
    assert stowage.bytes == 2_400_000
    future = farm.submit(total, handle, 0.2)
    del handle
    gc.collect()

    assert future.result(DEADLINE_S) == np.arange(100_000.0).sum(), "a call that names it still finds it"

    def cooled() -> bool:
        stowage.cool()
        return stowage.bytes == 1_600_000

    wait_until(cooled, "the memory")
    wait_until(lambda: farm.submit(kept).result(DEADLINE_S) == 0, "the object")
    assert farm.submit(total, other).result(DEADLINE_S) == np.arange(200_000.0).sum()


def test_arrays_in_it_are_read_only_and_deaths_harm_nobody(farm: zfarm.Executor) -> None:
    handle = farm.share(Counted(np.ones(100_000)))
    error = farm.options(retries=0).submit(die, handle).exception(DEADLINE_S)

    assert isinstance(error, zfarm.TaskLost)
    times, value, writeable = farm.submit(look, handle).result(DEADLINE_S)
    assert (times, value) == (1, 100_000.0)
    assert not writeable or not segments.POSSIBLE


def test_another_farm_can_use_it_too_and_a_closed_one_shares_nothing(farm: zfarm.Executor) -> None:
    with zfarm.Executor(max_workers=1) as other:
        handle = other.share(np.ones(100_000))
        assert farm.submit(total, handle).result(DEADLINE_S) == 100_000.0
    with pytest.raises(zfarm.FarmClosed):
        other.share(1)
    with pytest.raises(zfarm.NotPortable, match="the object"):
        farm.share(threading.Lock())
