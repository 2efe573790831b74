"""The broker's relay of items: from workers to the clients that may have them, in a thread of its own.

Bulk never delays scheduling: the broker's loop does not see an item. A worker's key may publish; a client's
key may subscribe, and only to topics that begin with its own principal and name one of its sessions in full.
Items that a subscriber does not fetch in time are lost for it, and for nobody else.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Container
from pathlib import Path
from typing import Final

import zmq

from zfarm.edge.frames import FRAMES_MAX, receive_rest, send_frames
from zfarm.edge.items import ITEM_FRAME_MAX, ITEMS_HELD
from zfarm.edge.links import Links
from zfarm.edge.places import Claim, claim_socket
from zfarm.edge.security import KeyPair
from zfarm.edge.sockets import Context, Socket, bind, hang_up, ipc_path, kick, line_of, new_socket, sender_of
from zfarm.edge.unfinished import Unfinished, largest_message
from zfarm.settings import settings

__all__ = ["EMITS_DOMAIN", "ITEMS_DOMAIN", "Relay"]

EMITS_DOMAIN: Final = "zfarm.emits"
"""The ZAP domain of the socket on which workers publish."""
ITEMS_DOMAIN: Final = "zfarm.items"
"""The ZAP domain of the socket to which clients subscribe."""
TURN_MESSAGES: Final = 100
UNFINISHED_SHARE: Final = 8
"""Of what may be unfinished on the control socket, so much of it here: items are small."""
STOP_S: Final = 5.0
CHECK_MS: Final = max(1, int(settings.unfinished_check_s * 1000))

_DONTWAIT: Final = int(zmq.DONTWAIT)
_log: Final = logging.getLogger("zfarm.broker")


class Relay:
    """Two sockets and a thread between them."""

    def __init__(self, context: Context, emits: str, items: str, keys: KeyPair | None = None) -> None:
        """Listen for workers at ``emits`` and for clients at ``items``, and relay.

        Raises:
            ConfigurationError: an address cannot be bound, is in use, or lacks keys.
        """
        self.refused = 0
        """Subscriptions and items refused, since whoever sent them may not."""
        self._secure = keys is not None
        self._known: Container[str] | None = None
        self._links = Links()
        self._unfinished: list[Unfinished] = []
        self._claims: list[Claim] = []
        control = f"inproc://relay-{secrets.token_hex(8)}"
        self._control: Socket = context.socket(zmq.PAIR)
        self._other_end: Socket = context.socket(zmq.PAIR)
        self._emits = self._items = self._control
        self._thread = threading.Thread(target=self._run, name="zfarm-relay", daemon=True)
        try:
            for address in (emits, items):
                path = ipc_path(address)
                if path:
                    self._claims.append(claim_socket(Path(path)))
            self._control.bind(control)
            self._other_end.connect(control)
            self._emits = new_socket(context, zmq.XSUB, emits, ITEM_FRAME_MAX, held=ITEMS_HELD)
            self._items = new_socket(
                context, zmq.XPUB, items, settings.subscription_bytes_max, held=ITEMS_HELD
            )
            self._unfinished = [
                Unfinished(
                    self._emits, largest_message(ITEM_FRAME_MAX), hang_up,
                    active=self._secure, share=UNFINISHED_SHARE,
                ),
                Unfinished(
                    self._items, settings.subscription_bytes_max, hang_up, active=self._secure
                ),
            ]  # fmt: skip
            # every subscription is looked at before it counts: a socket grows with them without limit
            self._items.setsockopt(zmq.XPUB_MANUAL, 1)
            self.emits_address = bind(self._emits, emits, keys, EMITS_DOMAIN)
            self.items_address = bind(self._items, items, keys, ITEMS_DOMAIN)
            self._emits.send(b"\1")  # all topics: workers publish only what somebody reads
            self._thread.start()
        except BaseException:
            self._close_sockets()
            raise

    @property
    def ended(self) -> int:
        """Connections ended since a message of theirs did not end."""
        return sum(unfinished.ended for unfinished in self._unfinished)

    def expel(self, known: Container[str]) -> None:
        """From now on only the ``known`` principals may publish and subscribe."""
        self._known = known
        self._control.send(b"expel")

    def close(self) -> None:
        """Stop the thread and close the sockets. Harmless when done before."""
        if self._control.closed:
            return
        if self._thread.is_alive():
            self._control.send(b"stop")
            self._thread.join(STOP_S)
        self._close_sockets()

    def _close_sockets(self) -> None:
        for unfinished in self._unfinished:
            unfinished.close()
        for socket in (self._emits, self._items, self._control, self._other_end):
            socket.close(linger=0)
        for claim in self._claims:
            claim.release()
        self._claims = []

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in (self._emits, self._items, self._other_end):
            poller.register(socket, zmq.POLLIN)
        for unfinished in self._unfinished:
            if unfinished.monitor is not None:
                poller.register(unfinished.monitor, zmq.POLLIN)
        check_at = 0.0
        try:
            while True:
                connected = any(unfinished.connected for unfinished in self._unfinished)
                ready = dict(poller.poll(CHECK_MS if connected else None))
                now = time.monotonic()
                for unfinished in self._unfinished:
                    if unfinished.monitor in ready:
                        unfinished.meet()
                if now >= check_at:
                    check_at = now + settings.unfinished_check_s
                    for unfinished in self._unfinished:
                        unfinished.check(now)
                if self._other_end in ready:
                    if self._other_end.recv() == b"stop":
                        return
                    if self._known is not None:
                        self._links.end_all_but(self._known)
                if self._items in ready:
                    self._take_subscriptions()
                if self._emits in ready:
                    self._pass_on()
        except zmq.ZMQError:
            _log.exception("the relay of items ends: they take the way of all messages")

    def _pass_on(self) -> None:
        source, target, whole = self._emits, self._items, self._unfinished[0]
        for _ in range(TURN_MESSAGES):
            try:
                part = source.recv(_DONTWAIT, copy=False)
            except zmq.Again:
                return
            frames = receive_rest(source, part, FRAMES_MAX)
            principal = sender_of(part) if self._secure else ""
            if frames is None or (self._secure and not self._may_publish(principal)):
                self.refused += 1
                kick(part)
                continue
            whole.heard(part, frames, principal)
            send_frames(target, frames)

    def _may_publish(self, principal: str) -> bool:
        return bool(principal) and (self._known is None or principal in self._known)

    def _take_subscriptions(self) -> None:
        for _ in range(TURN_MESSAGES):
            try:
                part = self._items.recv(_DONTWAIT, copy=False)
            except zmq.Again:
                return
            frames = receive_rest(self._items, part, 1)
            text = part.bytes
            topic = text[1:]
            principal = sender_of(part) if self._secure else ""
            if frames is not None:
                self._unfinished[1].heard(part, frames, principal)
            if frames is not None and text[:1] == b"\0":
                self._items.setsockopt(zmq.UNSUBSCRIBE, topic)
            elif frames is not None and text[:1] == b"\1" and self._may_subscribe(part, topic, principal):
                self._items.setsockopt(zmq.SUBSCRIBE, topic)
            else:
                self.refused += 1
                kick(part)

    def _may_subscribe(self, part: zmq.Frame, topic: bytes, principal: str) -> bool:
        """Whether that topic is one of the principal's own sessions; its connection is noted."""
        session, mark, rest = topic.partition(b"\0")
        if not session or not mark or rest:
            return False
        if not self._secure:
            return True
        if not principal or not session.startswith(principal.encode() + b"/"):
            return False
        if self._known is not None and principal not in self._known:
            return False
        line = line_of(part)
        link = self._links.get(line)
        if link is None:
            self._links.sweep()
            link = self._links.note(line, principal, part)
        link.subscriptions += 1
        return link.subscriptions <= settings.subscriptions_max
