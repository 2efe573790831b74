"""Large results over TCP: they come in pieces, whole and once, whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zfarm
from tests.face.processes import Command, TcpFarm, wait_until
from tests.integration.test_faults import mark, marked
from zfarm.edge.pieces import Gathered

pytestmark = pytest.mark.timeout(120)

MIB = 1024 * 1024
DEADLINE_S = 60.0
MORE_THAN_A_WINDOW = 24


class Costly(Exception):
    """Takes a lot along."""


def marked_ones(runs: str, mib: int) -> Any:
    mark(runs, 1)
    return np.full(mib * MIB // 8, 1.0)


def text(mib: int) -> bytes:
    return b"large " * (mib * MIB // 6)


def fails(mib: int) -> None:
    raise Costly(text(mib))


def emits(mib: int) -> None:
    zfarm.emit(text(mib))


def yields(mib: int) -> Iterator[bytes]:
    yield text(mib)


def within(mib: int) -> float:
    """The result of a call within this one."""
    return float(zfarm.current_farm().submit(marked_ones, os.devnull, mib).result(DEADLINE_S).sum())


def pair(mib: int) -> tuple[Any, Any, str]:
    array = np.full(mib * MIB // 8, 2.0)
    return array, array.copy(), "and more"


@contextmanager
def slow(patch: pytest.MonkeyPatch) -> Iterator[tuple[Callable[[], bool], Callable[[], None]]]:
    """A client that puts nothing of a result in its place before it is let go: whether something has come,
    and how to let it go."""
    came, go = threading.Event(), threading.Event()
    take = Gathered.take

    def wait(gathered: Gathered, piece: Any) -> None:
        came.set()
        assert go.wait(DEADLINE_S)
        take(gathered, piece)

    patch.setattr(Gathered, "take", wait)
    try:
        yield came.is_set, go.set
    finally:
        go.set()


def kill(command: Command) -> None:
    os.kill(command.pid, signal.SIGKILL)
    command.wait()


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    words = Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()
    return int(words[0]) * 1024


def test_large_results_of_all_kinds_come_and_no_process_between_holds_them(farm: TcpFarm) -> None:
    broker = farm.start_broker("--journal", "none")
    worker = farm.start_worker(2)
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as client:
        assert client.submit(abs, -1).result(DEADLINE_S) == 1
        before = {command: peak(command.pid) for command in (broker, worker)}
        array = client.submit(marked_ones, os.devnull, 96).result(DEADLINE_S)
        for command, was in before.items():
            assert peak(command.pid) - was < 80 * MIB, f"{command.name} has held the whole of it"
        assert array.sum() == 12 * MIB
        array += 1
        assert array[-1] == 2.0
        one, two, more = client.submit(pair, 5).result(DEADLINE_S)
        one[:] = 0
        assert (one.sum(), two[0], more) == (0, 2.0, "and more")
        assert client.submit(text, 5).result(DEADLINE_S) == text(5)
        assert list(client.map(text, [5, 0, 5], chunksize=3)) == [text(5), b"", text(5)]
        with pytest.raises(Costly) as caught:
            client.submit(fails, 5).result(DEADLINE_S)
        assert caught.value.args == (text(5),)
        assert client.submit(within, 5).result(DEADLINE_S) == 5 * MIB / 8
        quick = client.options(timeout=DEADLINE_S).submit(text, 5)
        assert len(quick.result(DEADLINE_S)) == len(text(5))
        assert quick.files.wait(DEADLINE_S) == []
        assert client._link._gathering is not None
        assert not client._link._gathering._results, "what was handed over is kept"


def test_a_broker_that_is_killed_while_a_result_comes_costs_no_run(
    farm: TcpFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm.variables["ZFARM_RESTART_HOLD_S"] = str(DEADLINE_S)  # the worker may be slow to come back
    broker = farm.start_broker()
    farm.start_worker(1)
    farm.wait_slots(1)
    runs = str(tmp_path / "runs")
    with zfarm.Executor(farm.connection) as client, slow(monkeypatch) as (came, go):
        future = client.options(retries=0).submit(marked_ones, runs, MORE_THAN_A_WINDOW)
        wait_until(came, "some of it has come")
        kill(broker)
        farm.start_broker(port=farm.port)
        go()

        assert future.result(DEADLINE_S).sum() == MORE_THAN_A_WINDOW * MIB / 8
    assert marked(Path(runs)) == {1: 1}


def test_a_worker_that_is_killed_before_its_client_has_the_result_costs_one_run(
    farm: TcpFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm.start_broker("--journal", "none")
    worker = farm.start_worker(2)
    farm.wait_slots(2)
    runs = [str(tmp_path / name) for name in ("again", "once")]
    with zfarm.Executor(farm.connection) as client, slow(monkeypatch) as (came, go):
        again = client.submit(marked_ones, runs[0], MORE_THAN_A_WINDOW)
        once = client.options(retries=0).submit(marked_ones, runs[1], MORE_THAN_A_WINDOW)
        wait_until(lambda: came() and all(os.path.exists(path) for path in runs), "both have run")
        assert not again.done()
        kill(worker)
        farm.start_worker(2)
        lost = once.exception(DEADLINE_S)
        go()

        assert isinstance(lost, zfarm.TaskLost)
        assert lost.maybe_ran
        assert again.result(DEADLINE_S).sum() == MORE_THAN_A_WINDOW * MIB / 8
    assert [marked(Path(path)) for path in runs] == [{1: 2}, {1: 1}]


def test_a_call_that_is_stopped_while_its_result_comes_leaves_nothing_of_it(
    farm: TcpFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm.start_broker("--journal", "none")
    farm.start_worker(1)
    farm.wait_slots(1)
    with zfarm.Executor(farm.connection) as client, slow(monkeypatch) as (came, go):
        future = client.submit(marked_ones, os.devnull, MORE_THAN_A_WINDOW)
        wait_until(came, "some of it has come")

        assert future.cancel(force=True)
        assert client.submit(pow, 2, 3).result(DEADLINE_S) == 8, "the slot is back"
        go()
        gathering = client._link._gathering
        assert gathering is not None
        wait_until(lambda: not gathering._results, "what had come is forgotten")


def test_what_travels_undivided_is_bounded_with_a_clear_word(farm: TcpFarm) -> None:
    farm.start_broker()
    farm.variables["ZFARM_UNDIVIDED_BYTES_MAX"] = str(4 * MIB)
    farm.start_worker(1)
    farm.wait_slots(1)
    with zfarm.Job("large", farm.connection) as job:
        assert len(job.submit(text, 3).result(DEADLINE_S)) == 3 * MIB
        with pytest.raises(zfarm.TooLarge, match="the broker keeps it"):
            job.submit(text, 5).result(DEADLINE_S)
        for emitting in (emits, yields):
            with pytest.raises(zfarm.TooLarge, match="emit less at a time"):
                job.submit(emitting, 5).result(DEADLINE_S)
