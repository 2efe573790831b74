"""The socket on which a broker publishes notes, and that of whoever reads them; it knows no note.

Nobody waits here: a subscriber that is slow misses some. Every subscription is looked at before it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Final

import zmq

from zfarm.edge.frames import OVERHEAD, receive_rest, send_frames
from zfarm.edge.links import Links
from zfarm.edge.places import Claim, claim_socket
from zfarm.edge.redial import Redial
from zfarm.edge.security import Access, KeyPair
from zfarm.edge.sockets import Context, bind, hang_up, ipc_path, kick, line_of, new_socket, sender_of
from zfarm.edge.unfinished import Unfinished
from zfarm.edge.wire import Frame
from zfarm.settings import settings

__all__ = ["NOTES_DOMAIN", "NotesPort", "NotesReader"]

NOTES_DOMAIN: Final = "zfarm.notes"
"""The ZAP domain of the notes' socket: it says which roles may connect."""

_DONTWAIT: Final = int(zmq.DONTWAIT)


class NotesPort:
    """Where the broker publishes notes. It never waits for a subscriber: one that is slow misses some."""

    def __init__(
        self,
        context: Context,
        address: str,
        topics: Sequence[bytes],
        keys: KeyPair | None = None,
        on_watched: Callable[[bool], None] = lambda watched: None,
    ) -> None:
        """Listen on ``address``; ``topics`` are all that may be subscribed to, besides b"" for everything.

        ``on_watched`` is called, within ``read_subscriptions``, when there is a first subscriber or no more.

        Raises:
            ConfigurationError: it cannot be bound, is in use, or lacks keys.
        """
        self.on_watched = on_watched
        self.refused = 0
        self.known: Container[str] | None = None
        """The principals that may subscribe; None: all whom the ZAP handler let in."""
        self._secure = keys is not None
        self._links = Links()
        self._subscribed: dict[bytes, int] = dict.fromkeys((b"", *topics), 0)
        path = ipc_path(address)
        self._claim: Claim | None = claim_socket(Path(path)) if path else None
        size_max = settings.notes_subscription_bytes_max
        self.socket = new_socket(context, zmq.XPUB, address, size_max, held=100)
        self.unfinished = Unfinished(self.socket, size_max, hang_up, active=self._secure)
        """What has begun to come and does not end; to be checked a few times a second."""
        try:
            # every subscription is looked at before it counts: a socket grows with them without limit
            self.socket.setsockopt(zmq.XPUB_MANUAL, 1)
            self.address = bind(self.socket, address, keys, NOTES_DOMAIN)
        except BaseException:
            self.close()
            raise

    @property
    def watched(self) -> bool:
        """Whether anybody has subscribed to anything."""
        return any(self._subscribed.values())

    def read_subscriptions(self) -> None:
        """Take subscriptions and their ends; the handler for ``Loop.add_source(port.socket, ...)``."""
        before = self.watched
        socket = self.socket
        self.unfinished.meet()
        for _ in range(200):
            try:
                part = socket.recv(_DONTWAIT, copy=False)
            except zmq.Again:
                break
            frames = receive_rest(socket, part, 1)
            text = part.bytes
            topic = text[1:]
            principal = sender_of(part) if self._secure else ""
            if frames is not None:
                self.unfinished.heard(part, frames, principal)
            if (
                frames is None
                or text[:1] not in (b"\0", b"\1")
                or topic not in self._subscribed
                or (text[:1] == b"\1" and self._secure and not self._known(part, principal))
            ):
                if text[:1] != b"\0":  # the end of one that was refused is no new offence
                    self.refused += 1
                    kick(part)
            elif text[0]:
                self._subscribed[topic] += 1
                socket.setsockopt(zmq.SUBSCRIBE, topic)
            else:
                self._subscribed[topic] = max(self._subscribed[topic] - 1, 0)
                socket.setsockopt(zmq.UNSUBSCRIBE, topic)
        if self.watched != before:
            self.on_watched(self.watched)

    def _known(self, part: zmq.Frame, principal: str) -> bool:
        """Whether the principal behind a subscription may have it; its connection is noted."""
        if not principal:
            return False
        if self.known is not None and principal not in self.known:
            return False
        line = line_of(part)
        link = self._links.get(line)
        if link is None:
            link = self._links.note(line, principal, part)
        link.subscriptions += 1
        return link.subscriptions <= settings.subscriptions_max

    def expel(self, known: Container[str]) -> int:
        """From now on only the ``known`` principals may subscribe; others are disconnected at once."""
        self.known = known
        return len(self._links.end_all_but(known))

    def sweep(self) -> None:
        """Forget the connections that have gone. To be called now and then."""
        self._links.sweep()

    def publish(self, topic: bytes, frames: Sequence[Frame]) -> None:
        """Send to all who subscribed to ``topic``, as far as they can take it now."""
        send_frames(self.socket, [topic, *frames])

    def close(self) -> None:
        """Close the socket. Harmless when done before."""
        self.unfinished.close()
        self.socket.close(linger=0)
        if self._claim is not None:
            self._claim.release()


class NotesReader:
    """A subscriber to the notes of a broker. Its link is made anew when it breaks, whatever broke it."""

    def __init__(self, context: Context, access: Access, topics: Sequence[bytes] = (b"",)) -> None:
        """Subscribe to ``topics`` at the notes address of ``access``.

        Raises:
            ConfigurationError: the address cannot be used.
        """
        self.socket = new_socket(
            context, zmq.SUB, access.notes_address, settings.header_bytes_max + OVERHEAD, held=100
        )
        self.link = Redial(self.socket, access.notes_address, access.server, access.keys)
        """To be watched and flushed in the loop of the reader."""
        try:
            for topic in topics:
                self.socket.setsockopt(zmq.SUBSCRIBE, topic)
            self.link.dial()
        except BaseException:
            self.close()
            raise

    def receive(self, limit: int = 200) -> list[tuple[bytes, Frame]]:
        """Up to ``limit`` notes that have arrived, each with its topic."""
        got: list[tuple[bytes, Frame]] = []
        for _ in range(limit):
            try:
                part = self.socket.recv(_DONTWAIT, copy=False)
            except zmq.Again:
                break
            frames = receive_rest(self.socket, part, 2)
            if frames is not None and len(frames) == 2:
                got.append((bytes(frames[0]), frames[1]))
        return got

    def close(self) -> None:
        """Close the socket. Harmless when done before."""
        self.link.close()
        self.socket.close(linger=0)
