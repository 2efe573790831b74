"""Whether anything at an address speaks as a ZeroMQ socket does; asked when nobody could be talked to."""

from __future__ import annotations

import socket
from typing import Final

from zfarm.edge.security import parse_tcp

__all__ = ["is_something_else"]

PATIENCE_S: Final = 0.5
SIGNATURE: Final = b"\xff" + bytes(8) + b"\x7f"
"""What both sides of a connection begin with."""


def is_something_else(address: str) -> bool:
    """Whether what listens at ``address`` answers, and certainly not as a broker's socket; False when in
    doubt. Takes half a second at most, beside the resolution of the name."""
    if not address.startswith("tcp://"):
        return False
    host, port = parse_tcp(address)
    try:
        with socket.create_connection((host.strip("[]"), port), PATIENCE_S) as link:
            link.settimeout(PATIENCE_S)
            link.sendall(SIGNATURE + b"\r\n\r\n")  # as good an end of a request as any
            said = link.recv(1)
    except OSError:
        return False
    return bool(said) and said != SIGNATURE[:1]
