"""A farm over a network that resets, stalls, swallows one way, and flips bits: every call has its outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import pytest

import zfarm
from tests.edge.joiner import Joiner
from tests.face.processes import TcpFarm, wait_until
from tests.integration.proxy import DOWN, UP, Proxy, through

pytestmark = pytest.mark.timeout(180)

CALLS = 400
FRAMES = 2
"""Of one message here, at most: a header, and small blobs that share a frame."""
PLACES = pytest.mark.parametrize("near", ["client", "worker"])


def slowly(number: int) -> int:
    """Take ten milliseconds."""
    import time

    time.sleep(0.01)
    return number * number


def _done(futures: list[zfarm.Future[int]], enough: int) -> bool:
    return sum(future.done() for future in futures) >= enough


R = TypeVar("R", Proxy, Joiner)


def run_through(farm: TcpFarm, near: str, relay: R, harm: Callable[[R], None], times: int = 4) -> None:
    """Have calls run while ``harm`` is done, so many ``times``, to the link of the client or of the worker,
    which goes through ``relay``. The broker runs already."""
    bent = through(farm.connection, relay.port, farm.directory / "bent.json")
    straight, farm.connection = farm.connection, bent if near == "worker" else farm.connection
    farm.start_worker(2)
    farm.connection = straight
    farm.wait_slots(2)
    with zfarm.Executor(bent if near == "client" else straight) as client:
        futures = [client.submit(slowly, n) for n in range(CALLS)]
        for share in range(1, times + 1):
            enough = share * CALLS // (times + 1)
            wait_until(partial(_done, futures, enough), f"{enough} calls", 60)
            harm(relay)
        assert [future.result(90) for future in futures] == [n * n for n in range(CALLS)]
        again = [client.submit(slowly, n) for n in range(10)]
        assert [future.result(60) for future in again] == [n * n for n in range(10)]


@pytest.fixture
def proxy(farm: TcpFarm, near: str) -> Iterator[Proxy]:
    """A proxy before the door of the farm's broker that is for those ``near`` it; the broker is started."""
    farm.start_broker()
    with Proxy(farm.door(near)) as proxy:
        yield proxy


@PLACES
def test_connections_that_are_reset_lose_nothing(farm: TcpFarm, proxy: Proxy, near: str) -> None:
    run_through(farm, near, proxy, Proxy.reset)
    assert proxy.links > 1


@PLACES
def test_a_bit_that_is_flipped_on_the_way_is_never_believed(farm: TcpFarm, proxy: Proxy, near: str) -> None:
    run_through(farm, near, proxy, Proxy.corrupt)
    assert proxy.corrupted > 0
    assert proxy.links > 1, "encryption notices, and who noticed dials anew"


@PLACES
@pytest.mark.parametrize("back", [True, False], ids=["from the broker", "to the broker"])
def test_messages_that_are_joined_on_the_way_are_not_lost(farm: TcpFarm, near: str, back: bool) -> None:
    """Encryption does not notice: it leaves a bit bare that says whether more frames follow.

    That bit is of every frame, and is set of none, so that one which is set changes something only if the
    frame is the last of its message. Of a header before its blobs it says what is said inside already, and of
    a ping it says nothing. Messages here have one frame or two: of two frames in a row one is the last of its
    message, which is then joined to all of the next one (or two). No message has so many frames, and who
    reads that gives the link up: it, or the broker's answer, makes the link be dialled anew.
    """
    farm.start_broker()
    joiner = Joiner(farm.door(near), FRAMES)
    harms = 0

    def join(joiner: Joiner) -> None:
        nonlocal harms
        harms += 1
        links = joiner.links
        joiner.armed[back].set()
        wait_until(lambda: joiner.links > links, "what was joined is noticed, and the link made anew", 60)

    try:
        run_through(farm, near, joiner, join, times=2)
        assert harms == 2
        assert joiner.joined >= 2
    finally:
        joiner.close()


@pytest.mark.parametrize(
    ("near", "directions"),
    [("worker", (UP,)), ("worker", (DOWN,)), ("client", (UP, DOWN))],
    ids=["to the broker", "to the worker", "both ways to the client"],
)
def test_a_network_that_stalls_for_longer_than_a_worker_may_be_silent(
    farm: TcpFarm, proxy: Proxy, near: str, directions: tuple[str, ...]
) -> None:
    first: list[Proxy] = []

    def stall_once(proxy: Proxy) -> None:
        if not first:
            first.append(proxy)
            proxy.stall(3.0, *directions)  # a worker of this farm counts as lost after two seconds

    run_through(farm, near, proxy, stall_once)
