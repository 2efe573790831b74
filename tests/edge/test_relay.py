"""The relay of items: only workers publish, a client gets the items of its own sessions alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.edge.relaying import mine_of, reader_of, relay_on_tcp, writer_of
from tests.edge.waiting import until
from zfarm.edge.items import ItemsReader, ItemsWriter, stream_address
from zfarm.edge.relay import Relay
from zfarm.edge.security import ServerKeys
from zfarm.edge.sockets import Context
from zfarm.edge.zap import Doorkeeper


@pytest.fixture
def relay(context: Context, keys: ServerKeys, doorkeeper: Doorkeeper) -> Iterator[Relay]:
    relay = relay_on_tcp(context, keys)
    yield relay
    relay.close()


def is_up(peer: ItemsReader | ItemsWriter) -> bool:
    peer.watch_link()
    return peer.up


def test_items_reach_the_session_that_they_are_for_and_no_other(
    context: Context, keys: ServerKeys, relay: Relay
) -> None:
    writer = writer_of(context, relay.emits_address, keys)
    mine = reader_of(context, relay, keys, f"{mine_of(keys)}/mine")
    other = reader_of(context, relay, keys, f"{mine_of(keys)}/other")
    until(lambda: is_up(writer) and is_up(mine) and is_up(other))
    got: list[object] = []

    def arrived() -> bool:
        writer.publish(f"{mine_of(keys)}/mine", [b"header", b"items"])
        writer.publish(f"{mine_of(keys)}/mine and more", [b"header", b"not these"])
        got.extend(mine.receive())
        return bool(got)

    until(arrived)
    assert {tuple(map(bytes, frames)) for frames in got} == {(b"header", b"items")}  # type: ignore[call-overload]
    assert other.receive() == []
    assert relay.refused == 0
    for peer in (writer, mine, other):
        peer.close()


@pytest.mark.parametrize("topic", ["client:somebody/session", "client:client/session", "{}", "", "{}/a\0b"])
def test_a_topic_that_is_not_ones_own_is_refused(
    context: Context, keys: ServerKeys, relay: Relay, topic: str
) -> None:
    reader = reader_of(context, relay, keys, topic.format(mine_of(keys)))
    until(lambda: relay.refused)
    reader.close()


def test_a_client_cannot_publish_and_a_worker_cannot_subscribe(
    context: Context, keys: ServerKeys, relay: Relay, doorkeeper: Doorkeeper
) -> None:
    denied = doorkeeper.denied
    writer = writer_of(context, relay.emits_address, keys, "client")
    reader = reader_of(context, relay, keys, "worker:worker/session", "worker")
    until(lambda: doorkeeper.denied >= denied + 2)

    assert not is_up(writer)
    assert not is_up(reader)
    writer.close()
    reader.close()


def test_whose_key_is_revoked_gets_nothing_more(context: Context, keys: ServerKeys, relay: Relay) -> None:
    writer = writer_of(context, relay.emits_address, keys)
    reader = reader_of(context, relay, keys, f"{mine_of(keys)}/mine")
    until(lambda: is_up(writer) and is_up(reader))

    def arrived() -> bool:
        writer.publish(f"{mine_of(keys)}/mine", [b"header"])
        return bool(reader.receive())

    until(arrived)
    relay.expel(frozenset())
    until(lambda: not is_up(reader))
    refused = relay.refused
    until(
        lambda: relay.refused > refused,
        lambda: writer.publish(f"{mine_of(keys)}/mine", [b"header"]),
    )
    writer.close()
    reader.close()


def test_a_broker_says_a_port_where_the_host_is_known() -> None:
    assert stream_address("tcp://head:5555", ":6001") == "tcp://head:6001"
    assert stream_address("ipc:///run/a/control", "ipc:///run/a/items") == "ipc:///run/a/items"
