"""A client that floods the farm, beside one that does not: who gets how much of it, in real processes."""

from __future__ import annotations

import pytest

import zfarm
from tests.face.processes import TcpFarm

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
