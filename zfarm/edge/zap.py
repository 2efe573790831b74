"""Who may connect: the handler that the library asks about every CURVE key; it knows no message.

It answers from a table that is replaced as a whole. A key that comes too often is answered later, so that who
knocks too much only makes its own connections wait. Whatever goes wrong in it is answered with 500, which
lets nobody in; and as every server socket enforces its domain, nobody gets in while it does not run, either.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from math import inf
from typing import Final

import zmq
from zmq.utils import z85

from zfarm.edge.notes import NOTES_DOMAIN
from zfarm.edge.refusals import Refusals
from zfarm.edge.relay import EMITS_DOMAIN, ITEMS_DOMAIN
from zfarm.edge.security import ADMIN, CLIENT, DOORS, MONITOR, ROLES, WORKER, KeyPair, Principal, ServerKeys
from zfarm.edge.sockets import Context, Socket, bind, connect, new_socket
from zfarm.settings import settings

__all__ = ["CALLS", "DOMAINS", "LISTENS", "PUBLISHES", "Doorkeeper", "NoAnswer", "Table", "knock", "table_of"]

CALLS: Final = int(zmq.DEALER)
LISTENS: Final = int(zmq.SUB)
PUBLISHES: Final = int(zmq.PUB)
"""Kinds of sockets that come to a broker."""

DOMAINS: Final[Mapping[bytes, frozenset[str]]] = {
    **{domain.encode(): frozenset((role,)) for role, domain in DOORS.items()},
    NOTES_DOMAIN.encode(): frozenset((ADMIN, MONITOR)),
    EMITS_DOMAIN.encode(): frozenset((WORKER,)),
    ITEMS_DOMAIN.encode(): frozenset((CLIENT, ADMIN)),
}
"""Which roles may connect to which port. Notes tell of all clients, so a client does not get them."""

ENDPOINT: Final = "inproc://zeromq.zap.01"
BEAT_S: Final = 1.0
TEST_S: Final = 5.0

_log: Final = logging.getLogger("zfarm.security")

Table = Mapping[bytes, tuple[str, str]]
"""Public key in its 32 bytes to role and name."""


def table_of(
    roles: Mapping[str, KeyPair], principals: Iterable[Principal] = ()
) -> dict[bytes, tuple[str, str]]:
    """The table for one key per role and one per principal, as a broker makes it from its keys file."""
    table = {z85.decode(one.public): (str(one.role), one.name) for one in principals}
    return table | {z85.decode(keys.public): (role, role) for role, keys in roles.items()}


class NoAnswer(RuntimeError):
    """A knock was not answered in time: the host is too busy, or was stopped meanwhile."""


class Doorkeeper:
    """The handler, in a thread of its own. Start it before a socket is bound, stop it when all are closed."""

    def __init__(
        self,
        context: Context,
        table: Table,
        on_unknown: Callable[[], None] = lambda: None,
        domains: Mapping[bytes, frozenset[str]] = DOMAINS,
    ) -> None:
        """Prepare to answer for all sockets of ``context`` from ``table``; at most one per context.
        ``domains`` tells which roles may connect where.

        ``on_unknown`` is called in the handler's thread before a key is refused that is not in the table, and
        may ``replace`` the table: a peer whose key is refused never comes again by itself.
        """
        self._context = context
        self._on_unknown = on_unknown
        self._table: Table = dict(table)
        self._domains = domains
        self._control_address = f"inproc://doorkeeper-{secrets.token_hex(8)}"
        self._control: Socket = context.socket(zmq.PAIR)
        self._control.bind(self._control_address)
        self._bound = threading.Event()  # or it could not be
        self._over = False  # its rounds: the thread may live a moment longer
        self._thread = threading.Thread(target=self._run, name="zfarm-doorkeeper", daemon=True)
        self._expected: frozenset[bytes] = frozenset()  # keys whose refusal is a test
        self._tested: frozenset[bytes] = frozenset()  # keys that take part in a test now
        self._buckets: dict[bytes, _Bucket] = {}  # of keys that are known
        self._strangers = _Bucket(time.monotonic(), settings.strangers_burst, settings.strangers_per_s)
        self._refusals = Refusals()
        self._late: list[tuple[float, int, list[bytes]]] = []  # a heap: when, a number, an answer
        self.throttled = 0
        """Handshakes answered late, or put off altogether, since their key came too often, or strangers."""
        self.accepted = 0
        self.denied = 0
        self.proven = 0
        """Handshakes that were refused as a test of ours expects: they are in no other count."""
        self.rounds = 0
        """It goes one each second at least."""

    def start(self) -> None:
        """Start, and return when it answers.

        Raises:
            RuntimeError: the context has a handler already, or it did not come up.
        """
        self._thread.start()
        if not self._bound.wait(TEST_S) or not self.alive:
            self._thread.join(TEST_S)
            self._control.close(linger=0)
            raise RuntimeError("the handler that checks keys did not start: see the log")

    @property
    def alive(self) -> bool:
        """Whether it goes its rounds; to be looked at by the main loop, which leaves when it does not."""
        return self._thread.is_alive() and not self._over

    def replace(self, table: Table) -> None:
        """Answer from ``table`` from now on. Peers who are connected stay so."""
        self._table = dict(table)
        self._buckets = {key: bucket for key, bucket in self._buckets.copy().items() if key in table}

    def self_test(self, keys: ServerKeys) -> None:
        """Knock with a random key and with every known one, on a port of each domain made on loopback.

        Raises:
            NoAnswer: somebody was neither let in nor refused in time.
            RuntimeError: somebody got in who must not, or did not who must; a broker must not go on then.
        """
        stranger = KeyPair.fresh()
        knocking = [("stranger", stranger), *keys.roles.items()]
        expected = [
            (domain, role) for domain, allowed in DOMAINS.items() for role in ROLES if role not in allowed
        ]
        refused = [stranger, *(keys.roles[role] for _, role in expected)]
        with self._testing(refused, [pair for _, pair in knocking]):
            for domain, allowed in DOMAINS.items():
                _test_domain(self._context, domain, allowed, keys.server, knocking)

    def check_ports(self, ports: Mapping[str, int], server: str) -> None:
        """Knock with a random key at addresses of sockets with that public key, each for peers of one kind of
        socket. Who gives no answer, say on a host that is too busy, lets nobody in either.

        Raises:
            RuntimeError: it was let in; a broker must not go on then.
        """
        stranger = KeyPair.fresh()
        with self._testing([stranger], [stranger]):
            for address, kind in ports.items():
                got_in = knock(self._context, address, server, stranger, kind)
                if got_in is None:
                    _log.warning("a knock with a random key at %s was not answered in %g s", address, TEST_S)
                if got_in:
                    raise RuntimeError(f"the self-test of {address} failed: stranger was let in")

    @contextlib.contextmanager
    def _testing(self, refused: Iterable[KeyPair], knocking: Iterable[KeyPair]) -> Iterator[None]:
        """Meanwhile those who are ``knocking`` wait for no turn, and that some are ``refused`` is no news."""
        self._expected = frozenset(z85.decode(pair.public) for pair in refused)
        self._tested = frozenset(z85.decode(pair.public) for pair in knocking)
        try:
            yield
        finally:
            self._expected = self._tested = frozenset()

    def stop(self) -> None:
        """Stop, and wait for that. Harmless when done before."""
        if self._control.closed:
            return
        with contextlib.suppress(zmq.Again):  # a thread that is gone takes nothing
            self._control.send(b"stop", zmq.DONTWAIT)
        if self._thread.ident is not None:
            self._thread.join(TEST_S)
        self._control.close(linger=0)

    def _run(self) -> None:
        door: Socket = self._context.socket(zmq.ROUTER)  # it may answer later, and in another order
        control: Socket = self._context.socket(zmq.PAIR)
        try:
            door.bind(ENDPOINT)
            control.connect(self._control_address)
            self._bound.set()
            poller = zmq.Poller()
            poller.register(door, zmq.POLLIN)
            poller.register(control, zmq.POLLIN)
            while True:
                ready = dict(poller.poll(self._patience_ms()))
                self.rounds += 1
                now = time.monotonic()
                if control in ready:
                    return
                if door in ready:
                    peer, empty, *request = door.recv_multipart()
                    wait_s, answer = self._answer(request)
                    if wait_s:
                        self.throttled += 1
                        heapq.heappush(self._late, (now + wait_s, self.throttled, [peer, empty, *answer]))
                    else:
                        door.send_multipart([peer, empty, *answer])
                self._refusals.tell(now)
                while self._late and self._late[0][0] <= now:
                    door.send_multipart(heapq.heappop(self._late)[-1])
        except zmq.ZMQError:
            _log.exception("the handler that checks keys ends: nobody can connect any more")
        finally:
            door.close(linger=0)
            control.close(linger=0)
            self._over = True
            self._bound.set()

    def _patience_ms(self) -> int:
        if not self._late:
            return int(BEAT_S * 1000)
        left_s = self._late[0][0] - time.monotonic()
        return int(1000 * min(max(left_s, 0.0), BEAT_S)) + 1

    def _answer(self, request: list[bytes]) -> tuple[float, list[bytes]]:
        """In how many seconds to say what to that request."""
        number = request[1] if len(request) > 1 else b""
        wait_s = 0.0
        try:
            status, text, user = self._judge(request)
            wait_s = self._wait_s(request[-1], status == b"200")
        except Exception:  # whatever it is: nobody gets in by it
            _log.exception("a connection could not be judged, so it was refused")
            status, text, user = b"500", b"internal error", b""
        if wait_s == inf:
            self.throttled += 1
            return 0.0, [b"1.0", number, b"300", b"too often", b"", b""]
        if status == b"200":
            self.accepted += 1
        elif request[-1] in self._expected:
            self.proven += 1
        else:
            self.denied += 1
        return wait_s, [b"1.0", number, status, text, user, b""]

    def _wait_s(self, key: bytes, known: bool) -> float:
        """How long this key's turn is away, inf if too long; that of a key of a running test is now. All that
        are refused have one turn together."""
        if key in self._tested:
            return 0.0
        now = time.monotonic()
        if not known:
            return self._strangers.take(now)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(now, settings.knocks_burst, settings.knocks_per_s)
        return bucket.take(now)

    def _judge(self, request: list[bytes]) -> tuple[bytes, bytes, bytes]:
        version, _number, domain, address, _identity, mechanism, key = request
        if version != b"1.0" or mechanism != b"CURVE":
            _log.warning("refused %r of version %r: only CURVE 1.0 is allowed", mechanism, version)
            return b"400", b"CURVE only", b""
        if key not in self._table and key not in self._tested:
            self._on_unknown()
        role, name = self._table.get(key, ("", ""))
        if not role or role not in self._domains.get(domain, ()):
            if key not in self._expected:
                where = address.decode("ascii", "replace")
                self._refusals.note(_print(key), where, domain.decode(), time.monotonic())
            return b"400", b"unknown key", b""
        return b"200", b"OK", f"{role}:{name}:{_print(key)}".encode("ascii")


class _Bucket:
    """What one key, or all strangers, may still take: it fills up with time."""

    __slots__ = ("at", "burst", "left", "per_s")

    def __init__(self, now: float, burst: int, per_s: float) -> None:
        self.burst = burst
        self.per_s = per_s
        self.left = float(burst)
        self.at = now

    def take(self, now: float) -> float:
        """Take one; in how many seconds it will be there, inf if that is too long and none was taken."""
        self.left = min(self.burst, self.left + (now - self.at) * self.per_s)
        self.at = now
        wait_s = (1 - self.left) / self.per_s
        if wait_s > settings.knock_wait_max_s:
            return inf
        self.left -= 1
        return max(wait_s, 0.0)


def _print(key: bytes) -> str:
    """As security.fingerprint, of whatever somebody showed as a key."""
    return hashlib.sha256(key).hexdigest()[:16]


# ---------------------------------------------------------------- the self-test


def _test_domain(
    context: Context,
    domain: bytes,
    allowed: Collection[str],
    server: KeyPair,
    knocking: Iterable[tuple[str, KeyPair]],
) -> None:
    socket = new_socket(context, zmq.ROUTER, "tcp://", 1024)
    try:
        address = bind(socket, "tcp://127.0.0.1:*", server, domain.decode())
        for role, pair in knocking:
            got_in = knock(context, address, server.public, pair)
            if got_in is not (role in allowed):
                said = {True: "let in", False: "refused", None: "not answered"}[got_in]
                failed = NoAnswer if got_in is None else RuntimeError
                raise failed(f"the self-test of {domain.decode()} failed: {role} was {said}")
    finally:
        socket.close(linger=0)


def knock(context: Context, address: str, server: str, keys: KeyPair, kind: int = CALLS) -> bool | None:
    """True: let in; False: refused; None: neither within a few seconds, or this kind of socket is wrong."""
    socket = new_socket(context, kind, address, 1024)
    monitor: Socket = socket.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    )
    try:
        connect(socket, address, server, keys)
        if not monitor.poll(int(TEST_S * 1000)):
            return None
        head = monitor.recv_multipart()[0]
        return int.from_bytes(head[:2], "little") == zmq.EVENT_HANDSHAKE_SUCCEEDED
    finally:
        socket.disable_monitor()
        monitor.close(linger=0)
        socket.close(linger=0)
