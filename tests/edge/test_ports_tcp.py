"""Ports over TCP with CURVE: no stranger gets in, the role comes from the key, and refusals are told."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.edge.damaged import ROUNDS as DAMAGES
from tests.edge.dialler import ROUNDS
from tests.edge.joiner import Joiner
from tests.edge.waiting import DEADLINE_S, until
from zfarm.edge import ports, redial
from zfarm.edge.frames import KEEP_FROM
from zfarm.edge.knock import is_something_else
from zfarm.edge.notes import NotesPort, NotesReader
from zfarm.edge.ports import DealerPort, RouterPort
from zfarm.edge.security import ROLES, Access, KeyPair, ServerKeys
from zfarm.edge.sockets import Context, connect, new_socket
from zfarm.edge.zap import Doorkeeper
from zfarm.errors import AccessDenied, ConfigurationError, FarmError

LARGE = b"L" * (KEEP_FROM + 1)


def tcp(router: RouterPort | NotesPort, keys: ServerKeys, role: str) -> Access:
    return Access(router.address, router.address, keys.server.public, keys.roles[role])


@pytest.mark.parametrize("role", ROLES)
def test_the_role_comes_from_the_key(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper, role: str
) -> None:
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server, domain=f"zfarm.{role}s", mark=b"x")
    dealer = DealerPort(context, tcp(router, keys, role))
    dealer.send([b"I am the admin", LARGE])
    (got,) = until(router.receive)
    assert got.role == role
    assert got.peer[:2] == b"x\0"
    assert got.principal.startswith(f"{role}:{role}:")
    router.send(got.peer, [b"back", got.frames[1]])
    assert until(dealer.receive)[0][1] == LARGE
    dealer.close()
    router.close()


def trouble_of(context: Context, access: Access) -> tuple[FarmError, float]:
    """What a client that connects by ``access`` is told, and after how many seconds."""
    troubles: list[FarmError] = []
    dealer = DealerPort(context, access, on_trouble=troubles.append)
    dealer.send([b"let me in"])
    began = time.monotonic()
    until(lambda: troubles, dealer.watch_link, dealer.flush)
    dealer.close()
    return troubles[0], time.monotonic() - began


def test_an_unknown_key_is_refused_and_told(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper
) -> None:
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    error, after_s = trouble_of(context, Access(router.address, "", keys.server.public, KeyPair.fresh()))
    assert isinstance(error, AccessDenied)
    assert "does not know our key" in str(error)
    assert after_s < 5
    assert router.receive() == []
    router.close()


def test_what_is_no_broker_is_told_apart(context: Context, keys: ServerKeys) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            address = f"tcp://127.0.0.1:{web.server_port}"
            error, _ = trouble_of(context, Access(address, "", keys.server.public, keys.roles["worker"]))
        finally:
            web.shutdown()
            thread.join()
    assert isinstance(error, AccessDenied)
    assert f"what listens at {address} does not speak as a broker of zfarm does" in str(error)


def test_a_wrong_server_key_is_told(context: Context, keys: ServerKeys, doorkeeper: Doorkeeper) -> None:
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    wrong = Access(router.address, "", KeyPair.fresh().public, keys.roles["client"])
    error, after_s = trouble_of(context, wrong)
    assert isinstance(error, AccessDenied)
    assert "another server key" in str(error)
    assert after_s < 5
    assert router.receive() == []
    router.close()


def test_a_socket_without_curve_is_told(context: Context, keys: ServerKeys) -> None:
    router = context.socket(zmq.ROUTER)
    address = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
    assert is_something_else(address)
    error, after_s = trouble_of(context, Access(address, "", keys.server.public, keys.roles["client"]))
    assert isinstance(error, AccessDenied)
    assert f"what listens at {address} does not speak as a broker of zfarm does" in str(error)
    assert after_s < 5
    router.close()


@pytest.mark.parametrize("kind", ["control", "notes"])
def test_to_dial_anew_crashes_nobody(kind: str) -> None:
    command = [sys.executable, "-m", "tests.edge.dialler", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= ROUNDS


def test_a_link_that_ends_after_a_byte_was_damaged_crashes_nobody() -> None:
    command = [sys.executable, "-m", "tests.edge.damaged"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > DAMAGES


def test_options_of_a_socket_are_set_before_its_first_connection(context: Context, keys: ServerKeys) -> None:
    socket = new_socket(context, zmq.DEALER, "tcp://127.0.0.1:1", -1)
    connect(socket, "tcp://127.0.0.1:1", keys.server.public, keys.roles["client"])
    with pytest.raises(AssertionError, match="dial_anew"):
        connect(socket, "tcp://127.0.0.1:1", keys.server.public, keys.roles["client"])
    socket.close()


def test_a_client_without_a_key_is_refused(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper
) -> None:
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    bare = context.socket(zmq.DEALER)
    monitor = bare.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    bare.connect(router.address)
    bare.send(b"let me in")
    assert monitor.poll(int(DEADLINE_S * 1000))
    what = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
    assert what == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    assert router.receive() == []
    bare.disable_monitor()
    monitor.close()
    bare.close()
    router.close()


def test_a_broker_whose_doorkeeper_does_not_run_lets_nobody_in(context: Context, keys: ServerKeys) -> None:
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    dealer = new_socket(context, zmq.DEALER, router.address, -1)
    monitor = dealer.get_monitor_socket(zmq.EVENT_ALL)
    dealer.setsockopt(zmq.CURVE_SERVERKEY, keys.server.public.encode())
    dealer.setsockopt(zmq.CURVE_PUBLICKEY, keys.roles["client"].public.encode())
    dealer.setsockopt(zmq.CURVE_SECRETKEY, keys.roles["client"].secret.encode())
    dealer.connect(router.address)
    dealer.send(b"let me in")
    seen: set[int] = set()

    def watch() -> None:
        while monitor.poll(0):
            seen.add(int.from_bytes(monitor.recv_multipart()[0][:2], "little"))

    until(lambda: zmq.EVENT_DISCONNECTED in seen, watch)
    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in seen
    assert router.receive() == []
    dealer.disable_monitor()
    monitor.close()
    dealer.close()
    router.close()


def test_tcp_without_keys_is_refused_on_both_sides(context: Context) -> None:
    with pytest.raises(ConfigurationError, match="needs keys"):
        RouterPort(context, "tcp://127.0.0.1:*")
    with pytest.raises(ConfigurationError, match="needs keys"):
        DealerPort(context, Access("tcp://127.0.0.1:5555"))


def test_a_port_in_use_is_named(context: Context, keys: ServerKeys) -> None:
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    with pytest.raises(ConfigurationError, match="choose another port"):
        RouterPort(context, router.address, keys.server)
    router.close()
    with pytest.raises(ConfigurationError, match="cannot listen"):
        RouterPort(context, "tcp://192.0.2.1:5555", keys.server)


def test_only_loopback_is_bound_unless_told_otherwise(context: Context, keys: ServerKeys) -> None:
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    port = int(router.address.rpartition(":")[2])
    lines = Path("/proc/net/tcp").read_text().splitlines() if os.path.exists("/proc/net/tcp") else []
    bound = [line.split()[1] for line in lines if f":{port:04X}" in line.split()[1]]
    assert all(address.startswith("0100007F:") for address in bound)
    router.close()


def test_a_restarted_broker_with_its_keys_is_found_again(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper
) -> None:
    links: list[bool] = []
    troubles: list[FarmError] = []
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    address = router.address
    dealer = DealerPort(context, tcp(router, keys, "client"), troubles.append, links.append)
    until(lambda: links == [True], dealer.watch_link)
    router.close()
    until(lambda: links == [True, False], dealer.watch_link)
    router = RouterPort(context, address, keys.server)
    until(lambda: links == [True, False, True], dealer.watch_link)
    assert not troubles
    dealer.close()
    router.close()


def test_a_worker_may_not_watch_and_a_monitor_may(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper
) -> None:
    port = NotesPort(context, "tcp://127.0.0.1:*", [b"farm"], keys.server)
    worker = NotesReader(context, tcp(port, keys, "worker"))
    until(lambda: doorkeeper.denied, port.read_subscriptions)
    assert not port.watched
    monitor = NotesReader(context, tcp(port, keys, "monitor"))
    until(lambda: port.watched, port.read_subscriptions)
    port.publish(b"farm", [b"picture"])
    assert until(monitor.receive) == [(b"farm", b"picture")]
    assert worker.receive() == []
    worker.close()
    monitor.close()
    port.close()


def test_who_sends_nonsense_is_disconnected(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "FRAMES_MAX", 10)
    links: list[bool] = []
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    dealer = DealerPort(context, tcp(router, keys, "client"), on_link=links.append)
    honest = DealerPort(context, tcp(router, keys, "client"))
    honest.send([b"hello"])
    peer = until(router.receive)[0].peer
    dealer.send([b""] * 11)
    until(lambda: router.refused, router.receive)
    until(lambda: False in links, dealer.watch_link)
    router.send(peer, [b"you stay"])
    assert until(honest.receive) == [[b"you stay"]]
    for port in (dealer, honest, router):
        port.close()


@pytest.fixture
def joined(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper
) -> Iterator[tuple[RouterPort, DealerPort, Joiner, list[bool]]]:
    """A router, a dealer, and somebody between them."""
    links: list[bool] = []
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    joiner = Joiner(int(router.address.rpartition(":")[2]))
    access = Access(f"tcp://127.0.0.1:{joiner.port}", "", keys.server.public, keys.roles["client"])
    dealer = DealerPort(context, access, on_link=links.append)
    yield router, dealer, joiner, links
    dealer.close()
    router.close()
    joiner.close()


def test_who_sits_between_can_join_two_messages(
    joined: tuple[RouterPort, DealerPort, Joiner, list[bool]],
) -> None:
    """What the library does: should it stop, ``misunderstood`` has less to do."""
    router, dealer, joiner, _ = joined
    dealer.send([b"hello"])
    peer = until(router.receive)[0].peer
    joiner.armed[True].set()
    router.send(peer, [b"one"])
    router.send(peer, [b"two"])
    assert until(dealer.receive) == [[b"one", b"two"]]


def test_only_of_the_last_frame_of_a_message_the_bit_says_something_new(
    joined: tuple[RouterPort, DealerPort, Joiner, list[bool]],
) -> None:
    """So to set it of one frame may change nothing: who counts on it sets it of as many as it takes."""
    router, dealer, joiner, _ = joined
    dealer.send([b"hello"])
    peer = until(router.receive)[0].peer
    joiner.armed[True].set()
    router.send(peer, [b"header", b"blobs"])
    assert until(dealer.receive) == [[b"header", b"blobs"]]
    assert joiner.joined == 1


def test_a_link_on_which_something_was_misunderstood_is_made_anew(
    joined: tuple[RouterPort, DealerPort, Joiner, list[bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    router, dealer, joiner, links = joined
    monkeypatch.setattr(redial, "REDIAL_S", (0.0, 0.01))
    dealer.send([b"hello"])
    until(router.receive)
    until(lambda: links == [True], dealer.watch_link)
    for _ in range(ports.MISUNDERSTOOD_MAX):
        assert dealer.misunderstood()
        assert links[-1] is False
        until(lambda: links[-1], dealer.flush, dealer.watch_link)
        dealer.send([b"hello"])
        assert until(router.receive)[0].frames == [b"hello"]
    assert not dealer.misunderstood(), "that is no accident any more"
    monkeypatch.setattr(ports, "MISUNDERSTOOD_S", 0.0)
    assert dealer.misunderstood(), "the one before was long ago"
    assert joiner.links == 1 + ports.MISUNDERSTOOD_MAX
