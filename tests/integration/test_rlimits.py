"""Processes that may open few files, or write small ones only: what they say, and that nothing is lost."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

import zfarm
from tests.face.processes import Command, TcpFarm, tcp_farm, wait_until
from zfarm.edge import bales
from zfarm.edge.bales import Bales
from zfarm.errors import BrokerUnreachable, FarmBusy
from zfarm.settings import settings

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="limits of other processes are set with prlimit"),
]

MB = 1_000_000


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[TcpFarm]:
    with tcp_farm(tmp_path) as farm:
        yield farm


def within(number: int, most: int) -> list[str]:
    """A zfarm command under a hard limit."""
    return [
        "-c",
        f"import resource, sys; resource.setrlimit({number}, ({most}, {most})); "
        "from zfarm.face.cli import main; sys.exit(main())",
    ]


def starved_worker(farm: TcpFarm, slots: int, files: int) -> Command:
    worker = ["worker", "--slots", str(slots), "--connection", str(farm.connection)]
    return farm.start(*worker, program=within(resource.RLIMIT_NOFILE, files))


def test_a_worker_with_too_few_files_for_its_slots_does_with_the_children_that_it_has(farm: TcpFarm) -> None:
    farm.start_broker()
    worker = starved_worker(farm, 12, 48)
    with zfarm.Executor(farm.connection) as executor:
        futures = [executor.submit(time.sleep, 0.05) for _ in range(60)]
        assert [future.exception(60) for future in futures] == [None] * 60

    assert "could not be started: Too many open files" in worker.said
    assert "ulimit -n" in worker.said
    assert worker.process.poll() is None


def test_what_a_worker_without_any_child_cannot_run_runs_elsewhere(farm: TcpFarm) -> None:
    broker = farm.start_broker()
    hopeless = starved_worker(farm, 4, 23)
    wait_until(lambda: "joined with 4 slots" in broker.said, "it joins")
    wait_until(lambda: "could not be started" in hopeless.said, "it has no child")
    with zfarm.Executor(farm.connection) as executor:
        futures = [executor.submit(abs, -n) for n in range(20)]
        farm.start_worker(1)
        assert [future.result(60) for future in futures] == list(range(20))
    assert "runs again" not in broker.said, "nothing of this was an attempt"


def test_a_broker_without_free_files_keeps_its_peers_and_takes_others_later(farm: TcpFarm) -> None:
    binding = ["--bind", "tcp://127.0.0.1:0", "--connection", str(farm.connection)]
    farm.start("broker", *binding, program=within(resource.RLIMIT_NOFILE, 64))
    wait_until(farm.connection.exists, "it listens")
    farm.start_worker(1)
    farm.wait_slots(1)
    with contextlib.ExitStack() as stack:
        clients: list[zfarm.Executor] = []

        def come() -> None:
            clients.append(stack.enter_context(zfarm.Executor(farm.connection)))
            assert clients[-1].submit(abs, -1).result(30) == 1

        def come_all() -> None:
            for _ in range(40):
                come()

        with pytest.raises(BrokerUnreachable):
            come_all()
        assert 2 <= len(clients) < 40
        assert [client.submit(abs, -2).result(30) for client in clients] == [2] * len(clients)

    with zfarm.Executor(farm.connection) as late:
        assert late.submit(abs, -3).result(30) == 3


@pytest.mark.parametrize("size", [200_000, 3 * MB], ids=["in the log", "in a file of its own"])
def test_a_broker_that_may_not_write_more_says_so_stops_accepting_and_recovers(
    farm: TcpFarm, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # else the large ones are no part of their messages
    monkeypatch.setattr(bales, "Bales", partial(Bales, replace(settings, blobs_from_bytes=1 << 40)))
    broker = farm.start_broker()
    process = psutil.Process(broker.pid)
    with zfarm.Executor(farm.connection) as client:
        process.rlimit(psutil.RLIMIT_FSIZE, (2 * MB, resource.RLIM_INFINITY))
        futures = [client.submit(len, bytes(size)) for _ in range(12)]
        wait_until(lambda: "outcomes wait and new tasks are refused until" in broker.said, "it says so")
        assert process.is_running()
        assert not all(future.accepted or future.done() for future in futures)

        process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        farm.start_worker(1)
        ended = [future.exception(60) for future in futures]
        assert {type(error) for error in ended} <= {type(None), FarmBusy}, "run, or refused"
        taken = [future.result(0) for future, error in zip(futures, ended, strict=True) if error is None]
        assert taken == [size] * len(taken)
        assert taken
        wait_until(lambda: client.submit(abs, -4).exception(60) is None, "new tasks are taken again")

    assert broker.said.count("outcomes wait and new tasks") < 5, "it is said once, and not at every trial"
    assert ("ulimit -f" if size < MB else "File too large") in broker.said
