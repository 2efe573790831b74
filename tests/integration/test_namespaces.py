"""A farm of several hosts, each a network namespace of its own, whose links are really cut."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

import zfarm
from tests.face.processes import ROOT, TcpFarm, wait_until
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


MAKER = """
from tests.integration.namespaces import host
with host(0) as made:
    print(made.name, flush=True)
    input()
"""


@pytest.mark.usefixtures("hosts")
def test_who_is_killed_leaves_no_link_behind() -> None:
    """Else the next to use its addresses would wonder why nobody answers."""
    with subprocess.Popen(
        [sys.executable, "-c", MAKER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as maker:
        assert maker.stdout is not None
        link = Path("/sys/class/net", maker.stdout.readline().strip())
        assert link.is_dir()
        maker.kill()
    wait_until(lambda: not link.exists(), "the link is gone")


def slowly(path: str, number: int) -> tuple[int, str]:
    """Leave a mark, take ten milliseconds, and tell the namespace."""
    import os
    import time

    from tests.integration.test_faults import mark

    time.sleep(0.01)
    return mark(path, number), os.readlink("/proc/self/ns/net")


def connection_of(farm: TcpFarm, one: Host) -> Path:
    """A connection file for a host; the broker runs already."""
    known = json.loads(farm.connection.read_text())
    file = farm.directory / f"{one.name}.json"
    file.touch(0o600)
    there = {role: [f"tcp://{one.here}:{farm.door(role)}"] for role in known["addresses"]}
    file.write_text(json.dumps({**known, "addresses": there}))
    return file


def start_on(farm: TcpFarm, one: Host, slots: int) -> None:
    """A worker on a host."""
    farm.before, farm.connection, straight = one.before, connection_of(farm, one), farm.connection
    farm.start_worker(slots)
    farm.before, farm.connection = (), straight


def start(farm: TcpFarm, hosts: list[Host]) -> None:
    """A broker here, and a worker on each host."""
    farm.start_broker(host="0.0.0.0")
    for one in hosts:
        start_on(farm, one, 2)
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


CUT_S = 20.0
"""Longer than it takes the library to give a silent connection up."""
ITEMS = 1500
PROGRAM = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
import zfarm
from tests.integration.test_namespaces import emit_slowly, last_long, read, slowly
_, connection, runs = sys.argv
with zfarm.Executor(connection) as client, ThreadPoolExecutor(2) as readers:
    long = [client.submit(last_long, runs, n, 25.0) for n in range(2)]
    emitting = [client.submit(emit_slowly, runs, n) for n in range(2, 4)]
    streams = [readers.submit(read, future.stream()) for future in emitting]
    calls = [client.submit(slowly, runs, n) for n in range(4, 2000)]
    print(json.dumps({
        "ends": [future.result() for future in long + emitting] + [future.result()[0] for future in calls],
        "streams": [one.result() for one in streams],
    }))
"""


def last_long(path: str, number: int, seconds: float) -> int:
    """Leave a mark, and take so long."""
    from tests.integration.test_faults import mark

    time.sleep(mark(path, number) * 0 + seconds)
    return number


def emit_slowly(path: str, number: int) -> Generator[int, None, int]:
    """Leave a mark, and emit numbers for longer than the cut."""
    from tests.integration.test_faults import mark

    mark(path, number)
    for n in range(ITEMS):
        yield n
        time.sleep(0.02)
    return number


def read(stream: zfarm.Stream[int]) -> list[tuple[int, int, int | None]]:
    """All attempts, numbers and values; None for what cannot be had, and is told of."""
    items: list[tuple[int, int, int | None]] = []
    while True:
        try:
            for item in stream:
                items.append((item.attempt, item.number, item.value))
        except zfarm.StreamGap as gap:
            items += ((gap.attempt, number, None) for number in range(gap.first, gap.last + 1))
        else:
            return items


def cut_off(cut: list[Host], seconds: float) -> None:
    """Nothing passes to and from these hosts for so long; nobody on this side could see when that is over."""
    for one in cut:
        one.cut()
    time.sleep(seconds)
    for one in cut:
        one.mend()


@pytest.mark.parametrize(("where", "lost_after_s"), [("client", "60"), ("worker", "3"), ("both", "60")])
def test_after_a_cut_in_both_directions_each_outcome_and_item_is_there_once(
    farm: TcpFarm, hosts: list[Host], tmp_path: Path, where: str, lost_after_s: str
) -> None:
    """The client is on one host and a worker on the other, and another worker beside the broker."""
    near, far = hosts
    farm.variables = {"ZFARM_WORKER_LOST_AFTER_S": lost_after_s}
    farm.start_broker(host="0.0.0.0")
    start_on(farm, far, 4)
    farm.wait_slots(4)
    runs = tmp_path / "runs"
    farm.before = near.before
    client = farm.start(str(connection_of(farm, near)), str(runs), program=["-c", PROGRAM])
    farm.before = ()
    wait_until(lambda: len(marked(runs)) == 4, "the first calls to run on the far host")
    farm.start_worker(2)
    wait_until(lambda: len(marked(runs)) > 40, "others to run here")

    cut = {"client": [near], "worker": [far], "both": [near, far]}[where]
    cut_off(cut, CUT_S)
    assert client.wait(120) == 0, client.said

    told = json.loads(client.out.read_text())
    for items in told["streams"]:
        last = max(attempt for attempt, _, _ in items)
        assert [one for one in items if one[0] == last] == [[last, n + 1, n] for n in range(ITEMS)]
        before = [one for one in items if one[0] != last]
        assert before == [[1, n + 1, n] for n in range(len(before))], "whole as far as it came"
    again = {number for number, count in marked(runs).items() if count > 1}
    if far in cut and lost_after_s == "3":
        assert again <= {0, 1, 2, 3}, "what was not begun elsewhere meanwhile was adopted"
        assert again, "there was room for two of them"
    else:
        assert not again
