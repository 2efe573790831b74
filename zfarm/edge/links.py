"""The connections that a socket of the broker has: whose each is, and how to end one; it knows no message.

The library tells nobody who is connected, but every message tells on which descriptor it came. That is noted
at the first message of a connection, so that one whose key was taken away can be ended though it is silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Hashable
from typing import Any

import zmq

from zfarm.edge.sockets import Line, hang_up, is_up, line_of

__all__ = ["Link", "Links"]


class Link:
    """One connection of a peer with a key. ``faults`` counts what was wrong with its messages."""

    __slots__ = ("faults", "line", "principal", "subscriptions")

    def __init__(self, principal: str, line: Line | None) -> None:
        self.principal = principal
        self.line = line  # None: it was gone before its first message was read
        self.faults = 0
        self.subscriptions = 0


class Links:
    """The connections of one socket, by what distinguishes them there."""

    def __init__(self) -> None:
        self._links: dict[Any, Link] = {}
        self._count: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._links)

    def get(self, key: Hashable) -> Link | None:
        """The connection noted under ``key``."""
        return self._links.get(key)

    def note(self, key: Hashable, principal: str, part: zmq.Frame) -> Link:
        """Note the connection on which ``part`` came just now."""
        self.drop(key)
        link = self._links[key] = Link(principal, line_of(part))
        self._count[principal] += 1
        return link

    def at(self, line: Line) -> Any:
        """The key of the connection that is this ``line``; None when it is not known."""
        return next((key for key, link in self._links.items() if link.line == line), None)

    def drop(self, key: Hashable) -> None:
        """Forget a connection. Harmless when it is not known."""
        link = self._links.pop(key, None)
        if link is not None:
            self._count[link.principal] -= 1
            if not self._count[link.principal]:
                del self._count[link.principal]

    def of(self, principal: str) -> int:
        """How many connections this principal has."""
        return self._count[principal]

    def end(self, key: Hashable) -> bool:
        """Disconnect and forget; False when it is not known or gone already."""
        link = self._links.get(key)
        self.drop(key)
        return link is not None and link.line is not None and hang_up(link.line)

    def end_all_but(self, known: Container[str]) -> list[Any]:
        """Disconnect every principal that is not ``known``; the keys of those connections."""
        ended = [key for key, link in self._links.items() if link.principal not in known]
        for key in ended:
            self.end(key)
        return ended

    def sweep(self) -> list[Any]:
        """Forget the connections that have gone by themselves; their keys."""
        gone = [key for key, link in self._links.items() if link.line is None or not is_up(link.line)]
        for key in gone:
            self.drop(key)
        return gone
