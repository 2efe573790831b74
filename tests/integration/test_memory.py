"""Calls with a memory limit: what wants more is stopped, in whatever way it asks, and harms nobody else."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import tcp_farm, wait_until
from zfarm.errors import MemoryLimit, TaskLost

pytestmark = pytest.mark.timeout(120)

MB = 1_000_000
ON_LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere nothing is refused, it is only watched"
)


@pytest.fixture
def executor() -> Iterator[zfarm.Executor]:
    """One slot: whoever does not give it back blocks the next call."""
    with zfarm.Executor(max_workers=1) as farm:
        yield farm


def pile_up(until: int = 1 << 60) -> int:
    """Many small objects."""
    held: list[list[int]] = []
    while len(held) * 800_000 < until:
        held.append([0] * 100_000)
    return len(held)


def pile_up_shared() -> None:
    """Memory that is mapped and not asked for with malloc."""
    with mmap.mmap(-1, 4000 * MB) as memory:
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1


def pile_up_in_c() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    while piece := library.malloc(MB):
        ctypes.memset(piece, 1, MB)
    raise MemoryError("malloc gave nothing")


def pile_up_elsewhere() -> int:
    """In a process that the call starts, which is no Python that could be refused anything."""
    script = "b = []\nwhile True: b.append(bytearray(b'x' * 1000000))"
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise MemoryError("the other one was refused memory")
    return 0


@pytest.mark.parametrize("fn", [pile_up, pile_up_shared, pile_up_in_c, pile_up_elsewhere])
def test_a_call_that_takes_more_and_more_is_stopped(executor: zfarm.Executor, fn: Callable[[], Any]) -> None:
    limited = executor.options(memory="120MB")
    error = limited.submit(fn).exception(60)

    assert type(error) is MemoryLimit, error
    assert isinstance(error, MemoryError)
    assert "120.0 MB" in str(error)
    assert len(error.deaths) in (0, 1), "it ran once"
    if error.deaths:
        assert 120 * MB < error.used_bytes == error.deaths[0].peak_bytes < 1000 * MB
    assert executor.submit(abs, -1).result(60) == 1
    assert limited.submit(abs, -2).result(60) == 2


def test_what_fits_is_not_stopped(executor: zfarm.Executor) -> None:
    assert executor.options(memory="300MB").submit(pile_up, 150 * MB).result(60) > 100


@ON_LINUX
def test_what_can_never_fit_is_refused_where_it_is_asked_for_and_the_child_lives_on(
    executor: zfarm.Executor,
) -> None:
    limited = executor.options(memory="100MB")
    pid = executor.submit(os.getpid).result(60)
    error = limited.submit(ask_for, 3000 * MB).exception(60)

    assert type(error) is MemoryLimit
    assert error.deaths == ()
    assert "in ask_for" in str(error.__cause__), "the traceback says where"
    assert executor.submit(os.getpid).result(60) == pid
    assert executor.submit(ask_for, 1000 * MB).result(60) == 1000 * MB, "without a limit it may have that"


def ask_for(size: int) -> int:
    return len(bytearray(size))


class Large:
    """Takes a lot of memory to unpickle."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[int]]:
        return bytearray, (3000 * MB,)


@ON_LINUX
@pytest.mark.parametrize("fn", [id, len], ids=["an argument", "a map's item"])
def test_unpickling_counts(executor: zfarm.Executor, fn: Callable[..., Any]) -> None:
    assert type(executor.options(memory="100MB").submit(fn, Large()).exception(60)) is MemoryLimit


@ON_LINUX
def test_a_refusal_that_is_handled_is_no_error(executor: zfarm.Executor) -> None:
    assert executor.options(memory="100MB").submit(make_do).result(60) == "with less"


def make_do() -> str:
    try:
        ask_for(3000 * MB)
    except MemoryError:
        return "with less"
    return "with all of it"


@ON_LINUX
def test_it_is_not_retried_even_for_memory_errors(executor: zfarm.Executor, tmp_path: Path) -> None:
    retrying = executor.options(memory="100MB", retries=3, retry_on=MemoryError)
    error = retrying.submit(count_and_ask, str(tmp_path / "runs")).exception(60)

    assert type(error) is MemoryLimit
    assert (tmp_path / "runs").read_text() == "x"


def count_and_ask(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")
    ask_for(3000 * MB)


def test_each_item_of_a_map_has_its_own_limit_and_neighbours_lose_nothing() -> None:
    with zfarm.Executor(max_workers=2) as farm:
        others = [farm.submit(abs, -n) for n in range(200)]
        sizes = [10 * MB] * 6 + [1 << 60] + [10 * MB] * 6
        futures = [farm.options(memory="120MB").submit(pile_up, size) for size in sizes]
        results = farm.options(memory="120MB").map(pile_up, sizes)

        assert [next(results) for _ in range(6)] == [13] * 6
        with pytest.raises(MemoryLimit):
            next(results)
        wrong = [n for n, future in enumerate(futures) if future.exception(60) is not None]
        assert wrong == [6]
        assert [future.result(60) for future in others] == list(range(200))


def test_code_that_aborts_when_it_is_refused_memory_is_recognised(executor: zfarm.Executor) -> None:
    error = executor.options(memory="100MB").submit(abort_as_c_plus_plus_does).exception(60)
    assert type(error) is MemoryLimit
    assert "bad_alloc" in error.deaths[0].stderr
    assert "bad_alloc" in str(error)

    error = executor.submit(abort_as_c_plus_plus_does).exception(60)
    assert type(error) is TaskLost, "without a limit that is a death like any other"


def abort_as_c_plus_plus_does() -> None:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def test_a_crash_under_a_limit_says_that_there_was_one(executor: zfarm.Executor) -> None:
    error = executor.options(memory="100MB", max_attempts=1).submit(ctypes.string_at, 0).exception(60)

    assert type(error) is TaskLost
    assert "memory limit of 100.0 MB" in str(error)


kept: list[bytearray] = []


def keep(size: int) -> int:
    """Leave memory behind in this child."""
    kept.append(bytearray(b"x" * size))
    return os.getpid()


@ON_LINUX
def test_what_earlier_calls_left_is_not_held_against_a_call(executor: zfarm.Executor) -> None:
    full = executor.submit(keep, 150 * MB).result(60)
    limited = executor.options(memory="100MB", retries=0)
    fresh = limited.submit(os.getpid).result(60)

    assert fresh != full, "it got a fresh child, and that is no attempt of it"
    assert limited.submit(os.getpid).result(60) == fresh, "which is kept"


def test_a_limit_travels_and_survives_the_broker(tmp_path: Path) -> None:
    with tcp_farm(tmp_path) as farm:
        broker = farm.start_broker()
        with zfarm.Executor(farm.connection) as executor:
            future = executor.options(memory="100MB").submit(pile_up)
            wait_until(lambda: future.accepted, "it is in the journal")
            broker.process.kill()
            broker.wait()
            farm.start_broker(port=farm.port)
            worker = farm.start_worker(1)
            error = future.exception(60)

    assert type(error) is MemoryLimit
    for death in error.deaths:  # none if it was refused memory, and not killed
        assert death.worker.endswith(f"/{worker.pid}")


@pytest.mark.parametrize(
    ("memory", "error", "words"),
    [
        ("2G", ValueError, "unit"),
        ("lots", ValueError, "2GiB"),
        ("-1GB", ValueError, "unit"),
        ("", ValueError, "unit"),
        (0, ValueError, "16MiB"),
        (-5, ValueError, "16MiB"),
        ("1kB", ValueError, "16MiB"),
        ("5000TiB", ValueError, "1024TiB"),
        (1.5e9, TypeError, "float"),
        (True, TypeError, "bool"),
        (b"1GB", TypeError, "bytes"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(memory: Any, error: type[Exception], words: str) -> None:
    from zfarm.terms import PLAIN

    with pytest.raises(error, match="memory.*" + words):
        PLAIN.but(memory=memory)


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        (100_000_000, 100_000_000),
        ("100000000B", 100_000_000),
        ("500MB", 500 * MB),
        ("1.5 GB", 1500 * MB),
        (" 2GiB ", 2 * 1024**3),
        ("64mib", 64 * 1024**2),
        ("20000 kB", 20 * MB),
        ("1TiB", 1024**4),
        (None, 0),
    ],
)
def test_a_limit_may_be_bytes_or_a_text_with_a_unit(memory: Any, size: int) -> None:
    from zfarm.terms import PLAIN

    assert PLAIN.but(memory=memory).memory_bytes == size
