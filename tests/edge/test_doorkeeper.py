"""The doorkeeper: whom it lets in, what its self-test finds, and how often a key may come."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
import zmq
from zmq.utils import z85

from zfarm.edge import zap
from zfarm.edge.doors import from_here
from zfarm.edge.refusals import Refusals
from zfarm.edge.security import (
    ServerKeys,
)
from zfarm.edge.sockets import Context, bind, new_socket
from zfarm.edge.zap import CALLS, Doorkeeper, Table, table_of


def test_the_self_test_passes_when_all_is_well_and_says_nothing(
    context: Context, keys: ServerKeys, caplog: pytest.LogCaptureFixture
) -> None:
    doorkeeper = Doorkeeper(context, table_of(keys.roles))
    doorkeeper.start()
    doorkeeper.self_test(keys)
    assert doorkeeper.alive
    roles_let_in = sum(map(len, zap.DOMAINS.values()))
    assert doorkeeper.accepted == roles_let_in
    assert doorkeeper.proven == len(zap.DOMAINS) * (len(keys.roles) + 1) - roles_let_in  # a stranger, too
    assert doorkeeper.denied == 0, "nobody else has come"
    assert not caplog.records
    doorkeeper.stop()
    doorkeeper.stop()
    assert not doorkeeper.alive


def test_the_self_test_fails_when_somebody_gets_in_who_must_not(
    context: Context, keys: ServerKeys, lax: Table
) -> None:
    doorkeeper = Doorkeeper(context, {})
    doorkeeper._table = lax
    doorkeeper.start()
    with pytest.raises(RuntimeError, match="stranger was let in"):
        doorkeeper.self_test(keys)
    doorkeeper.stop()


def test_a_port_at_which_a_stranger_gets_in_is_found(context: Context, keys: ServerKeys, lax: Table) -> None:
    doorkeeper = Doorkeeper(context, table_of(keys.roles))
    doorkeeper.start()
    port = new_socket(context, zmq.ROUTER, "tcp://", 1024)
    address = from_here(bind(port, "tcp://0.0.0.0:*", keys.server, "zfarm.clients"))

    doorkeeper.check_ports({address: CALLS}, keys.server.public)
    doorkeeper._table = lax
    with pytest.raises(RuntimeError, match=r"failed: stranger was let in"):
        doorkeeper.check_ports({address: CALLS}, keys.server.public)
    port.close(linger=0)
    doorkeeper.stop()


def test_the_self_test_fails_when_a_known_key_is_refused_and_passes_once_it_is_known(
    context: Context, keys: ServerKeys
) -> None:
    doorkeeper = Doorkeeper(context, table_of({"client": keys.roles["client"]}))
    doorkeeper.start()
    with pytest.raises(RuntimeError, match="worker was refused"):
        doorkeeper.self_test(keys)
    doorkeeper.replace(table_of(keys.roles))
    doorkeeper.self_test(keys)
    doorkeeper.stop()


def test_the_self_test_fails_when_nobody_answers(
    context: Context, keys: ServerKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zap, "TEST_S", 0.3)
    doorkeeper = Doorkeeper(context, table_of(keys.roles))
    with pytest.raises(RuntimeError, match="self-test"):
        doorkeeper.self_test(keys)
    doorkeeper.stop()


def test_two_doorkeepers_in_one_context_are_refused(
    context: Context, keys: ServerKeys, caplog: pytest.LogCaptureFixture
) -> None:
    first = Doorkeeper(context, table_of(keys.roles))
    first.start()
    with pytest.raises(RuntimeError, match="did not start"):
        Doorkeeper(context, {}).start()
    first.self_test(keys)
    first.stop()


@pytest.mark.parametrize(
    "request_frames",
    [
        [],
        [b"1.0"],
        [b"1.0", b"7", b"zfarm"],
        [b"1.0", b"7", b"zfarm.clients", b"1.2.3.4", b"", b"CURVE", b"k" * 32, b"more"],
        [b"9.9", b"7", b"zfarm.clients", b"1.2.3.4", b"", b"CURVE", b"k" * 32],
        [b"1.0", b"7", b"zfarm.clients", b"1.2.3.4", b"", b"NULL", b""],
        [b"1.0", b"7", b"", b"1.2.3.4", b"", b"CURVE", b"k" * 32],
        [b"1.0", b"7", b"\xff", b"\xff", b"\xff", b"CURVE", b"\xff" * 32],
    ],
)
def test_whatever_is_asked_the_doorkeeper_refuses_and_lives(
    context: Context, keys: ServerKeys, request_frames: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    doorkeeper = Doorkeeper(context, table_of(keys.roles))
    doorkeeper.start()
    asker = context.socket(zmq.REQ)
    asker.connect(zap.ENDPOINT)
    asker.send_multipart(request_frames or [b""])
    assert asker.poll(5000)
    version, number, status, _text, user, metadata = asker.recv_multipart()
    assert version == b"1.0"
    assert number == (request_frames[1] if len(request_frames) > 1 else b"")
    assert status in (b"400", b"500")
    assert (user, metadata) == (b"", b"")
    assert caplog.records
    doorkeeper.self_test(keys)
    asker.close()
    doorkeeper.stop()


def test_strangers_have_a_turn_together_and_those_who_are_known_need_not_wait_for_them(
    context: Context, keys: ServerKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    doorkeeper = Doorkeeper(context, table_of(keys.roles))
    doorkeeper._strangers = zap._Bucket(time.monotonic(), burst=10, per_s=2.0)
    answers = [
        doorkeeper._answer([b"1.0", b"7", b"zfarm.clients", b"1.2.3.4", b"", b"CURVE", bytes([n]) * 32])
        for n in range(30)
    ]
    at_once = [answer[2] for wait_s, answer in answers if not wait_s]
    later = [answer[2] for wait_s, answer in answers if wait_s]
    assert at_once.count(b"400") >= 10
    assert at_once.count(b"300") >= 10, "put off: they may come again"
    assert later
    assert set(later) == {b"400"}
    key = z85.decode(keys.roles["client"].public)
    wait_s, answer = doorkeeper._answer([b"1.0", b"7", b"zfarm.clients", b"1.2.3.4", b"", b"CURVE", key])
    assert (wait_s, answer[2]) == (0.0, b"200")
    doorkeeper.stop()


def test_refused_keys_are_a_line_for_each_address_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for n in range(1000):
        refusals.note(f"key{n}", "1.2.3.4", "zfarm", now=100.0 + n / 1000)
    refusals.note("other", "5.6.7.8", "zfarm", now=101.0)
    refusals.tell(now=101.0)
    assert [record.getMessage() for record in caplog.records] == [
        "refused key key0 from 1.2.3.4 at zfarm",
        "refused key other from 5.6.7.8 at zfarm",
    ]
    caplog.clear()
    refusals.tell(now=112.0)
    assert [record.getMessage() for record in caplog.records] == [
        "refused 999 more from 1.2.3.4, the last: key key999 from 1.2.3.4 at zfarm"
    ]
    caplog.clear()
    refusals.tell(now=123.0)
    assert not caplog.records
    assert not refusals._since, "nothing is kept of who does not come again"


def test_refusals_from_addresses_without_end_are_counted_together(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for n in range(10_000):
        refusals.note("key", f"fd00::{n:x}", "zfarm", now=100.0)
    assert len(caplog.records) <= 300
    assert len(refusals._since) <= 300
    caplog.clear()
    refusals.tell(now=111.0)
    (record,) = caplog.records
    assert "more from other addresses" in record.getMessage()


def test_a_table_that_raises_answers_500_and_lets_the_next_in(
    context: Context, keys: ServerKeys, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(dict[bytes, tuple[str, str]]):
        def get(self, key: bytes, default: Any = None) -> Any:
            raise ZeroDivisionError

    caplog.set_level(logging.ERROR)
    doorkeeper = Doorkeeper(context, {})
    assert doorkeeper._answer([b"1.0", b"7", b"zfarm", b"a", b"", b"CURVE", b"k"])[1][2] == b"400"
    doorkeeper._table = Broken()
    assert doorkeeper._answer([b"1.0", b"7", b"zfarm", b"a", b"", b"CURVE", b"k"])[1][2] == b"500"
    assert "could not be judged" in caplog.text
    doorkeeper.stop()
