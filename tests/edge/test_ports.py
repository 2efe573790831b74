"""Ports: real sockets over ipc and TCP with CURVE; nothing blocks, no stranger gets in, losses are told."""

from __future__ import annotations

import os
import shutil
import socket as sockets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from zfarm.edge import ports
from zfarm.edge.loop import Loop
from zfarm.edge.ports import DealerPort, NotesPort, NotesReader, RouterPort
from zfarm.edge.security import ROLES, Access, KeyPair, ServerKeys
from zfarm.edge.sockets import Context, close_context, ipc_path, new_context, new_socket
from zfarm.edge.zap import Doorkeeper, table_of
from zfarm.errors import AccessDenied, ConfigurationError, FarmError

DEADLINE_S = 20.0
LARGE = b"L" * (ports.KEEP_FROM + 1)


@pytest.fixture
def context() -> Iterator[Context]:
    context = new_context()
    yield context
    close_context(context)


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="p"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def keys() -> ServerKeys:
    return ServerKeys.fresh()


@pytest.fixture
def doorkeeper(context: Context, keys: ServerKeys) -> Iterator[Doorkeeper]:
    doorkeeper = Doorkeeper(context, table_of(keys.roles))
    doorkeeper.start()
    yield doorkeeper
    doorkeeper.stop()


def until(condition: Callable[[], Any], *turns: Callable[[], Any]) -> Any:
    """Call ``turns`` until ``condition`` gives something, which is returned."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        for turn in turns:
            turn()
        time.sleep(0.002)
    return found


def tcp(router: RouterPort | NotesPort, keys: ServerKeys, role: str) -> Access:
    return Access(router.address, router.address, keys.server.public, keys.roles[role])


# ---------------------------------------------------------------- local sockets


def test_messages_go_both_ways_and_large_frames_stay_in_place(context: Context, directory: Path) -> None:
    router = RouterPort(context, f"ipc://{directory}/broker")
    dealer = DealerPort(context, Access(f"ipc://{directory}/broker"))
    dealer.send([b"head", b"", LARGE])
    (got,) = until(router.receive)
    assert (got.role, got.principal) == ("local", "local")
    assert got.frames == [b"head", b"", LARGE]
    assert [type(frame) for frame in got.frames] == [bytes, bytes, memoryview]
    router.send(got.peer, [b"back", got.frames[2], bytearray(b"array"), memoryview(b"view")[1:3]])
    ((head, large, array, view),) = until(dealer.receive)
    assert (head, large, array, view) == (b"back", LARGE, b"array", b"ie")
    router.close()
    dealer.close()


def test_receive_honours_its_limit_and_loses_nothing(context: Context, directory: Path) -> None:
    router = RouterPort(context, f"ipc://{directory}/broker")
    dealer = DealerPort(context, Access(f"ipc://{directory}/broker"))
    for number in range(100):
        dealer.send([b"%d" % number])
    got: list[bytes] = []
    sizes = []
    while len(got) < 100:
        batch = until(lambda: router.receive(7))
        sizes.append(len(batch))
        got += [message.frames[0] for message in batch]
    assert got == [b"%d" % number for number in range(100)]
    assert max(sizes) <= 7
    router.close()
    dealer.close()


def test_a_socket_of_another_process_or_a_file_is_never_taken_over(context: Context, directory: Path) -> None:
    address = f"ipc://{directory}/broker"
    router = RouterPort(context, address)
    with pytest.raises(ConfigurationError, match="another process listens"):
        RouterPort(context, address)
    dealer = DealerPort(context, Access(address))
    dealer.send([b"still here"])
    until(router.receive)
    dealer.close()
    router.close()
    assert list(directory.iterdir()) == []
    (directory / "broker").write_text("precious")
    with pytest.raises(ConfigurationError, match="no socket of ours"):
        RouterPort(context, address)
    assert (directory / "broker").read_text() == "precious"
    directory.chmod(0o755)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        RouterPort(context, f"ipc://{directory}/other")


def test_a_socket_left_by_a_dead_process_is_replaced(context: Context, directory: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(f"{directory}/broker")
    router = RouterPort(context, f"ipc://{directory}/broker")
    dealer = DealerPort(context, Access(f"ipc://{directory}/broker"))
    dealer.send([b"x"])
    until(router.receive)
    dealer.close()
    router.close()


def test_a_path_too_long_for_a_socket_is_named(context: Context, directory: Path) -> None:
    fits = f"{directory}/" + "x" * (107 - len(str(directory)) - 1)
    assert ipc_path("ipc://" + fits) == fits
    with pytest.raises(ConfigurationError, match="107"):
        RouterPort(context, f"ipc://{fits}x")
    with pytest.raises(ConfigurationError, match="107"):
        DealerPort(context, Access(f"ipc://{fits}x"))


def test_the_router_never_blocks_and_the_outbox_drains_in_order(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "OUTBOX_MESSAGES_MAX", 300)
    address = f"ipc://{directory}/broker"
    router = RouterPort(context, address)
    slow = new_socket(context, zmq.DEALER, address, -1)
    slow.connect(address)
    slow.send(b"hello")
    peer = until(router.receive)[0].peer
    other = DealerPort(context, Access(address))
    other.send([b"hello"])
    other_peer = until(router.receive)[0].peer

    sent = 0
    began = time.monotonic()
    while router.dropped < 10:  # nobody reads: pipes, then the kernel's buffers, then the outbox fill
        router.send(peer, [b"%d" % sent, b"x" * 4000])
        sent += 1
        assert sent < 100_000
    assert time.monotonic() - began < DEADLINE_S
    assert router.waiting(peer) == 300
    assert 0 < router.flush() < 1

    router.send(other_peer, [b"not in the way of others"])
    assert until(other.receive) == [[b"not in the way of others"]]

    got: list[int] = []

    def read() -> None:
        while slow.poll(0):
            got.append(int(slow.recv_multipart()[0]))

    until(lambda: not router.waiting(peer), read, router.flush)
    router.send(peer, [b"%d" % sent, b""])
    until(lambda: got and got[-1] == sent, read)
    assert got == [*range(sent - 10), sent]
    assert router.flush() == float("inf")
    for port in (router, other):
        port.close()


def test_outboxes_are_bounded_in_bytes_and_forgotten(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "OUTBOX_BYTES_MAX", 100_000)
    address = f"ipc://{directory}/broker"
    router = RouterPort(context, address)
    slow = new_socket(context, zmq.DEALER, address, -1)
    slow.connect(address)
    slow.send(b"hello")
    peer = until(router.receive)[0].peer
    while not router.waiting(peer):
        router.send(peer, [b"x" * 40_000])
    router.send(peer, [b"x" * 40_000])
    router.send(peer, [b"x" * 40_000])
    assert router.waiting(peer) == 2
    assert router.dropped == 1
    router.forget(peer)
    assert router.waiting(peer) == 0
    router.close()


def test_a_peer_that_is_gone_is_told(context: Context, directory: Path) -> None:
    lost: list[bytes] = []
    address = f"ipc://{directory}/broker"
    router = RouterPort(context, address, on_lost=lost.append)
    dealer = DealerPort(context, Access(address))
    dealer.send([b"hello"])
    peer = until(router.receive)[0].peer
    dealer.close()
    until(lambda: lost, lambda: router.send(peer, [b"there?"]))
    assert lost == [peer]
    router.close()


def test_a_peer_that_goes_while_messages_wait_is_told_and_the_loop_turns(
    context: Context, directory: Path
) -> None:
    lost: list[bytes] = []
    address = f"ipc://{directory}/broker"
    router = RouterPort(context, address, on_lost=lost.append)
    slow = new_socket(context, zmq.DEALER, address, -1)
    slow.connect(address)
    slow.send(b"hello")
    peer = until(router.receive)[0].peer
    while not router.waiting(peer):
        router.send(peer, [b"x" * 40_000])
    slow.close(linger=0)
    loop = Loop()
    loop.add_source(router.socket, lambda: None)
    loop.add_flusher(router.flush)
    until(lambda: lost, lambda: loop.turn(1.0))
    assert lost == [peer]
    assert not router.waiting(peer)
    loop.close()
    router.close()


def test_a_dealer_keeps_what_it_cannot_send_and_flushes_it(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "OUTBOX_MESSAGES_MAX", 50)
    address = f"ipc://{directory}/broker"
    dealer = DealerPort(context, Access(address))  # nobody listens yet
    sent = 0
    while dealer.dropped < 5:
        dealer.send([b"%d" % sent])
        sent += 1
        assert sent < 10_000
    assert dealer.unsent == 50
    router = RouterPort(context, address)
    got: list[int] = []
    until(
        lambda: len(got) == sent - 5,
        lambda: got.extend(int(message.frames[0]) for message in router.receive()),
        dealer.flush,
    )
    assert got == list(range(sent - 5))
    dealer.close()
    router.close()


def test_the_link_is_told_up_and_down_and_comes_back(context: Context, directory: Path) -> None:
    address = f"ipc://{directory}/broker"
    links: list[bool] = []
    router = RouterPort(context, address)
    dealer = DealerPort(context, Access(address), on_link=links.append)
    until(lambda: links == [True], dealer.watch_link)
    router.close()
    until(lambda: links == [True, False], dealer.watch_link)
    router = RouterPort(context, address)
    until(lambda: links == [True, False, True], dealer.watch_link)
    dealer.send([b"again"])
    until(router.receive)
    dealer.close()
    router.close()


def test_a_message_of_too_many_frames_costs_its_sender_the_connection(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "FRAMES_MAX", 10)
    address = f"ipc://{directory}/broker"
    router = RouterPort(context, address)
    links: list[bool] = []
    dealer = DealerPort(context, Access(address), on_link=links.append)
    dealer.send([b""] * 11)
    until(lambda: router.refused, lambda: router.receive())
    until(lambda: False in links, dealer.watch_link)
    dealer.send([b"x"] * 10)  # it may try again, and behave
    (got,) = until(router.receive)
    assert got.frames == [b"x"] * 10
    dealer.close()
    router.close()


def test_random_ids_do_not_start_where_they_started_before(directory: Path) -> None:
    seen = set()
    for number in range(3):
        context = new_context()
        router = RouterPort(context, f"ipc://{directory}/{number}")
        dealer = DealerPort(context, Access(router.address))
        dealer.send([b"x"])
        seen.add(until(router.receive)[0].peer)
        dealer.close()
        router.close()
        close_context(context)
    assert len(seen) == 3


# ---------------------------------------------------------------- TCP with CURVE


@pytest.mark.parametrize("role", ROLES)
def test_the_role_comes_from_the_key(
    context: Context, keys: ServerKeys, doorkeeper: Doorkeeper, role: str
) -> None:
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    dealer = DealerPort(context, tcp(router, keys, role))
    dealer.send([b"I am the admin", LARGE])
    (got,) = until(router.receive)
    assert got.role == role
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
    until(lambda: troubles, dealer.watch_link)
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


def test_a_wrong_server_key_is_told(context: Context, keys: ServerKeys, doorkeeper: Doorkeeper) -> None:
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    wrong = Access(router.address, "", KeyPair.fresh().public, keys.roles["client"])
    error, after_s = trouble_of(context, wrong)
    assert isinstance(error, AccessDenied)
    assert "another server key" in str(error)
    assert after_s < 5
    assert router.receive() == []
    router.close()


def test_what_is_no_broker_is_told(context: Context, keys: ServerKeys) -> None:
    plain = context.socket(zmq.ROUTER)
    port = plain.bind_to_random_port("tcp://127.0.0.1")
    error, after_s = trouble_of(
        context, Access(f"tcp://127.0.0.1:{port}", "", keys.server.public, keys.roles["client"])
    )
    assert isinstance(error, AccessDenied)
    assert after_s < 5


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
    dealer = DealerPort(context, tcp(router, keys, "worker"), troubles.append, links.append)
    until(lambda: links == [True], dealer.watch_link)
    router.close()
    until(lambda: links == [True, False], dealer.watch_link)
    router = RouterPort(context, address, keys.server)
    until(lambda: links == [True, False, True], dealer.watch_link)
    assert not troubles
    dealer.close()
    router.close()


# ---------------------------------------------------------------- notes


def test_notes_reach_who_subscribed_and_watching_is_told(context: Context, directory: Path) -> None:
    watched: list[bool] = []
    port = NotesPort(context, f"ipc://{directory}/notes", [b"farm", b"text"], on_watched=watched.append)
    assert not port.watched
    port.publish(b"farm", [b"nobody hears this"])
    access = Access("", f"ipc://{directory}/notes")
    everything = NotesReader(context, access)
    some = NotesReader(context, access, [b"text"])
    until(lambda: sum(port._subscribed.values()) == 2, port.read_subscriptions)
    assert watched == [True]
    port.publish(b"farm", [b"one"])
    port.publish(b"text", [b"two"])
    got: list[Any] = []
    until(lambda: len(got) == 2, lambda: got.extend(everything.receive()))
    assert got == [(b"farm", b"one"), (b"text", b"two")]
    assert until(some.receive) == [(b"text", b"two")]
    everything.close()
    some.close()
    until(lambda: watched == [True, False], port.read_subscriptions)
    port.close()


def test_subscriptions_to_anything_else_are_cut_off(context: Context, directory: Path) -> None:
    address = f"ipc://{directory}/notes"
    port = NotesPort(context, address, [b"farm"])
    greedy = context.socket(zmq.SUB)
    greedy.linger = 0
    monitor = greedy.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    greedy.connect(address)
    for number in range(1000):
        greedy.subscribe(b"%d" % number)
    until(lambda: monitor.poll(0), port.read_subscriptions)
    assert port.refused
    assert not port.watched
    assert set(port._subscribed) == {b"", b"farm"}
    greedy.disable_monitor()
    monitor.close()
    greedy.close()
    port.close()


def test_a_subscriber_that_does_not_read_holds_nobody_up(context: Context, directory: Path) -> None:
    port = NotesPort(context, f"ipc://{directory}/notes", [b"farm"])
    reader = NotesReader(context, Access("", f"ipc://{directory}/notes"))
    until(lambda: port.watched, port.read_subscriptions)
    began = time.monotonic()
    for _ in range(5000):
        port.publish(b"farm", [b"x" * 1000])
    assert time.monotonic() - began < DEADLINE_S / 2
    reader.close()
    port.close()


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


# ---------------------------------------------------------------- with the loop


def test_a_ping_pong_over_two_loops(context: Context, directory: Path) -> None:
    """Two threads, each with a loop: every message is answered, whichever way the descriptors behave."""
    rounds = 2000
    router = RouterPort(context, f"ipc://{directory}/broker")
    server = Loop()

    def answer() -> None:
        for message in router.receive():
            router.send(message.peer, message.frames)

    server.add_source(router.socket, answer)
    server.add_flusher(router.flush)
    thread = threading.Thread(target=server.run)
    thread.start()

    dealer = DealerPort(context, Access(f"ipc://{directory}/broker"))
    client = Loop()
    got: list[bytes] = []

    def take() -> None:
        for frames in dealer.receive():
            got.append(bytes(frames[0]))
            if len(got) == rounds:
                client.stop()
            else:
                dealer.send([b"%d" % len(got)])

    client.add_source(dealer.socket, take)
    client.add_source(dealer.monitor, dealer.watch_link)
    client.add_flusher(dealer.flush)
    dealer.send([b"0"])
    client.run()
    assert got == [b"%d" % number for number in range(rounds)]
    server.stop()
    thread.join(DEADLINE_S)
    client.close()
    server.close()
    dealer.close()
    router.close()
