"""A program that does not read what it is sent, on a link that dies: it dials, or is dialed.

It tells its address or says that it is there, reads no message until it is told to on standard input, and
then how many there were. The library pings often in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from zfarm.edge import sockets
from zfarm.edge.ports import DealerPort, RouterPort
from zfarm.edge.security import CLIENT, Access, KeyPair, ServerKeys
from zfarm.edge.zap import Doorkeeper, table_of

HEARTBEAT_MS = 30


def is_dialed(directory: Path) -> None:
    keys = ServerKeys.load_or_create(directory / "keys")
    context = sockets.new_context()
    door = Doorkeeper(context, table_of(keys.roles))
    door.start()
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    print(router.address, flush=True)
    sys.stdin.readline()
    got = 0
    while more := len(router.receive(1000)):
        got += more
    print(got, flush=True)
    router.close()
    door.stop()
    sockets.close_context(context)


def dials(address: str, server: str, public: str, secret: str) -> None:
    context = sockets.new_context()
    dealer = DealerPort(context, Access(address, address, server, KeyPair(public, secret)))
    dealer.send([b"here"])
    sys.stdin.readline()
    got = 0
    while more := len(dealer.receive(1000)):
        got += more
    print(got, flush=True)
    dealer.close()
    sockets.close_context(context)


def keys_of(directory: Path) -> tuple[str, KeyPair]:
    """The server's public key, and a client's keys."""
    keys = ServerKeys.load_or_create(directory / "keys")
    return keys.server.public, keys.roles[CLIENT]


if __name__ == "__main__":
    sockets.HEARTBEAT_MS = HEARTBEAT_MS  # type: ignore[misc]
    if sys.argv[1] == "is-dialed":
        is_dialed(Path(sys.argv[2]))
    else:
        dials(*msgspec.json.decode(sys.stdin.readline(), type=tuple[str, str, str, str]))
