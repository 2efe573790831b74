"""Shared objects one after the other, on an embedded farm: their memory is used again, and never under
anybody who still looks at it, whatever has become of the call."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zfarm
from tests.face.processes import wait_until
from tests.integration.test_shared import (
    keep,
    kept_total,
    mapped_segments,
    memory_files,
    numbers,
    ready,
    stowage,
)
from zfarm.edge import segments

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        not (segments.POSSIBLE and segments.leases_tell()), reason="no memfd, no /proc, or no leases here"
    ),
]

SIZE = 200_000  # numbers of 8 bytes, as those of ``numbers``
BYTES = SIZE * 8
LARGE = 4_000_000
PAGES = LARGE * 8 // os.sysconf("SC_PAGE_SIZE")
DEADLINE_S = 30.0
FEW = 7
"""Segments: one is not used again before the child has heard that it may let go."""


@pytest.fixture
def executor() -> Iterator[zfarm.Executor]:
    with zfarm.Executor(max_workers=1) as farm:
        assert stowage(ready(farm)).on
        yield farm


def total(value: np.ndarray) -> float:
    return float(value.sum())


def share_many(farm: zfarm.Executor, seeds: range) -> None:
    """Share, use and let go of some."""
    for seed in seeds:
        handle = farm.share(numbers(seed))
        assert farm.submit(total, handle).result(DEADLINE_S) == numbers(seed).sum()
        del handle


def free_of(farm: zfarm.Executor) -> None:
    """Wait until all handles are settled that are gone."""
    gc.collect()
    wait_until(lambda: not stowage(farm)._out, "the end of what was shared")


def test_memory_of_shared_objects_is_used_again_and_never_grows(executor: zfarm.Executor) -> None:
    before = len(memory_files())
    share_many(executor, range(1, 4))
    pid = executor.submit(os.getpid).result(DEADLINE_S)
    share_many(executor, range(4, 60))

    free_of(executor)
    assert stowage(executor).bytes <= FEW * BYTES
    assert len(memory_files()) <= before + FEW
    wait_until(lambda: not mapped_segments(pid), "that the child lets go")
    assert executor.submit(os.getpid).result(DEADLINE_S) == pid
    stowage(executor).cool()
    stowage(executor).cool()
    assert stowage(executor).bytes == 0
    assert len(memory_files()) <= before


def test_to_share_again_touches_no_fresh_memory(executor: zfarm.Executor) -> None:
    array = np.ones(LARGE)
    found = []
    for _ in range(12):
        array += 1
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        handle = executor.share(array)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        assert executor.submit(total, handle).result(DEADLINE_S) == array.sum()
        del handle
        free_of(executor)

    assert min(found) < PAGES / 64
    assert stowage(executor).bytes <= FEW * array.nbytes


def test_calls_with_arrays_of_their_own_in_between(executor: zfarm.Executor) -> None:
    for seed in range(1, 40):
        array, other = np.full(LARGE // 4, float(seed)), np.full(LARGE // 4, -float(seed))
        handle = executor.share(array)
        assert executor.submit(total, other).result(DEADLINE_S) == other.sum()
        assert executor.submit(total, handle).result(DEADLINE_S) == array.sum()
        del handle
        free_of(executor)

    assert stowage(executor).bytes <= FEW * LARGE * 2, "children keep no mapping of what was shared"


def test_what_a_child_keeps_of_a_shared_object_never_changes(executor: zfarm.Executor) -> None:
    handle = executor.share(numbers(1))
    executor.submit(keep, handle).result(DEADLINE_S)
    del handle
    share_many(executor, range(2, 12))

    assert executor.submit(kept_total, -1).result(DEADLINE_S) == numbers(1).sum()


def look_later(value: np.ndarray, gate: str, told: bool) -> None:
    """In a process of its own and of another session, which goes on when the call has ended; ``told``: forked
    so that Python knows of it."""
    if (os.fork() if told else ctypes.PyDLL(None).fork()) == 0:
        os.setsid()
        Path(gate + ".began").touch()
        write_at(value, gate)
        os._exit(0)
    wait_until(Path(gate + ".began").exists, "the other process")


def write_at(value: np.ndarray, gate: str) -> None:
    """When there is a gate: write what is to be seen then."""
    while not os.path.exists(gate):
        time.sleep(0.01)
    with open(gate + ".part", "w") as out:
        out.write(repr(float(value.sum())))
    os.rename(gate + ".part", gate + ".out")


def seen(gate: Path) -> float:
    """What somebody sees who waits at this gate."""
    gate.touch()
    out = Path(f"{gate}.out")
    wait_until(out.exists, "what the other process saw")
    return float(out.read_text())


@pytest.mark.parametrize("told", [True, False])
def test_what_a_forked_process_sees_never_changes(
    executor: zfarm.Executor, tmp_path: Path, told: bool
) -> None:
    handle = executor.share(numbers(1))
    executor.submit(look_later, handle, str(tmp_path / "gate"), told).result(DEADLINE_S)
    del handle
    share_many(executor, range(2, 12))

    assert seen(tmp_path / "gate") == numbers(1).sum()


def look_and_die(value: np.ndarray, gate: str) -> None:
    look_later(value, gate, True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_that_is_killed_in_the_middle(executor: zfarm.Executor, tmp_path: Path) -> None:
    handle = executor.share(numbers(1))
    future = executor.options(retries=0).submit(look_and_die, handle, str(tmp_path / "gate"))
    assert isinstance(future.exception(DEADLINE_S), zfarm.TaskLost)
    del handle
    share_many(executor, range(2, 30))
    assert seen(tmp_path / "gate") == numbers(1).sum()

    free_of(executor)
    assert stowage(executor).bytes <= FEW * BYTES


def look_and_hang(value: np.ndarray, gate: str) -> None:
    look_later(value, gate, True)
    Path(gate + ".hangs").touch()
    time.sleep(600)


@pytest.mark.parametrize("grace", [0.0, 0.1])
def test_a_call_that_is_given_up(executor: zfarm.Executor, tmp_path: Path, grace: float) -> None:
    gate = tmp_path / "gate"
    handle = executor.share(numbers(1))
    future = executor.submit(look_and_hang, handle, str(gate))
    wait_until(Path(f"{gate}.hangs").exists, "the call")
    assert future.cancel(force=True, grace=grace)
    del handle
    share_many(executor, range(2, 12))

    assert seen(gate) == numbers(1).sum()


def nested(value: np.ndarray, times: int) -> float:
    farm = zfarm.current_farm()
    here = farm.share(value + 1)
    found = [farm.submit(total, here).result() for _ in range(times)]
    del here
    assert set(found) == {(value + 1).sum()}
    return sum(farm.submit(total, value).result() for _ in range(times))


def test_nested_calls_with_what_was_shared(executor: zfarm.Executor) -> None:
    for seed in range(1, 8):
        handle = executor.share(numbers(seed))
        future = executor.submit(nested, handle, 3)
        del handle

        assert future.result(DEADLINE_S) == 3 * numbers(seed).sum()


def test_what_another_farm_has_of_it_never_changes(executor: zfarm.Executor) -> None:
    with zfarm.Executor(max_workers=1) as other:
        handle = executor.share(numbers(1))
        other.submit(keep, handle).result(DEADLINE_S)
        del handle
        free_of(executor)
        share_many(executor, range(2, 12))

        assert other.submit(kept_total, -1).result(DEADLINE_S) == numbers(1).sum()


def test_a_process_that_the_program_forks_in_between(executor: zfarm.Executor, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    handle = executor.share(numbers(1))
    back = executor.submit(np.asarray, numbers(1)).result(DEADLINE_S)
    assert stowage(executor)._inside == 1, "it is in what was shared"
    pid = os.fork()
    if pid == 0:
        write_at(back, str(gate))
        os._exit(0)
    del handle, back
    share_many(executor, range(2, 12))
    found = seen(gate)
    os.waitpid(pid, 0)

    assert found == numbers(1).sum()


def test_kept_results_that_are_in_what_was_shared(executor: zfarm.Executor) -> None:
    handle = executor.share(numbers(1))
    kept: Any = executor.options(keep=True).submit(np.asarray, numbers(1)).result(DEADLINE_S)
    (name,) = {path for path in memory_files() if memory_files().count(path) == 2}
    del handle
    share_many(executor, range(2, 12))
    assert np.array_equal(kept.get(), numbers(1))
    assert executor.submit(total, kept).result(DEADLINE_S) == numbers(1).sum()
    del kept
    gc.collect()
    wait_until(lambda: memory_files().count(name) < 2, "the end of its descriptor")
