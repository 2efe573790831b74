"""One child as its worker sees it: its pipes, its page, what it was told last; no behaviour."""

from __future__ import annotations

import socket
from math import inf

from zfarm.edge.page import Mark, Page
from zfarm.edge.pipe import Outbox, Reader
from zfarm.edge.tails import Tail
from zfarm.edge.taps import Taps

__all__ = ["Kid"]


class Kid:
    """One child as its worker sees it."""

    __slots__ = (
        "due",
        "last_done",
        "last_seq",
        "mark",
        "number",
        "open",
        "outbox",
        "page",
        "paused",
        "pid",
        "pipe",
        "reader",
        "reason",
        "settle_at",
        "stopping",
        "tail",
        "taps",
        "tunnel",
        "tunnel_open",
        "tunnel_outbox",
        "tunnel_reader",
        "tunnel_used",
    )

    def __init__(
        self,
        number: int,
        pipe: socket.socket,
        tunnel: socket.socket,
        tail: Tail,
        taps: Taps,
        scratch: bytearray,
    ) -> None:
        pipe.setblocking(False)
        tunnel.setblocking(False)
        self.number = number
        self.pid = 0
        self.page = Page()
        self.tail = tail
        self.taps = taps
        self.pipe, self.tunnel = pipe, tunnel
        self.outbox, self.tunnel_outbox = Outbox(pipe), Outbox(tunnel)
        self.reader, self.tunnel_reader = Reader(scratch), Reader(scratch)
        self.open = self.tunnel_open = True
        self.tunnel_used = False
        self.paused = False  # its pipe is not read
        self.last_seq = self.last_done = 0
        self.mark = Mark(0, 0)
        self.settle_at = inf  # second step of taking back
        self.due = inf  # when it will be killed unless it has gone
        self.stopping = False
        self.reason = ""  # why we killed it
