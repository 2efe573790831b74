"""A farm of several hosts, each a network namespace of its own, whose links are really cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until
from tests.integration.namespaces import Host, NotAllowed, host
from tests.integration.test_faults import marked

pytestmark = pytest.mark.timeout(180)

CALLS = 300


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two hosts, or a skipped test where they cannot be made."""
    with ExitStack() as stack:
        try:
            made = [stack.enter_context(host(number)) for number in range(2)]
        except NotAllowed as reason:
            pytest.skip(f"no network namespaces here: {reason}")
        yield made


def slowly(path: str, number: int) -> tuple[int, str]:
    """Leave a mark, take ten milliseconds, and tell the namespace."""
    import os
    import time

    from tests.integration.test_faults import mark

    time.sleep(0.01)
    return mark(path, number), os.readlink("/proc/self/ns/net")


def start(farm: TcpFarm, hosts: list[Host]) -> None:
    """A broker here, and a worker on each host."""
    farm.start_broker(host="0.0.0.0")
    known = json.loads(farm.connection.read_text())
    for number, one in enumerate(hosts):
        file = farm.directory / f"host-{number}.json"
        file.touch(0o600)
        there = {role: [f"tcp://{one.here}:{farm.door(role)}"] for role in known["addresses"]}
        file.write_text(json.dumps({**known, "addresses": there}))
        farm.before, farm.connection, straight = one.before, file, farm.connection
        farm.start_worker(2)
        farm.before, farm.connection = (), straight
    farm.wait_slots(2 * len(hosts))


def done(futures: list[zfarm.Future[tuple[int, str]]], enough: int) -> bool:
    """Whether so many have ended."""
    return sum(future.done() for future in futures) >= enough


@pytest.mark.parametrize("how", ["link", "route"])
def test_a_host_that_is_cut_off_for_long_loses_nothing_and_comes_back(
    farm: TcpFarm, hosts: list[Host], tmp_path: Path, how: str
) -> None:
    start(farm, hosts)
    far = hosts[0]
    cut, mend = (far.cut, far.mend) if how == "link" else (far.swallow, far.release)
    runs = tmp_path / "runs"
    with zfarm.Executor(farm.connection) as client:
        futures = [client.submit(slowly, str(runs), n) for n in range(CALLS)]
        wait_until(partial(done, futures, CALLS // 10), "some calls", 60)
        cut()
        farm.wait_slots(2)  # its worker counts as lost
        results = [future.result(90) for future in futures]
        assert [number for number, _ in results] == list(range(CALLS))
        assert len({namespace for _, namespace in results}) == 2, "both hosts had work"

        mend()
        farm.wait_slots(4)
        again = [client.submit(slowly, str(runs), CALLS + n) for n in range(100)]
        assert len({future.result(60)[1] for future in again}) == 2, "it has work again"
    assert set(marked(runs)) == set(range(CALLS + 100))


def test_a_short_cut_runs_nothing_again(farm: TcpFarm, hosts: list[Host], tmp_path: Path) -> None:
    farm.variables = {"ZFARM_WORKER_LOST_AFTER_S": "30"}
    start(farm, hosts)
    runs = tmp_path / "runs"
    with zfarm.Executor(farm.connection) as client:
        futures = [client.submit(slowly, str(runs), n) for n in range(CALLS)]
        wait_until(partial(done, futures, CALLS // 10), "some calls", 60)
        for far in hosts:
            far.cut()
        wait_until(lambda: all(w["last_seen_s"] > 2 for w in farm.status()["workers"]), "silence")
        assert not done(futures, CALLS), "there was something to lose"
        for far in hosts:
            far.mend()
        assert [future.result(90)[0] for future in futures] == list(range(CALLS))
    assert set(marked(runs).values()) == {1}
