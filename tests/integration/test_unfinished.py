"""A peer with a key whose message never ends: the broker's memory stays small, and others are served."""

from __future__ import annotations

import os
from math import inf
from pathlib import Path

import pytest

import zfarm
from tests.edge.joiner import Joiner
from tests.face.processes import TcpFarm, wait_until
from tests.integration.hostile import Raw, hello
from tests.integration.proxy import through
from zfarm.edge.tcpinfo import available

MIB = 1 << 20
UNFINISHED = 20 * MIB


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not available(), reason="only Linux tells what came on a connection")
def test_a_message_that_never_ends_costs_its_sender_the_connection_and_the_broker_no_memory(
    farm: TcpFarm,
) -> None:
    farm.variables["ZFARM_UNFINISHED_BYTES_MAX"] = str(UNFINISHED)
    broker = farm.start_broker()
    farm.start_worker(1)
    farm.wait_slots(1)
    before = _resident(broker.pid)
    joiner = Joiner(farm.port, inf)
    bent = through(farm.connection, joiner.port, farm.directory / "bent.json")
    with Raw(bent, "client") as mallory, zfarm.Executor(farm.connection) as client:
        mallory.say(hello("mallory"))
        assert mallory.hear() is not None
        joiner.armed[False].set()
        sizes: list[int] = []

        def disconnected() -> bool:
            for _ in range(20):
                mallory.send(b"x" * 100_000)
            assert client.submit(abs, -7).result(30) == 7
            sizes.append(_resident(broker.pid))
            return "of a message without an end" in broker.said

        wait_until(disconnected, "the end of a message without one", 60)
    assert max(sizes) < before + 5 * UNFINISHED
    assert "disconnected client:client:" in broker.said
    assert "ZFARM_UNFINISHED_BYTES_MAX" in broker.said
    assert farm.status()["refusals"]["unfinished"] >= 1
    joiner.close()
