"""Ports: real sockets over ipc; nothing blocks, nothing is taken over, and losses are told."""

from __future__ import annotations

import socket as sockets
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.edge.waiting import DEADLINE_S, until
from zfarm.edge import frames, ports, redial
from zfarm.edge.frames import KEEP_FROM
from zfarm.edge.loop import Loop
from zfarm.edge.notes import NotesPort, NotesReader
from zfarm.edge.ports import DealerPort, RouterPort
from zfarm.edge.security import Access
from zfarm.edge.sockets import Context, close_context, ipc_path, new_context, new_socket
from zfarm.errors import ConfigurationError

LARGE = b"L" * (KEEP_FROM + 1)


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
    monkeypatch.setattr(frames, "OUTBOX_MESSAGES_MAX", 300)
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
    while router.waiting(peer) < 300:  # nobody reads: pipes, then the kernel's buffers, then the outbox fill
        router.send(peer, [b"%d" % sent, b"x" * 4000])
        sent += 1
        assert sent < 100_000
    assert time.monotonic() - began < DEADLINE_S
    assert router.dropped == 0
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
    assert got == list(range(sent + 1))
    assert router.flush() == float("inf")
    for port in (router, other):
        port.close()


def test_a_peer_whose_outbox_is_full_is_lost_as_if_its_link_had_broken(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "OUTBOX_BYTES_MAX", 100_000)
    lost: list[bytes] = []
    address = f"ipc://{directory}/broker"
    router = RouterPort(context, address, on_lost=lost.append)
    slow = new_socket(context, zmq.DEALER, address, -1)
    slow.connect(address)
    slow.send(b"hello")
    peer = until(router.receive)[0].peer
    while not router.waiting(peer):
        router.send(peer, [b"x" * 40_000])
    router.send(peer, [b"x" * 40_000])
    assert router.waiting(peer) == 2
    assert not lost

    router.send(peer, [b"x" * 40_000])

    assert lost == [peer]
    assert router.waiting(peer) == 0
    assert router.dropped == 3
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
    # more than the queues between them can still take, or all might have left before the peer goes
    until(lambda: router.waiting(peer) > 1000, lambda: router.send(peer, [b"x" * 10_000]), router.flush)
    slow.close(linger=0)
    loop = Loop()
    loop.add_source(router.socket, lambda: None)
    loop.add_flusher(router.flush)
    until(lambda: lost, lambda: loop.turn(1.0))
    assert lost == [peer]
    assert not router.waiting(peer)
    loop.close()
    router.close()


def test_a_dealer_keeps_all_that_it_cannot_send_and_flushes_it(context: Context, directory: Path) -> None:
    address = f"ipc://{directory}/broker"
    dealer = DealerPort(context, Access(address))  # nobody listens yet
    for number in range(10_000):
        dealer.send([b"%d" % number])
    assert dealer.unsent
    router = RouterPort(context, address)
    got: list[int] = []
    until(
        lambda: len(got) == 10_000,
        lambda: got.extend(int(message.frames[0]) for message in router.receive()),
        dealer.flush,
    )
    assert got == list(range(10_000))
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


def test_a_message_of_too_many_bytes_costs_its_sender_the_connection_and_nothing_of_it_is_kept(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "MESSAGE_BYTES_MAX", 1_000_000)
    address = f"ipc://{directory}/broker"
    lost: list[bytes] = []
    links: list[bool] = []
    router = RouterPort(context, address, on_lost=lost.append)
    dealer = DealerPort(context, Access(address), on_link=links.append)
    dealer.send([b"header", *[bytes(400_000)] * 5])
    assert len(until(router.receive)[0].frames) == 6, "the three largest are limited each for itself"
    dealer.send([b"header", bytes(3_000_000), bytes(2_000_000), bytes(1_000_000), bytes(900_000)])
    (got,) = until(router.receive)
    dealer.send([b"header", *[bytes(400_000)] * 6, b"end"])
    until(lambda: router.refused, lambda: router.receive())
    until(lambda: False in links, dealer.watch_link)
    assert lost == [got.peer], "who is cut off says Hello again, and what was lost is found out"
    dealer.send([b"x", b"y"])
    (got,) = until(router.receive)
    assert got.frames == [b"x", b"y"]
    dealer.close()
    router.close()


def test_what_is_no_message_of_the_broker_makes_its_peer_dial_anew(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "MESSAGE_BYTES_MAX", 1_000)
    monkeypatch.setattr(redial, "REDIAL_S", (0.0, 0.01))
    address = f"ipc://{directory}/broker"
    links: list[bool] = []
    router = RouterPort(context, address)
    dealer = DealerPort(context, Access(address), on_link=links.append)
    dealer.send([b"hello"])
    (got,) = until(router.receive)
    until(lambda: links == [True], dealer.watch_link)
    router.send(got.peer, [bytes(1_000)] * 5)
    until(lambda: links == [True, False], dealer.receive)
    until(lambda: links == [True, False, True], dealer.flush, dealer.watch_link)
    dealer.close()
    router.close()


def test_a_link_that_was_given_up_before_it_was_known_to_be_up_is_dialled_anew(
    context: Context, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "MESSAGE_BYTES_MAX", 1_000)
    monkeypatch.setattr(redial, "REDIAL_S", (0.0, 0.01))
    router = RouterPort(context, f"ipc://{directory}/broker")
    links: list[bool] = []
    dealer = DealerPort(context, Access(router.address), on_link=links.append)
    dealer.send([b"hello"])
    (got,) = until(router.receive)
    router.send(got.peer, [bytes(1_000)] * 5)
    assert dealer.socket.poll(int(DEADLINE_S * 1_000))
    assert dealer.receive() == []
    dealer.watch_link()  # what it reads is of the link that was given up
    assert links == []
    until(lambda: links == [True], dealer.flush, dealer.watch_link)
    dealer.send([b"again"])
    (got,) = until(router.receive, dealer.flush)
    assert got.frames == [b"again"]
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
        for got_frames in dealer.receive():
            got.append(bytes(got_frames[0]))
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
