"""A farm over a network that resets, stalls, swallows one way, and flips bits: every call has its outcome."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

import zfarm
from tests.edge.joiner import Joiner
from tests.face.processes import TcpFarm, wait_until
from tests.integration.proxy import DOWN, UP, Proxy, through

pytestmark = pytest.mark.timeout(180)

CALLS = 400
PLACES = pytest.mark.parametrize("near", ["client", "worker"])


def slowly(number: int) -> int:
    """Take ten milliseconds."""
    import time

    time.sleep(0.01)
    return number * number


def _done(futures: list[zfarm.Future[int]], enough: int) -> bool:
    return sum(future.done() for future in futures) >= enough


def run_through(farm: TcpFarm, near: str, harm: Callable[[Proxy], None]) -> Proxy:
    """Have calls run while ``harm`` is done, again and again, to the link of the client or of the worker."""
    farm.start_broker()
    with Proxy(farm.door(near)) as proxy:
        bent = through(farm.connection, proxy.port, farm.directory / "bent.json")
        straight, farm.connection = farm.connection, bent if near == "worker" else farm.connection
        farm.start_worker(2)
        farm.connection = straight
        farm.wait_slots(2)
        with zfarm.Executor(bent if near == "client" else straight) as client:
            futures = [client.submit(slowly, n) for n in range(CALLS)]
            for share in range(1, 5):
                enough = share * CALLS // 5
                wait_until(partial(_done, futures, enough), f"{enough} calls", 60)
                harm(proxy)
            assert [future.result(90) for future in futures] == [n * n for n in range(CALLS)]
            again = [client.submit(slowly, n) for n in range(10)]
            assert [future.result(60) for future in again] == [n * n for n in range(10)]
    return proxy


@PLACES
def test_connections_that_are_reset_lose_nothing(farm: TcpFarm, near: str) -> None:
    proxy = run_through(farm, near, Proxy.reset)
    assert proxy.links > 1


@PLACES
def test_a_bit_that_is_flipped_on_the_way_is_never_believed(farm: TcpFarm, near: str) -> None:
    proxy = run_through(farm, near, Proxy.corrupt)
    assert proxy.corrupted > 0
    assert proxy.links > 1, "encryption notices, and who noticed dials anew"


@PLACES
@pytest.mark.parametrize("back", [True, False], ids=["from the broker", "to the broker"])
def test_messages_that_are_joined_on_the_way_are_not_lost(farm: TcpFarm, near: str, back: bool) -> None:
    """Encryption does not notice: it leaves the bit bare that says whether a frame is the last."""
    farm.start_broker()
    joiner = Joiner(farm.door(near))
    bent = through(farm.connection, joiner.port, farm.directory / "bent.json")
    straight, farm.connection = farm.connection, bent if near == "worker" else farm.connection
    farm.start_worker(2)
    farm.connection = straight
    farm.wait_slots(2)
    with zfarm.Executor(bent if near == "client" else straight) as client:
        futures = [client.submit(slowly, n) for n in range(CALLS)]
        for share in range(1, 4):
            wait_until(partial(_done, futures, share * CALLS // 5), "some calls", 60)
            joiner.armed[back].set()
            wait_until(lambda: not joiner.armed[back].is_set(), "two are joined")
        assert [future.result(90) for future in futures] == [n * n for n in range(CALLS)]
    assert joiner.joined == 3  # that nonsense is noticed, tests/edge/test_ports_tcp.py shows
    joiner.close()


@pytest.mark.parametrize(
    ("near", "directions"),
    [("worker", (UP,)), ("worker", (DOWN,)), ("client", (UP, DOWN))],
    ids=["to the broker", "to the worker", "both ways to the client"],
)
def test_a_network_that_stalls_for_longer_than_a_worker_may_be_silent(
    farm: TcpFarm, near: str, directions: tuple[str, ...]
) -> None:
    first: list[Proxy] = []

    def stall_once(proxy: Proxy) -> None:
        if not first:
            first.append(proxy)
            proxy.stall(3.0, *directions)  # a worker of this farm counts as lost after two seconds

    run_through(farm, near, stall_once)
