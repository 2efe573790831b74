"""Arguments that tasks give back, on an embedded farm: what the client sees, and what becomes of the memory;
with real processes, and their deaths."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zfarm
from tests.face.processes import wait_until
from tests.integration.test_shared import DEADLINE_S, memory_files, numbers, ready, same, stowage
from zfarm.edge import segments

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here"),
]


@pytest.fixture
def executor() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=1) as farm:
        assert stowage(ready(farm)).on
        yield farm


def back(farm: zfarm.Executor, function: Callable[..., Any], *args: Any) -> Any:
    return farm.submit(function, *args).result(DEADLINE_S)


def not_copied(farm: zfarm.Executor) -> int:
    """How many results there are in segments of the client."""
    stowage(farm)._sweep()
    inside: int = stowage(farm)._inside
    return inside


def tail(array: Any) -> Any:
    return array[1:]


def odd_bytes(array: Any) -> Any:
    return array.view(np.uint8)[7:-5]


def little(array: Any) -> Any:
    return array[: len(array) // 3]


def one_changed(array: Any) -> Any:
    array[12_345] = -1
    return array


def one_restored(array: Any) -> Any:
    before = array[12_345]
    array[12_345] = -1
    array[12_345] = before
    return array


@pytest.mark.parametrize("function", [same, tail, odd_bytes])
def test_results_that_are_not_copied_are_their_clients_own(
    executor: zfarm.Executor, function: Callable[[Any], Any]
) -> None:
    array, expected = numbers(1), function(numbers(1))
    first, second = (back(executor, function, array) for _ in range(2))
    assert not_copied(executor) == 2
    first[:] = 0
    array[:] = 1

    assert np.array_equal(second, expected)
    assert np.array_equal(back(executor, function, numbers(1)), expected)
    assert back(executor, float, numbers(1)[0]) == numbers(1)[0]
    assert np.array_equal(back(executor, np.copy, numbers(1)), numbers(1))


@pytest.mark.parametrize("function", [one_changed, one_restored, little, np.copy, np.negative])
def test_others_are_copied(executor: zfarm.Executor, function: Callable[[Any], Any]) -> None:
    array = numbers(1)
    for _ in range(3):
        result = back(executor, function, array)
        assert np.array_equal(result, function(numbers(1)))
        assert not_copied(executor) == 0

    assert np.array_equal(array, numbers(1))


def test_one_result_of_several_arguments(executor: zfarm.Executor) -> None:
    def mixed(first: Any, second: Any) -> Any:
        second[0] = 0
        return {"first": first, "tail": first[1:], "second": second, "new": first + 1, "text": "x" * 300_000}

    result = back(executor, mixed, numbers(1), numbers(2))
    assert not_copied(executor) == 2
    result["first"][:] = 0
    expected = mixed(numbers(1), numbers(2))

    assert np.array_equal(result.pop("tail"), expected["tail"]), "it is an array of its own"
    assert all(np.array_equal(result[key], expected[key]) for key in ("second", "new", "text"))


def test_what_is_read_only_stays_so(executor: zfarm.Executor) -> None:
    array = numbers(1)
    array.flags.writeable = False
    there = back(executor, same, array)
    expected = back(executor, np.copy, array)

    assert np.array_equal(there, expected)
    assert not there.flags.writeable


def test_memory_is_used_again_when_the_results_are_gone(executor: zfarm.Executor) -> None:
    array = numbers(0)
    for _ in range(40):
        array += 1
        result = back(executor, same, array)
        assert np.array_equal(result, array)

    # a result may be released too late for the next call to use its memory again
    assert stowage(executor).bytes <= 4 * array.nbytes
    assert len(memory_files()) <= 8
    del result

    def given_back() -> bool:
        stowage(executor).cool()
        return not stowage(executor).bytes

    wait_until(given_back, "the end of its memory")
    assert not_copied(executor) == 0


def test_results_that_are_held_stay_as_they_are(executor: zfarm.Executor) -> None:
    held = [back(executor, same, numbers(seed)) for seed in range(6)]
    for seed in range(20, 26):
        back(executor, same, numbers(seed))
    del held[::2]
    for seed in range(26, 32):
        back(executor, same, numbers(seed))

    for seed, array in zip(range(1, 6, 2), held, strict=True):
        assert np.array_equal(array, numbers(seed))


def test_futures_as_arguments_and_maps(executor: zfarm.Executor) -> None:
    first = executor.submit(same, numbers(1))
    second = executor.submit(same, first)
    third = executor.submit(one_changed, second)
    assert np.array_equal(third.result(DEADLINE_S), one_changed(numbers(1)))
    second.result(DEADLINE_S)[:] = 0
    assert np.array_equal(first.result(DEADLINE_S), numbers(1))
    for seed, result in enumerate(executor.map(same, map(numbers, range(12)))):
        assert np.array_equal(result, numbers(seed))


def test_a_shared_object_that_is_given_back(executor: zfarm.Executor) -> None:
    shared = executor.share(numbers(1))
    first, second = (back(executor, same, shared) for _ in range(2))
    del shared
    for seed in range(2, 6):
        back(executor, same, numbers(seed))

    assert np.array_equal(first, numbers(1))
    assert np.array_equal(second, numbers(1))


@pytest.mark.parametrize("function", [same, tail])
def test_a_result_that_is_kept(executor: zfarm.Executor, function: Callable[[Any], Any]) -> None:
    expected = function(numbers(1))
    kept = executor.options(keep=True).submit(function, numbers(1)).result(DEADLINE_S)
    for seed in range(2, 8):
        back(executor, same, numbers(seed))

    assert np.array_equal(kept.get(), expected)
    kept.get()[:] = 0
    assert np.array_equal(back(executor, one_changed, kept), one_changed(expected.copy()))
    assert np.array_equal(back(executor, same, kept), expected)
    os.kill(executor._link.road._house.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert np.array_equal(kept.get(), expected)


_left: list[Any] = []


def leave(array: Any) -> tuple[Any, int]:
    _left.append(array)
    return array, os.getpid()


def write_later(pid: int) -> int:
    """As a thread of the first task would."""
    assert os.getpid() == pid
    _left[0][:] = -1
    return len(_left)


def test_what_the_task_writes_later_is_not_seen(executor: zfarm.Executor) -> None:
    result, pid = back(executor, leave, numbers(1))
    assert not_copied(executor) == 1
    assert back(executor, write_later, pid) == 1

    assert np.array_equal(result, numbers(1))
    assert np.array_equal(back(executor, same, numbers(1)), numbers(1))


def test_a_child_that_is_killed_after_its_report(executor: zfarm.Executor) -> None:
    result, pid = back(executor, leave, numbers(1))
    os.kill(pid, signal.SIGKILL)
    for seed in range(2, 6):
        assert np.array_equal(back(executor, same, numbers(seed)), numbers(seed))

    assert np.array_equal(result, numbers(1))


def die_once(array: Any, flag: str) -> Any:
    if not os.path.exists(flag):
        Path(flag).touch()
        array[:] = 0
        os.kill(os.getpid(), signal.SIGKILL)
    return array


def test_a_second_attempt(executor: zfarm.Executor, tmp_path: Path) -> None:
    result = back(executor, die_once, numbers(1), str(tmp_path / "flag"))
    assert not_copied(executor) == 1
    for seed in range(2, 6):
        back(executor, same, numbers(seed))

    assert np.array_equal(result, numbers(1))


def wait_for(array: Any, gate: str) -> Any:
    while not os.path.exists(gate):
        time.sleep(0.01)
    return array


@pytest.mark.parametrize("how", ["dropped", "cancelled"])
def test_a_future_that_is_gone_before_its_result(executor: zfarm.Executor, tmp_path: Path, how: str) -> None:
    gate = tmp_path / "gate"
    future = executor.submit(wait_for, numbers(1), str(gate))
    wait_until(future.running, "the call")
    if how == "cancelled":
        assert future.cancel(force=True)
    del future
    others = [executor.submit(same, numbers(seed)) for seed in range(2, 5)]
    gate.touch()
    for seed, other in enumerate(others, 2):
        assert np.array_equal(other.result(DEADLINE_S), numbers(seed))
    del others, other

    def let_go() -> bool:
        stowage(executor).cool()
        return not (stowage(executor)._out or stowage(executor)._away or stowage(executor).bytes)

    wait_until(let_go, "the memory of its argument")


def test_a_farm_that_is_killed_under_a_result(executor: zfarm.Executor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    held = back(executor, same, numbers(1))
    future = executor.submit(wait_for, numbers(2), str(gate))
    wait_until(future.running, "the call")
    os.kill(executor._link.road._house.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    wait_until(lambda: not stowage(executor).on, "its death")
    wait_until(lambda: stowage(executor).on, "another one")
    gate.touch()

    assert np.array_equal(future.result(DEADLINE_S), numbers(2))
    assert np.array_equal(held, numbers(1))
    assert np.array_equal(back(executor, same, numbers(3)), numbers(3))


def test_a_process_that_the_program_forks_sees_what_it_saw(executor: zfarm.Executor, tmp_path: Path) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    result = back(executor, same, numbers(1))
    pid = os.fork()
    if pid == 0:
        wait_for(None, str(gate))
        out.write_text(repr(float(result.sum())))
        os._exit(0)
    del result
    for seed in range(2, 8):
        back(executor, same, numbers(seed))
    gate.touch()
    os.waitpid(pid, 0)

    assert float(out.read_text()) == numbers(1).sum()


def test_the_end_leaves_no_descriptor_and_results_stay() -> None:
    before = memory_files()
    with zfarm.Executor(max_workers=1) as farm:
        ready(farm)
        held = back(farm, same, numbers(1))
        futures = [farm.submit(same, numbers(seed)) for seed in range(2, 5)]

    assert memory_files() == before
    assert np.array_equal(held, numbers(1))
    assert np.array_equal(futures[2].result(), numbers(4))
