"""Whether what is at an address greets as a socket with CURVE does; asked when nobody could be talked to."""

from __future__ import annotations

import socket
import time
from typing import Final

from zfarm.edge.security import parse_tcp

__all__ = ["is_something_else"]

PATIENCE_S: Final = 0.5
SIGNATURE: Final = b"\xff" + bytes(8) + b"\x7f"
"""What both sides of a connection begin with."""
MECHANISM: Final = slice(12, 32)
"""Where a greeting says how its socket is secured. Who has heard the signature and a little more says it."""
CURVE: Final = b"CURVE".ljust(20, b"\0")


def is_something_else(address: str) -> bool:
    """Whether what listens at ``address`` answers, and certainly not as a broker's socket; False when in
    doubt. Takes a second at most, beside the resolution of the name."""
    if not address.startswith("tcp://"):
        return False
    host, port = parse_tcp(address)
    said = b""
    try:
        with socket.create_connection((host.strip("[]"), port), PATIENCE_S) as link:
            end = time.monotonic() + PATIENCE_S
            link.sendall(SIGNATURE + b"\r\n\r\n")  # as good an end of a request as any
            while SIGNATURE.startswith(said[:1]) and len(said) < MECHANISM.stop:
                link.settimeout(max(0.001, end - time.monotonic()))
                more = link.recv(MECHANISM.stop - len(said))
                if not more:
                    return False
                said += more
    except OSError:
        return False
    return said[:1] != SIGNATURE[:1] or said[MECHANISM] != CURVE
