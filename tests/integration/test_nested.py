"""What a task says through its worker's tunnel over TCP: in whose name, and what harm it can do."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until
from tests.integration.hostile import Raw, hello, join, submit
from tests.integration.test_security import _hold, admit
from zfarm.edge import wire
from zfarm.messages import Look, Stranger, Tunnel, Welcome

pytestmark = pytest.mark.timeout(180)


def test_a_worker_cannot_submit_through_a_child_that_it_says_to_have(farm: TcpFarm) -> None:
    farm.start_broker()
    file = admit(farm, "mallory", "worker")
    with zfarm.Executor(farm.connection) as client, Raw(file, "worker") as mallory:
        waiting = client.submit(pow, 2, 3)
        wait_until(lambda: farm.status()["clients"], "a client")
        for joined in (False, True):
            if joined:
                mallory.say(join("mallory", slots=0))
                mallory.hear_a(Welcome)
            for owner in ("", "client:default", "client:default/0", "worker:mallory/x"):
                for message, payload in ((hello("inner"), ()), (Look(), ()), submit(1)):
                    mallory.say(Tunnel(1, owner), [bytes(part) for part in wire.encode(message, payload)])
                    _, frames = mallory.hear()
                    assert wire.to_client.decode(frames)[0] == Stranger()
        assert len(farm.status()["clients"]) == 1
        waiting.cancel()


def _garble(frames: list[bytes]) -> str:
    """Say something through the tunnel of this task that no client says."""
    farm = zfarm.current_farm()
    assert farm.submit(pow, 2, 3).result(30) == 8
    road: Any = farm._link.road
    road._tunnel.send(frames)
    with pytest.raises(zfarm.ProtocolError, match="malformed"):
        farm.submit(time.sleep, 60).result(30)
    return "survived"


@pytest.mark.parametrize("frames", [[b"\xc1garbage"], [b""], [b"\x93\xa6submit\x90\x90"]])
def test_a_task_that_garbles_its_tunnel_harms_itself_alone(farm: TcpFarm, frames: list[bytes]) -> None:
    farm.start_broker()
    worker = farm.start_worker(2)
    farm.wait_slots(2)
    with zfarm.Executor(farm.connection) as client, zfarm.Executor(max_workers=2) as embedded:
        for executor in (client, embedded):
            neighbour = executor.submit(_hold, str(farm.directory / "release"))
            assert executor.submit(_garble, frames).result(60) == "survived"
            assert not neighbour.done()
        (farm.directory / "release").touch()
        assert client.submit(pow, 2, 3).result(30) == 8
        assert embedded.submit(pow, 2, 3).result(30) == 8
    assert worker.process.poll() is None


def _outer(started: str, go: str) -> int:
    """A call that waits for calls of its own, which it submits when it may."""
    Path(started).touch()
    while not Path(go).exists():
        time.sleep(0.02)
    inner = zfarm.current_farm()
    return sum(inner.map(pow, [2, 2], [3, 4])) + inner.submit(_middle).result(60)


def _middle() -> int:
    return zfarm.current_farm().submit(pow, 2, 5).result(60)


def test_the_only_worker_drains_although_its_call_waits_for_others(farm: TcpFarm) -> None:
    farm.start_broker()
    worker = farm.start_worker(1)
    farm.wait_slots(1)
    started, go = farm.directory / "started", farm.directory / "go"
    with zfarm.Executor(farm.connection) as client:
        outer = client.submit(_outer, str(started), str(go))
        wait_until(started.exists, "the call to start")
        behind = client.submit(pow, 2, 3)
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: farm.status()["workers"][0]["state"] == "draining", "a worker that drains")
        go.touch()

        assert outer.result(60) == 8 + 16 + 32
        assert worker.wait() == 0
        assert not behind.done()
        assert behind.why().code == "no-workers"
        behind.cancel()
