"""Which peers of a ROUTER have chosen a routing id that looks as if the library had given it.

The library counts: an id that it gives is a zero and the next one of 2**32 numbers, from a start that nobody
can guess. A peer may choose such an id, too. If its number is yet to come, the library (4.3.5) gives it once
more when it does, finds it taken, and aborts the process: who has many such connections, and comes often,
meets the number in time. So now and then, when there are new peers, we draw a number ourselves, by a
connection of our own: all that were given before are lower, and who has a higher one has chosen it.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Sequence
from typing import Final

import zmq

from zfarm.edge.sockets import Context, Socket, new_socket
from zfarm.edge.wire import Frame

__all__ = ["ROUTING_ID", "Drawn"]

ROUTING_ID: Final = 5
"""Bytes of a routing id that the library gave: a zero and a number. No peer of ours chooses its own."""
_HALF: Final = 1 << 31
_NUMBERS: Final = 1 << 32


def _is_beyond(one: bytes, other: bytes) -> bool:
    """Whether the number of this id comes after that of the other one, or rather so than before it."""
    ahead = (int.from_bytes(one, "big") - int.from_bytes(other, "big")) % _NUMBERS
    return 0 < ahead < _HALF


class Drawn:
    """The numbers of one ROUTER. All in the thread of that socket."""

    def __init__(self, context: Context, socket: Socket, active: bool) -> None:
        """Prepare to draw numbers of ``socket``, before it is bound elsewhere; unless that is ``active``,
        nothing is ever drawn."""
        self.active = active
        self._context = context
        self._address = f"inproc://numbers-{secrets.token_hex(8)}"
        self._word = secrets.token_bytes(16)
        self._latest = b""  # the id that was drawn last
        self._doubtful: set[bytes] = set()  # ids of peers that were new since
        self._dealer: Socket | None = None
        if active:
            socket.bind(self._address)

    def met(self, routing_id: bytes) -> None:
        """A peer has spoken for the first time."""
        if not self._latest or _is_beyond(routing_id, self._latest):
            self._doubtful.add(routing_id)

    def draw(self) -> None:
        """Draw a number if there are new peers; to be called a few times a second."""
        if not self.active or not self._doubtful or self._dealer is not None:
            return
        try:
            self._dealer = new_socket(self._context, zmq.DEALER, self._address, -1)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            return  # nobody else can come now either
        self._dealer.connect(self._address)
        self._dealer.send(self._word)

    def chosen(self, routing_id: bytes, frames: Sequence[Frame]) -> list[bytes] | None:
        """What nobody with a key has said: if it was ourselves, the ids that peers have chosen; else None."""
        if self._dealer is None or [bytes(frame) for frame in frames] != [self._word]:
            return None
        self.close()
        self._latest = routing_id
        chosen = [one for one in self._doubtful if _is_beyond(one, routing_id)]
        self._doubtful.clear()
        return chosen

    def close(self) -> None:
        """End our own connection. Harmless when done before."""
        if self._dealer is not None:
            self._dealer.close(linger=0)
            self._dealer = None
