"""A program that dials anew and anew where a ZeroMQ socket listens that is no broker; it prints how often.

A program of its own, for the library may crash it.
"""

from __future__ import annotations

import socket
import sys
import threading

from zfarm.edge import redial
from zfarm.edge.notes import NotesReader
from zfarm.edge.ports import DealerPort
from zfarm.edge.security import Access, ServerKeys
from zfarm.edge.sockets import close_context, new_context

ROUNDS = 200
PLAIN = b"\xff" + bytes(8) + b"\x7f" + b"\3\1" + b"NULL".ljust(20, b"\0") + bytes(32)
"""What a socket without CURVE begins with. Nobody hangs up here before the dialler has read it to its end."""


class Plain:
    """Says that it has no CURVE to whoever comes, and nothing after that."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.links: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            link, _ = self._listener.accept()
            link.sendall(PLAIN)
            self.links.append(link)


def main(kind: str) -> None:
    """Dial as a control socket ("control") or as a reader of notes ("notes")."""
    redial.REDIAL_S = (0.0, 0.0)  # type: ignore[misc]
    context, plain, keys = new_context(), Plain(), ServerKeys.fresh()
    access = Access(plain.address, plain.address, keys.server.public, keys.roles["client"])
    port = DealerPort(context, access) if kind == "control" else NotesReader(context, access)
    link = port if isinstance(port, DealerPort) else port.link
    while len(plain.links) < ROUNDS:
        link.monitor.poll(10)
        link.watch_link()
        link.flush()
    port.close()
    close_context(context)
    print(len(plain.links))


if __name__ == "__main__":
    main(sys.argv[1])
