"""A client that floods the farm, beside one that does not: who gets how much of it, in real processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until
from tests.integration.test_security import admit

pytestmark = pytest.mark.timeout(180)


def work(seconds: float) -> None:
    """Keep a slot for so long."""
    import time

    time.sleep(seconds)


@pytest.mark.parametrize("flood_s", [0.005, 0.05], ids=["alike", "ten times as long"])
def test_a_flood_leaves_another_client_its_fair_share(farm: TcpFarm, flood_s: float) -> None:
    """Half of the time of the slots is fair, and at least 80 % of that is promised."""
    modest_s = 0.005
    farm.start_broker()
    farm.start_worker(2)
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as flooding, zfarm.Executor(farm.connection) as modest:
        flood = [flooding.submit(work, flood_s) for _ in range(20_000)]
        for future in flood[:20]:
            future.result(60)
        calls = [modest.submit(work, modest_s) for _ in range(500)]
        calls[50].result(60)  # both have found their pace
        before = sum(future.done() for future in flood), sum(future.done() for future in calls)
        calls[-1].result(90)
        after = sum(future.done() for future in flood), sum(future.done() for future in calls)
        flooding.shutdown(wait=False, cancel_futures=True)
    used, had = (
        (late - early) * s for early, late, s in zip(before, after, (flood_s, modest_s), strict=True)
    )
    assert had >= 0.8 * 0.5 * (used + had), f"{had:.2f} s of {used + had:.2f} s"


def nothing() -> None:
    """Take no time."""


def die() -> None:
    """Take the child along."""
    os._exit(3)


def rate(client: zfarm.Executor) -> float:
    """Calls per second that this client gets done; what has not ended soon does not count."""
    began = time.monotonic()
    done, late = wait([client.submit(work, 0.02) for _ in range(60)], 6)
    for future in late:
        future.cancel()
    return len(done) / (time.monotonic() - began)


@pytest.mark.parametrize("bad", [die, nothing], ids=["its calls die", "its calls take no time"])
def test_a_flood_of_calls_without_run_time_starves_nobody(farm: TcpFarm, bad: Callable[[], None]) -> None:
    """Half of what somebody gets alone is fair. Were such calls not charged, nothing or some hundredths would
    be left; what is asked for leaves room for a machine that has other things to do."""
    farm.start_broker()
    farm.start_worker(2)
    farm.wait_slots(2)
    flooder, neighbour = admit(farm, "flooder", "client"), admit(farm, "neighbour", "client")
    with zfarm.Executor(flooder) as flooding, zfarm.Executor(neighbour) as modest:
        rate(modest)  # its children are there now
        alone = rate(modest)
        flood = [flooding.submit(bad) for _ in range(120_000 if bad is nothing else 1_500)]
        wait(flood[:20], 60)
        beside = rate(modest)
        unfinished = not flood[-1].done()
        flooding.shutdown(wait=False, cancel_futures=True)
    assert unfinished, "the flood was over too early"
    assert beside >= 0.2 * alone, f"{beside:.0f} calls/s beside the flood, {alone:.0f} alone"


def test_calls_of_others_go_on_while_a_flood_is_submitted(farm: TcpFarm) -> None:
    """What is counted are turns of the broker, and no time: with turns that take whatever there is to be
    taken the whole flood is accepted in some dozens, and a call of somebody else needs two or three."""
    farm.variables["ZFARM_TURN_US"] = "200"
    farm.start_broker()
    farm.start_worker(2)
    farm.wait_slots(2)
    flooder, neighbour = admit(farm, "flooder", "client"), admit(farm, "neighbour", "client")
    with zfarm.Executor(flooder) as flooding, zfarm.Executor(neighbour) as modest:
        flooding.submit(nothing).result(60)
        ended = 0
        over = threading.Event()

        def go_on() -> None:
            nonlocal ended
            while not over.is_set():
                modest.submit(nothing).result(60)
                ended += 1

        going = threading.Thread(target=go_on)
        going.start()
        wait_until(lambda: ended > 10, "the first calls")
        before = ended
        flood = [flooding.submit(nothing) for _ in range(100_000)]
        wait_until(lambda: flood[-1].accepted or ended - before >= 50, "fifty calls", within_s=120)
        accepted = flood[-1].accepted
        over.set()
        going.join()
        flooding.shutdown(wait=False, cancel_futures=True)
    assert not accepted, f"the whole flood was accepted while {ended - before} calls of somebody else ended"
