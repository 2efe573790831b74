"""Arrays through shared memory on an embedded farm: with real processes, and their deaths."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zfarm
from tests.face.processes import wait_until
from zfarm.edge import segments
from zfarm.edge.moorings import KEPT_MAX

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here"),
]

SIZE = 200_000  # numbers of 8 bytes
DEADLINE_S = 30.0


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(SIZE)


def ready(farm: zfarm.Executor) -> zfarm.Executor:
    """The farm, once it has said that it can open our memory."""
    farm.submit(pow, 1, 1).result(DEADLINE_S)
    return farm


def stowage(farm: zfarm.Executor) -> Any:
    assert farm._link.harbour is not None
    return farm._link.harbour.stowage


@pytest.fixture
def executor() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=1) as farm:
        assert stowage(ready(farm)).on
        yield farm


def same(value: Any) -> Any:
    return value


def total(value: np.ndarray) -> float:
    return float(value.sum())


_kept: list[Any] = []


def keep(value: np.ndarray) -> int:
    _kept.append(value)
    return os.getpid()


def kept_total(number: int) -> float:
    return float(_kept[number].sum())


def make(seed: int) -> np.ndarray:
    return numbers(seed)


def memory_files(pid: int | str = "self") -> list[str]:
    """The segments that a process has open."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except OSError:
            continue
    return [path for path in found if "/memfd:zfarm-" in path]


def test_arrays_go_there_and_back_and_are_private_and_writable(executor: zfarm.Executor) -> None:
    array = numbers(1)
    back = executor.submit(same, array).result(DEADLINE_S)

    assert np.array_equal(back, array)
    back[0] = -1
    assert array[0] != -1
    assert np.array_equal(executor.submit(same, array).result(DEADLINE_S), array)


def test_results_stay_as_they_are_while_others_come(executor: zfarm.Executor) -> None:
    held = [executor.submit(make, seed).result(DEADLINE_S) for seed in range(8)]
    views = [array[100:200] for array in held]
    for seed in range(20, 30):
        executor.submit(make, seed).result(DEADLINE_S)
    del held[::2]
    for seed in range(30, 40):
        executor.submit(same, numbers(seed)).result(DEADLINE_S)

    for seed, view in enumerate(views):
        assert np.array_equal(view, numbers(seed)[100:200])
    for seed, array in zip(range(1, 8, 2), held, strict=True):
        assert np.array_equal(array, numbers(seed))


def test_an_array_that_a_child_keeps_never_changes(executor: zfarm.Executor) -> None:
    executor.submit(keep, numbers(1)).result(DEADLINE_S)
    futures = [executor.submit(total, numbers(seed)) for seed in range(2, 12)]
    for seed, future in enumerate(futures, 2):
        assert future.result(DEADLINE_S) == numbers(seed).sum()
    for seed in range(12, 20):
        assert executor.submit(total, numbers(seed)).result(DEADLINE_S) == numbers(seed).sum()

    assert executor.submit(kept_total, 0).result(DEADLINE_S) == numbers(1).sum()


def look_later(value: np.ndarray, gate: str) -> None:
    """In a process of its own, which goes on when the call has ended."""
    if os.fork() == 0:
        wait_for(gate, value)
        with open(gate + ".out", "w") as out:
            out.write(repr(float(value.sum())))
        os._exit(0)


def test_an_array_that_a_forked_process_sees_never_changes(executor: zfarm.Executor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    executor.submit(look_later, numbers(1), str(gate)).result(DEADLINE_S)
    for seed in range(2, 8):
        executor.submit(total, numbers(seed)).result(DEADLINE_S)
    gate.touch()
    out = tmp_path / "gate.out"
    wait_until(lambda: out.exists() and bool(out.read_text()), "what the other process saw")

    assert float(out.read_text()) == numbers(1).sum()


def test_memory_is_used_again(executor: zfarm.Executor) -> None:
    for seed in range(10):
        executor.submit(total, numbers(seed)).result(DEADLINE_S)

    assert stowage(executor).bytes == SIZE * 8
    array = numbers(20)
    futures = [executor.submit(total, array) for _ in range(20)]
    assert {future.result(DEADLINE_S) for future in futures} == {array.sum()}
    assert stowage(executor).bytes == SIZE * 8


def test_what_the_farm_holds_is_shown(executor: zfarm.Executor) -> None:
    executor.submit(make, 1).result(DEADLINE_S)

    def shown() -> int:
        picture = executor._link.questions.look(executor._link.call)
        assert picture is not None
        return picture.workers[0].vitals.shared_bytes

    assert wait_until(shown, "the worker's shared memory") == SIZE * 8


def test_maps_of_arrays(executor: zfarm.Executor) -> None:
    arrays = [numbers(seed) for seed in range(6)]

    for array, back in zip(arrays, executor.map(same, arrays), strict=True):
        assert np.array_equal(array, back)


def explode(value: np.ndarray) -> float:
    return len(value) / 0


def test_large_text_and_bytes_and_errors(executor: zfarm.Executor) -> None:
    for value in (b"\x00x" * 400_000, "é" * 500_000, list(range(200_000))):
        assert executor.submit(same, value).result(DEADLINE_S) == value
    assert isinstance(executor.submit(explode, numbers(1)).exception(DEADLINE_S), ZeroDivisionError)
    for seed in range(2, 4):
        assert executor.submit(total, numbers(seed)).result(DEADLINE_S) == numbers(seed).sum()
    assert not [one for one in stowage(executor)._known.values() if one.tainted]


def nested(seed: int) -> float:
    farm = zfarm.current_farm()
    arrays = [farm.submit(make, seed + n).result() for n in range(3)]
    return float(sum(array.sum() for array in arrays))


def test_nested_calls_get_large_results(executor: zfarm.Executor) -> None:
    for _ in range(3):
        assert executor.submit(nested, 5).result(DEADLINE_S) == sum(numbers(5 + n).sum() for n in range(3))


def die_once(value: np.ndarray, flag: str) -> float:
    if not os.path.exists(flag):
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(value.sum())


def test_a_child_that_is_killed_with_a_mapped_array(executor: zfarm.Executor, tmp_path: Path) -> None:
    array = numbers(1)

    assert executor.submit(die_once, array, str(tmp_path / "flag")).result(DEADLINE_S) == array.sum()
    for seed in range(2, 6):
        assert executor.submit(total, numbers(seed)).result(DEADLINE_S) == numbers(seed).sum()


def wait_for(path: str, value: np.ndarray) -> float:
    while not os.path.exists(path):
        time.sleep(0.01)
    return float(value.sum())


def test_a_farm_that_is_killed_runs_again_what_it_had(executor: zfarm.Executor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    held = executor.submit(make, 1).result(DEADLINE_S)
    future = executor.submit(wait_for, str(gate), numbers(2))
    wait_until(future.running, "the call")
    os.kill(executor._link.road._house.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    wait_until(lambda: not stowage(executor).on, "its death")
    wait_until(lambda: stowage(executor).on, "another one")
    gate.touch()

    assert future.result(DEADLINE_S) == numbers(2).sum()
    assert np.array_equal(held, numbers(1))
    assert np.array_equal(executor.submit(make, 3).result(DEADLINE_S), numbers(3))


CLIENT = """
import sys, time, numpy as np, zfarm
from tests.integration.test_shared import make, same
farm = zfarm.Executor(max_workers=1)
farm.submit(pow, 1, 1).result()
held = [farm.submit(make, seed).result() for seed in range(3)]
back = farm.submit(same, held[0]).result()
farm.submit(time.sleep, 600)
print(farm._link.road._house.pid, flush=True)
time.sleep(600)
"""


def test_a_client_that_is_killed_leaves_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        pid = int(client.stdout.readline())
        assert memory_files(client.pid)
        assert memory_files(pid)
        client.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the farm")


def test_the_end_leaves_no_descriptor_and_results_stay() -> None:
    before = memory_files()
    with zfarm.Executor(max_workers=1) as farm:
        ready(farm)
        held = farm.submit(make, 1).result(DEADLINE_S)
        futures = [farm.submit(same, numbers(seed)) for seed in range(4)]

    assert memory_files() == before
    assert np.array_equal(held, numbers(1))
    assert np.array_equal(futures[3].result(), numbers(3))


@pytest.mark.parametrize("side", ["client", "farm"])
def test_without_shared_memory_all_travels(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if side == "client":  # as on a system without it
        monkeypatch.setattr("zfarm.edge.stowage.POSSIBLE", False)
    else:  # as where a process cannot look at another one
        monkeypatch.setattr("zfarm.roads.can_open", lambda ref: False)
    with zfarm.Executor(max_workers=1) as farm:
        array = numbers(1)
        assert not stowage(ready(farm)).on
        back = farm.submit(same, array).result(DEADLINE_S)
        back[0] = -1
        assert np.array_equal(back[1:], array[1:])
        assert stowage(farm).bytes == 0


def test_what_is_above_the_limit_is_spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFARM_SHARED_BYTES_MAX", "1000000")  # of the farm: this process has read its own
    with zfarm.Executor(max_workers=1) as farm:
        stowage(ready(farm))._pool._most = 1_000_000
        arrays = [numbers(seed) for seed in range(4)]
        held = [farm.submit(same, array).result(DEADLINE_S) for array in arrays]

        assert stowage(farm).bytes == 0
        for array, back in zip(arrays, held, strict=True):
            assert np.array_equal(array, back)
            back[0] = -1
            assert array[0] != -1


def test_a_cancelled_call_does_not_lose_its_memory_for_ever(executor: zfarm.Executor) -> None:
    for seed in range(3):
        future = executor.submit(time.sleep, 60)
        waiting = executor.submit(same, numbers(seed))
        assert waiting.cancel()
        wait_until(future.running, "the call")
        assert future.cancel(force=True)

    def let_go() -> bool:
        stowage(executor).cool()
        return not stowage(executor)._out

    wait_until(let_go, "the memory of cancelled calls")


def test_a_result_that_cannot_be_mapped_is_asked_for_again(
    executor: zfarm.Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    land, left = stowage(executor).land, [2]

    def failing(blob: Any, hold: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(24, "Too many open files")
        return land(blob, hold)

    monkeypatch.setattr(stowage(executor), "land", failing)
    assert np.array_equal(executor.submit(make, 1).result(DEADLINE_S), numbers(1))
    left[0] = 1000
    error = executor.submit(make, 1).exception(DEADLINE_S)

    assert isinstance(error, zfarm.FarmError)
    assert "Too many open files" in str(error)


# ---------------------------------------------------------------- what children and clients keep mapped

LARGE = 5_000_000
PAGES = LARGE * 8 // os.sysconf("SC_PAGE_SIZE")


def plus_one(value: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Another array, who has made it, and how many faults it has had until then."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return value + 1, os.getpid(), usage.ru_minflt


def mapped_segments(pid: int) -> int:
    """How many, beside the page of a child."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum("memfd:zfarm-" in line and "zfarm-page" not in line for line in lines)


def anonymous_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def trips(farm: zfarm.Executor, array: np.ndarray) -> Iterator[tuple[int, int]]:
    """Send an array and get another one: the faults of the child since the last time, and its number."""
    before = 0
    while True:
        array += 1
        back, pid, faults = farm.submit(plus_one, array).result(DEADLINE_S)
        assert back[0] == array[0] + 1
        assert back[-1] == array[-1] + 1
        del back
        yield faults - before, pid
        before = faults


def test_the_same_way_again_costs_neither_faults_nor_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFARM_CHILD_WARM_S", "600")  # of the farm
    with zfarm.Executor(max_workers=1) as farm:
        ready(farm)
        turns = trips(farm, np.ones(LARGE))
        # a result may be released too late for the next call to use its memory again
        assert min(next(turns)[0] for _ in range(12)) < PAGES / 64
        pid = next(turns)[1]

        assert 0 < mapped_segments(pid) <= 2 * KEPT_MAX
        stowage(farm).cool()
        assert mapped_segments(os.getpid()) <= len(memory_files()), "it has mapped but what it owns"


def test_a_child_without_calls_gives_back_what_it_has_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZFARM_CHILD_WARM_S", "0.2")
    with zfarm.Executor(max_workers=1) as farm:
        pid = ready(farm).submit(plus_one, np.ones(10)).result(DEADLINE_S)[1]
        before = anonymous_bytes(pid)
        turns = trips(farm, np.ones(LARGE))
        for _ in range(4):
            next(turns)

        wait_until(lambda: not mapped_segments(pid), "the end of its mappings")
        wait_until(lambda: anonymous_bytes(pid) < before + LARGE, "that it gives its memory back")
        assert next(turns)[1] == pid


def take_in_turn(sizes: list[int]) -> int:
    """Have so many bytes in use, one after the other."""
    return sum(len(bytearray(size)) for size in sizes)


def test_what_a_child_keeps_does_not_count_for_a_call_with_a_limit() -> None:
    with zfarm.Executor(max_workers=1) as farm:
        turns = trips(farm, np.ones(LARGE))
        pids = {next(turns)[1] for _ in range(3)}
        sizes = [50_000_000, 55_000_000, 60_000_000]
        limited = farm.options(memory="120MB")
        assert limited.submit(take_in_turn, sizes).result(DEADLINE_S) == sum(sizes)
        assert next(turns)[1] in pids, "it was not too large for the limit"
