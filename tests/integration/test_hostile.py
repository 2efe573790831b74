"""Peers with a client's or a worker's key that forge, replay and exceed, while honest ones go on beside."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from msgspec import structs

import zfarm
from tests.face.processes import TcpFarm, wait_until
from tests.integration.hostile import Raw, hello, join, submit
from tests.integration.proxy import through
from tests.integration.test_security import admit, refusals
from tests.integration.test_streams import count_slowly, whole
from zfarm import messages as m
from zfarm.edge.security import Role
from zfarm.edge.tcpinfo import available

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
MIXED = 300
MALLORYS = (("client", "mallory-c"), ("worker", "mallory-w"))


class Honest:
    """A client that has calls and streams run again and again, and compares what comes."""

    def __init__(self, connection: Path) -> None:
        self.rounds = 0
        self.error: BaseException | None = None
        self._ending = threading.Event()
        self._connection = connection
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            with zfarm.Executor(self._connection) as client:
                while not self._ending.is_set():
                    stream = client.submit(count_slowly, MIXED).stream()
                    assert list(client.map(abs, range(-MIXED, 0))) == list(range(MIXED, 0, -1))
                    assert whole(list(stream), MIXED)
                    self.rounds += 1
        except BaseException as error:
            self.error = error
            raise

    def goes_on(self) -> None:
        """Wait for two more rounds."""
        enough = self.rounds + 2
        wait_until(lambda: self.rounds >= enough or self.error is not None, "honest calls to run")
        assert self.error is None

    def end(self) -> None:
        """Wait for the last round."""
        self._ending.set()
        self.thread.join()


@contextmanager
def honest_calls(farm: TcpFarm) -> Iterator[Honest]:
    """A farm with a worker on which honest calls run; neither they nor the farm may notice anything."""
    broker = farm.start_broker()
    worker = farm.start_worker(2)
    farm.wait_slots(2)
    honest = Honest(farm.connection)
    try:
        honest.goes_on()
        yield honest
        honest.goes_on()
    finally:
        honest.end()
    assert broker.process.poll() is None
    assert worker.process.poll() is None
    assert "Traceback" not in broker.said + worker.said
    tasks = farm.status()["tasks"]
    assert (tasks["errors"], tasks["lost"], tasks["retried"]) == (0, 0, 0)


def answers(peer: Raw) -> list[m.Message]:
    """All that has been answered."""
    heard = []
    while (one := peer.hear(0.2)) is not None:
        heard.append(one[0])
    return heard


def test_words_of_a_worker_about_what_it_was_never_given_change_nothing(farm: TcpFarm) -> None:
    with honest_calls(farm) as honest:
        file = admit(farm, "mallory", "worker")
        epoch = farm.status()["brokers"][0]["epoch"]
        leases = [epoch << 32 | number for number in range(1, 1000)] + [1 << 62]
        held = [m.Held(lease, "client:default", lease & 0xFF, True) for lease in leases]
        with Raw(file, "worker") as mallory:
            mallory.say(join("mallory", slots=0, held=held))
            mallory.hear_a(m.Welcome)
            for lease in random.Random(1).sample(leases, 10):
                for message in (
                    m.Return(leases),
                    m.Began(leases),
                    m.Beat(seen=1 << 40, held=leases, room=0),
                    m.Streams([m.Streaming(one, "client:default", one & 0xFF, 1) for one in leases], leases),
                    m.Sent(lease, 1 << 20),
                    m.Want(lease, [m.Wanted(bytes(32), 8, 0, 8)]),
                    m.Items(lease, 1, 1 << 20),
                    m.Pinned("vm", 1),
                    m.Room(0, leases, True, 4, [1, 2]),
                    m.TunnelClosed(3),
                ):
                    mallory.say(message)
                mallory.say(m.Items(lease, 1, 1), [b"forged"])
                for kind in (m.VALUE, m.ERROR, m.MIXED):
                    reports = [m.Report(one, kind, 10) for one in leases]
                    mallory.say(m.Reports(reports), [b"forged"] * len(reports))
            assert {type(one) for one in answers(mallory)} <= {m.Thanks, m.Revoke, m.Stranger}
            mallory.say(m.Leave())
        honest.goes_on()


def test_words_of_a_client_about_what_is_not_its_own_change_nothing(farm: TcpFarm) -> None:
    with honest_calls(farm) as honest:
        file = admit(farm, "mallory", "client")
        epoch = farm.status()["brokers"][0]["epoch"]
        leases = [epoch << 32 | number for number in range(1, 1000)]
        tasks = list(range(5000))
        with Raw(file, "client") as mallory:
            mallory.say(hello("mallory"))
            mallory.hear_a(m.Welcome)
            for lease in random.Random(2).sample(leases, 10):
                for message in (
                    m.Cancel(tasks, force=True),
                    m.Ask(tasks),
                    m.Forget(tasks),
                    m.Listen([m.Listening(one, 1 << 40, 1 << 40) for one in leases]),
                    m.Fetch(lease, 1, 1 << 20),
                    m.Pin("vm", 1, [m.Keep(bytes(32), 8)], [], True),
                    m.Pulse(1 << 62, 1 << 62),
                ):
                    mallory.say(message)
                mallory.say(m.Chunks(lease, 1, [m.Chunk(bytes(32), 8, 0, bytes(32))]), [b"forged.."])
            assert {type(one) for one in answers(mallory)} <= {m.Unknown, m.Echo}
        honest.goes_on()


def test_ids_that_look_like_those_of_the_library_take_nothing_from_anybody(farm: TcpFarm) -> None:
    with honest_calls(farm) as honest, ExitStack() as stack:
        before = refusals(farm)["senders"]
        for role, name in MALLORYS:
            file = admit(farm, name, role)  # type: ignore[arg-type]
            for identity in (b"\0abcd", b"\0abcd", b"\0\0\0\0\1", b"\0" * 5, b"\0", b"\0" * 255, b"c\0abcd"):
                peer = stack.enter_context(Raw(file, role, identity=identity))
                peer.say(m.Look() if role == "client" else join("mallory", slots=0))
        wait_until(lambda: refusals(farm)["senders"] >= before + 6, "refusals")
        honest.goes_on()


@pytest.mark.parametrize(("role", "name"), MALLORYS)
def test_garbage_and_messages_that_are_too_large_harm_nobody_else(
    farm: TcpFarm, role: Role, name: str
) -> None:
    farm.variables |= {"ZFARM_PAYLOAD_BYTES_MAX": str(8 * MIB), "ZFARM_MESSAGE_BYTES_MAX": str(8 * MIB)}
    rng = random.Random(3)
    with honest_calls(farm) as honest:
        file = admit(farm, name, role)

        def garbage(mallory: Raw) -> None:
            for _ in range(50):
                mallory.send(*(rng.randbytes(rng.randrange(300)) for _ in range(rng.randrange(1, 8))))

        attacks: list[Callable[[Raw], None]] = [
            garbage,
            lambda mallory: mallory.send(b"\x92\x90" + b"\x91" * 100_000),  # an array in an array, and so on
            lambda mallory: mallory.send(b"\x92\x90\xdd\xff\xff\xff\xff"),  # an array said to be huge
            lambda mallory: mallory.send(*[b""] * 10_000),
            lambda mallory: mallory.send(*[b"x" * 100] * 10_000),
            lambda mallory: mallory.send(bytes(9 * MIB)),
            lambda mallory: mallory.send(b"", *[bytes(7 * MIB)] * 5),
        ]
        for attack in attacks:
            with Raw(file, role) as mallory:
                attack(mallory)
                mallory.hear(0.3)
            honest.goes_on()
        assert refusals(farm)["malformed"] > 10


def recorded(port: int, ready: Callable[[int], None]) -> bytes:
    """What is said to ``port`` through a relay; ``ready`` is given the port of that, and has it said."""
    said = bytearray()

    def carry(source: socket.socket, sink: socket.socket, keep: bool) -> None:
        with suppress(OSError):
            while got := source.recv(65536):
                if keep:
                    said.extend(got)
                sink.sendall(got)

    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:

        def relay() -> None:
            near = stack.enter_context(listener.accept()[0])
            far = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            back = threading.Thread(target=carry, args=(far, near, False))
            back.start()
            carry(near, far, True)
            far.shutdown(socket.SHUT_RDWR)
            back.join()

        thread = threading.Thread(target=relay)
        thread.start()
        ready(listener.getsockname()[1])
        thread.join()
    return bytes(said)


def test_bytes_that_were_recorded_and_come_again_say_nothing(farm: TcpFarm) -> None:
    with honest_calls(farm) as honest:
        file = admit(farm, "alice", "client")

        def speak(port: int) -> None:
            with Raw(through(file, port, farm.directory / "bent.json"), "client") as alice:
                alice.say(hello("alice"))
                alice.hear_a(m.Welcome)
                calls, payload = submit(1, 2, 3)
                nowhere = m.Demand(labels=("nowhere",))
                calls = structs.replace(
                    calls, calls=[structs.replace(call, demand=1) for call in calls.calls], demands=[nowhere]
                )
                alice.say(calls, payload)
                alice.say(m.Cancel([1, 2, 3]))
                alice.hear_a(m.Ended)
                alice.say(m.Forget([1, 2, 3]))
                alice.say(m.Bye())
                alice.say(m.Ask([1]))
                alice.hear()

        said = recorded(farm.port, speak)
        assert len(said) > 500
        before = farm.status()["tasks"]["cancelled"]
        assert before >= 1
        for step in (len(said), 97, 1):
            with socket.create_connection(("127.0.0.1", farm.port)) as link:
                with suppress(OSError):  # it may be cut off before all is said
                    for start in range(0, len(said), step):
                        link.sendall(said[start : start + step])
                link.settimeout(20)
                with suppress(ConnectionResetError):
                    while link.recv(65536):
                        pass  # a greeting, and perhaps the beginning of a handshake; then it ends
        assert farm.status()["tasks"]["cancelled"] == before
        honest.goes_on()


@pytest.mark.skipif(not available(), reason="only Linux tells what came on a connection")
def test_who_has_a_key_and_says_nothing_is_disconnected_and_counted(farm: TcpFarm) -> None:
    farm.variables["ZFARM_MUTE_S"] = "1.5"
    with honest_calls(farm) as honest:
        file = admit(farm, "mallory", "client")
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(Raw(file, "client"))
            wait_until(lambda: refusals(farm)["mute"] >= 20, "the mute to be disconnected")
        honest.goes_on()
