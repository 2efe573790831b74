"""Messages that have begun to come to a socket of the broker and do not end: who sends one is disconnected.

The library hands a message over when all of it has come, and holds it until then: the frames of one that
never ends fill the memory, and no call of the library tells of them. But the kernel counts what came on each
connection, and we count what was in the messages that we were given: the rest is unfinished, or waits in the
library for us. Nothing waits there when the socket has nothing to read, nor, as it gives each peer its turn,
of a peer that was not heard while all the others were, twice.
"""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from math import inf
from typing import Final

import zmq

from zfarm.edge.frames import FRAMES_MAX, LARGE_FRAMES, MESSAGE_BYTES_MAX
from zfarm.edge.processes import anonymous_bytes
from zfarm.edge.sockets import Line, Socket, far_end
from zfarm.edge.tcpinfo import TcpInfo, available
from zfarm.edge.vitals import memory_bytes
from zfarm.edge.wire import Frame
from zfarm.settings import settings

__all__ = ["Unfinished", "largest_message"]

FRAME_COST: Final = 42
"""Bytes that one frame adds at most to its content on the wire: encryption 33, its own header 9."""
SLACK: Final = 256 * 1024
"""Bytes of a connection that are not worth a thought: its handshake, what the library has just read, and
what its sides say to each other to see whether the other one is still there."""
SILENT_PER_S: Final = 20
"""How many of the latter a connection may add per second though nothing else comes: a ping and a pong, of 42
bytes each, in five seconds."""
SPEAKING_PER_S: Final = 4096
"""And with how many its first message goes on to come, even on a slow network; less is as good as silence."""
MUTE_STEP_S: Final = 1.0
"""The most that a pause between two checks counts for: this process may have been stopped then."""
OTHERS: Final = 1000
"""Messages of others, beside two of each, after which a peer had its turn for certain."""
FULL: Final = 2 / 3
"""The part of the memory that this process may have in use before what is unfinished is in the way."""
IN_THE_WAY: Final = 1 / 32
"""And the part of the memory that it must have come to for that: tiny frames take four times as much."""
FREED_AFTER_S: Final = 1.0
"""How long the library may take to free what was unfinished."""

_DONTWAIT: Final = int(zmq.DONTWAIT)
_SRCFD: Final = int(zmq.SRCFD)
_log: Final = logging.getLogger("zfarm.broker")


def largest_message(frame_bytes: int) -> int:
    """Bytes on the wire of the largest message that is taken, as ``receive_rest`` takes it."""
    return LARGE_FRAMES * frame_bytes + MESSAGE_BYTES_MAX + (FRAMES_MAX + 1) * FRAME_COST


class _Connection:
    __slots__ = (
        "came",
        "credit",
        "fd",
        "lasting",
        "line",
        "mute",
        "owed",
        "principal",
        "received",
        "seen",
        "since",
        "sure",
    )

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.line: Line | None = None  # None: heard before its beginning was told, or after its end
        self.principal = ""  # until it has said something
        self.mute = 0.0  # seconds in which nothing has come though nothing was said
        self.credit = 0  # bytes of messages that were given to us since the last check
        self.received = 0  # bytes that had come by then
        self.came = 0  # and since the check before that
        self.owed = 0  # of these, those that were in no message yet
        self.lasting = 0  # and what the library has read of that
        self.seen = 0  # the same when it began to be silent
        self.since = -1  # number of the message after which that was; -1: it was heard since
        self.sure = 0  # bytes of a message that certainly had not ended when we looked

    @property
    def whose(self) -> str:
        """Who is to blame."""
        return self.principal or (f"somebody at {self.line[1][0]}" if self.line else "")


class Unfinished:
    """What is unfinished on the connections of one socket. All in the thread of that socket."""

    def __init__(
        self,
        socket: Socket,
        most: int,
        end: Callable[[Line], bool],
        *,
        active: bool = True,
        share: int = 1,
        coming: Callable[[Line], None] = lambda line: None,
        mute_s: float = inf,
    ) -> None:
        """Watch ``socket``, before it is bound, for messages of more than ``most`` bytes on the wire.

        All together may have ``unfinished_bytes_max`` divided by ``share``, and less when memory is short.
        ``end`` disconnects, and tells whether there was something to disconnect. ``coming`` is told at each
        check on which connections a large message goes on to come: their peers live, though no beat of
        theirs can overtake it. Who has said nothing for ``mute_s`` is disconnected. Sockets that are not
        ``active``, since only this user reaches them, are not watched; nor is any where the kernel does not
        count, which is logged.
        """
        self.ended = 0
        """Connections ended since a message of theirs did not end."""
        self.mute = 0
        """Connections ended since nothing was said on them."""
        self._mute_s = mute_s
        self.active = active and _can_watch()
        self._socket = socket
        self._most = most + SLACK
        self._total = settings.unfinished_bytes_max // share
        self._memory = memory_bytes() if self.active else 0
        self._full_until = 0.0
        self._end = end
        self._coming = coming
        self._kernel = TcpInfo()
        self._connections: dict[int, _Connection] = {}  # by descriptor
        self._messages = 0
        self._drained = False  # nothing waited for us at the last check
        self._checked_at = inf
        self._said_at = -settings.refusals_said_every_s
        self._unsaid = 0
        self.monitor: Socket | None = None
        if self.active:
            address = f"inproc://connections-{secrets.token_hex(8)}"
            socket.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
            self.monitor = socket.context.socket(zmq.PAIR)
            self.monitor.setsockopt(zmq.RCVHWM, 0)  # else who connects too often makes the library wait
            self.monitor.connect(address)

    @property
    def connected(self) -> bool:
        """Whether anybody is."""
        return bool(self._connections)

    def heard(self, part: zmq.Frame, frames: Sequence[Frame], principal: str) -> None:
        """A message has been read whole: ``part`` is one of its frames as the library gave it."""
        if not self.active:
            return
        try:
            fd = int(part.get(_SRCFD))
        except zmq.ZMQError:
            return
        connection = self._connections.get(fd)
        if connection is None:
            connection = self._connections[fd] = _Connection(fd)
        connection.credit += sum(map(len, frames)) + len(frames) * FRAME_COST
        connection.principal = principal
        self._messages += 1

    def check(self, now: float) -> None:
        """Look at all connections, and end those with too much; to be called a few times a second."""
        if not self.active:
            return
        self.meet()
        passed = max(now - self._checked_at, 0.0)
        heavy = self._weigh(int(passed * SILENT_PER_S))
        self._end_mute(passed)
        self._checked_at = now
        # after the kernel was asked: what had come by then whole, and waits, is seen here
        self._drained = not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        if not heavy:
            return
        for connection in heavy:
            self._judge(connection)
            if connection.came and connection.line is not None:
                self._coming(connection.line)
        for connection in heavy:
            if connection.sure > self._most:
                limit = f"a message may have {_mib(self._most)}"
                self._disconnect(connection, limit, now)
        self._check_total([one for one in heavy if one.fd in self._connections], now)

    def meet(self) -> None:
        """Learn who has come and who has gone; to be called before messages are read, whose sender may have
        the descriptor of another one who has gone."""
        while self.monitor is not None and int(self.monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            head, _ = self.monitor.recv_multipart(_DONTWAIT)
            fd = int.from_bytes(head[2:6], "little", signed=True)
            known = self._connections.get(fd)
            if int.from_bytes(head[:2], "little") == zmq.EVENT_DISCONNECTED:
                self._connections.pop(fd, None)
                continue
            if known is None or known.line is not None:
                known = self._connections[fd] = _Connection(fd)
            try:
                known.line = fd, far_end(fd)
            except OSError:  # it is gone already
                del self._connections[fd]

    def _weigh(self, silent: int) -> list[_Connection]:
        """Count what is owed; the connections for which that is worth a thought."""
        heavy = []
        for one in list(self._connections.values()):
            received = self._kernel.received(one.fd)
            if received < 0 or one.line is None:
                del self._connections[one.fd]
                continue
            came = one.came = received - one.received
            one.received = received
            owed = one.owed + came - one.credit - silent
            if one.credit:
                one.credit = 0
                one.since, one.sure = -1, 0
                if self._drained:  # its last message came after that
                    owed = min(owed, came)
            one.owed = max(owed, 0)
            if one.owed > SLACK:
                one.lasting = one.owed - self._kernel.unread(one.fd)
                heavy.append(one)
            else:
                one.since, one.sure = -1, 0
        return heavy

    def _end_mute(self, passed: float) -> None:
        """End the connections on which nothing has come for long, and on which nothing was ever said."""
        for one in list(self._connections.values()):
            if one.principal:
                continue
            speaks = one.came > passed * SPEAKING_PER_S
            one.mute = 0.0 if speaks else one.mute + min(passed, MUTE_STEP_S)
            if one.mute > self._mute_s and one.line is not None:
                del self._connections[one.fd]
                self.mute += self._end(one.line)

    def thin_out(self, most: int) -> int:
        """Disconnect those who came first of all who have said nothing, until no more than so many are left;
        how many that were."""
        mute = [one for one in self._connections.values() if not one.principal and one.line is not None]
        ended = mute[: max(0, len(mute) - most)]
        for one in ended:
            del self._connections[one.fd]
            assert one.line is not None
            self._end(one.line)
        return len(ended)

    def _judge(self, one: _Connection) -> None:
        """How much of what it owes is certainly part of a message that has not ended."""
        if self._drained:
            one.sure = one.lasting
        elif one.since < 0:
            one.since, one.seen = self._messages, one.lasting
        elif self._messages - one.since > 2 * len(self._connections) + OTHERS:
            one.sure, one.since, one.seen = one.seen, self._messages, one.lasting

    def _check_total(self, heavy: list[_Connection], now: float) -> None:
        """End the largest of whoever has most until there is room again."""
        left = sum(one.sure for one in heavy)
        while left > self._total:
            limit = f"all that is unfinished may have {_mib(self._total)}: ZFARM_UNFINISHED_BYTES_MAX"
            worst = _worst(heavy)
            self._disconnect(worst, limit, now)
            heavy.remove(worst)
            left -= worst.sure
        if left > self._memory * IN_THE_WAY and now > self._full_until:
            used = anonymous_bytes()
            if used > self._memory * FULL:
                self._full_until = now + FREED_AFTER_S
                limit = f"this process has {_mib(used)} in use, of {_mib(self._memory)}"
                self._disconnect(_worst(heavy), limit, now)

    def _disconnect(self, one: _Connection, limit: str, now: float) -> None:
        del self._connections[one.fd]
        assert one.line is not None
        if not self._end(one.line):
            return
        self.ended += 1
        if now - self._said_at < settings.refusals_said_every_s:
            self._unsaid += 1
            return
        host, port = one.line[1][:2]
        _log.warning(
            "disconnected %s at %s, port %d: %s of a message without an end (%s)%s",
            one.principal or "somebody who has not said anything yet", host, port, _mib(one.sure), limit,
            f"; {self._unsaid} more since the last line like this" if self._unsaid else "",
        )  # fmt: skip
        self._said_at, self._unsaid = now, 0

    def close(self) -> None:
        """Watch no more; to be called before the socket is closed. Harmless when done before."""
        if self.monitor is not None and not self.monitor.closed:
            self._socket.monitor(None, 0)
            self.monitor.close(linger=0)


def _worst(heavy: list[_Connection]) -> _Connection:
    """The largest connection of whoever has most."""
    shares: dict[str, list[_Connection]] = defaultdict(list)
    for one in heavy:
        shares[one.whose].append(one)
    worst = max(shares.values(), key=lambda share: sum(one.sure for one in share))
    return max(worst, key=lambda one: one.sure)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


@cache
def _can_watch() -> bool:
    if available():
        return True
    _log.warning(
        "this kernel does not tell how much came on a connection: whoever has a key can fill the memory of "
        "this process with a message that never ends; run it on Linux where not all are trusted"
    )
    return False
