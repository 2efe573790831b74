"""Who does not read what it is sent, on a link that dies, lives on: the library would abort the process."""

from __future__ import annotations

import os
import socket as sockets
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.edge.paused import HEARTBEAT_MS, keys_of
from tests.edge.waiting import until
from zfarm.edge.ports import DealerPort, RouterPort
from zfarm.edge.security import CLIENT, Access, ServerKeys
from zfarm.edge.sockets import Context
from zfarm.edge.zap import Doorkeeper

FLOOD = 600
"""Messages: more than a socket holds, and so few that they fit into the kernel's buffers besides."""


@contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.edge.paused", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def reset(port: int) -> None:
    """Have the connections of this process with that port, at either end, end with a reset when closed."""
    for link in psutil.Process().net_connections("tcp"):
        if link.raddr and port in (link.laddr.port, link.raddr.port):
            with sockets.socket(fileno=os.dup(link.fd)) as copy:
                copy.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))


def lives_on(process: subprocess.Popen[str]) -> int:
    """How many messages it has got, some pings after its link has died."""
    time.sleep(20 * HEARTBEAT_MS / 1000)  # nothing happens in that time: that is what is asked for
    out, err = process.communicate("read\n", timeout=30)
    assert (process.returncode, err) == (0, "")
    return int(out.splitlines()[-1])


@pytest.mark.parametrize("kind", ["many", "few"])
def test_a_broker_that_is_busy_survives_a_flood_and_a_reset(
    tmp_path: Path, context: Context, kind: str
) -> None:
    flood = FLOOD if kind == "many" else 1
    with program("is-dialed", str(tmp_path)) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        server, pair = keys_of(tmp_path)
        dealer = DealerPort(context, Access(address, address, server, pair))
        for _ in range(flood):
            dealer.send([b"x" * 100])
        until(lambda: dealer.up and not dealer.unsent, dealer.watch_link, dealer.flush)
        reset(int(address.rpartition(":")[2]))
        dealer.close()

        assert lives_on(process) <= flood


def test_a_client_that_is_busy_survives_its_broker(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper
) -> None:
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    pair = keys.roles[CLIENT]
    with program("dials") as process:
        assert process.stdin is not None
        access = router.address, keys.server.public, pair.public, pair.secret
        process.stdin.write(msgspec.json.encode(access).decode() + "\n")
        process.stdin.flush()
        (got,) = until(router.receive)
        for _ in range(FLOOD):
            router.send(got.peer, [b"x" * 100])
        until(lambda: not router.waiting(got.peer), router.flush)
        reset(int(router.address.rpartition(":")[2]))
        router.close()

        assert lives_on(process) == FLOOD
