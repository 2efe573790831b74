"""Keys of one's own: who is enrolled gets in, who is revoked is out, and files say so whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.waiting import until
from zfarm.edge import gate as gates
from zfarm.edge import zap
from zfarm.edge.doors import plan
from zfarm.edge.gate import Gate, Unsafe
from zfarm.edge.loop import Loop
from zfarm.edge.notes import NotesPort, NotesReader
from zfarm.edge.ports import DealerPort, RouterPort
from zfarm.edge.principals import enrol, keys_path, known, members, new_principal, revoke
from zfarm.edge.security import (
    Access,
    KeyPair,
    ServerKeys,
    fingerprint,
    load_connection,
    new_connection,
    write_connection,
)
from zfarm.edge.sockets import Context
from zfarm.edge.zap import Table
from zfarm.errors import ConfigurationError


@pytest.fixture
def path(directory: Path) -> Path:
    """The keys file of a broker."""
    ServerKeys.load_or_create(directory / "farm.keys")
    return directory / "farm.keys"


@pytest.fixture
def broker(path: Path) -> Path:
    """The connection file of a broker."""
    file = path.with_suffix(".json")
    keys = ServerKeys.load(path)
    write_connection(file, new_connection("farm", plan(["tcp://127.0.0.1:5555"], {}, None), 5560, keys))
    return file


# ---------------------------------------------------------------- the keys file


def test_a_new_principal_gets_a_file_with_its_own_key_alone(broker: Path, directory: Path) -> None:
    before = os.umask(0)
    try:
        new_principal(broker, "alice", "client", directory / "alice.json")
    finally:
        os.umask(before)
    mine, keys = load_connection(directory / "alice.json"), ServerKeys.load(keys_path(broker))
    assert set(mine.keys) == {"client"}
    assert mine.server == keys.server.public
    assert mine.addresses == load_connection(broker).addresses
    assert [(one.name, one.role, one.public) for one in keys.principals] == [
        ("alice", "client", mine.keys["client"].public)
    ]
    assert mine.keys["client"].secret not in keys_path(broker).read_text()
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert mine.keys["client"].secret not in repr([mine, keys])


def test_one_who_has_a_key_stays_a_client_and_may_look(broker: Path, directory: Path) -> None:
    mine = new_principal(broker, "alice", "client", directory / "alice.json")
    assert mine.access("monitor").keys == mine.keys["client"]
    with pytest.raises(ConfigurationError, match="no worker key"):
        mine.access("worker")
    admin = new_principal(broker, "root", "admin", directory / "root.json")
    assert admin.access("client").keys == admin.access("monitor").keys == admin.keys["admin"]


@pytest.mark.parametrize("name", ["", "a:b", "../a", "a b", "x" * 65, "client", "worker", "a\0", "é", "-a"])
def test_what_is_no_name_is_refused(path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="no name for a key"):
        enrol(path, name, "client")
    assert ServerKeys.load(path).principals == ()


def test_a_name_is_given_once_and_a_file_is_never_written_over(broker: Path, directory: Path) -> None:
    new_principal(broker, "alice", "client", directory / "alice.json")
    with pytest.raises(ConfigurationError, match="there is a key called 'alice'"):
        new_principal(broker, "alice", "worker", directory / "other.json")
    assert not (directory / "other.json").exists()
    with pytest.raises(ConfigurationError, match="is there already"):
        new_principal(broker, "bob", "client", directory / "alice.json")
    (directory / "open").mkdir()
    (directory / "open").chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        new_principal(broker, "bob", "client", directory / "open" / "bob.json")
    assert [one.name for one in ServerKeys.load(keys_path(broker)).principals] == ["alice"]


def test_keys_are_revoked_by_name_and_by_fingerprint(path: Path) -> None:
    alice, bob = enrol(path, "alice", "client"), enrol(path, "bob", "worker")
    with pytest.raises(ConfigurationError, match="no key called"):
        revoke(path, "carol")
    with pytest.raises(ConfigurationError, match="no key called"):
        revoke(path, fingerprint(bob.public)[:7])
    assert revoke(path, fingerprint(bob.public)[:8]).name == "bob"
    assert revoke(path, "alice").fingerprint == fingerprint(alice.public)
    assert ServerKeys.load(path).principals == ()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_shared_key_of_a_role_is_replaced_when_it_is_revoked(path: Path) -> None:
    before = ServerKeys.load(path)
    revoke(path, "client")
    after = ServerKeys.load(path)
    assert after.roles["client"] != before.roles["client"]
    assert after.roles["worker"] == before.roles["worker"]
    assert after.server == before.server
    assert len(known(after)) == 4


def test_many_who_change_the_file_at_once_lose_nothing(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from zfarm.edge.principals import enrol\n"
        "for n in range(10): enrol(Path(sys.argv[1]), f'{sys.argv[2]}{n}', 'client')"
    )
    runs = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "abc"]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    names = {one.name for one in ServerKeys.load(path).principals}
    assert names == {f"{name}{n}" for name in "abc" for n in range(10)}


def test_without_a_keys_file_nobody_is_let_in(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no keys file"):
        enrol(directory / "none.keys", "alice", "client")
    assert not (directory / "none.keys").exists()


# ---------------------------------------------------------------- a gate that follows it


class Farm:
    """A gate, a control socket and a notes socket in one loop, as a broker has them."""

    def __init__(self, context: Context, path: Path) -> None:
        self.loop = Loop()
        self.context = context
        self.gate = Gate(context, path)
        self.lost: list[bytes] = []
        self.heard: list[tuple[str, bytes]] = []
        self.router = RouterPort(context, "tcp://127.0.0.1:*", self.gate.keys.server, self.lost.append)
        self.notes = NotesPort(context, "tcp://127.0.0.1:*", [b"farm"], self.gate.keys.server)
        self.loop.add_source(self.router.socket, self._receive)
        self.loop.add_source(self.notes.socket, self.notes.read_subscriptions)
        self.gate.watch(self.loop, self._keys)
        self.changes = 0

    def _keys(self, keys: ServerKeys) -> None:
        self.changes += 1
        self.router.expel(members(keys))
        self.notes.expel(members(keys))

    def _receive(self) -> None:
        self.heard += [(got.principal, bytes(got.frames[0])) for got in self.router.receive()]

    def access(self, pair: KeyPair) -> Access:
        return Access(self.router.address, self.notes.address, self.gate.keys.server.public, pair)

    def turn(self) -> None:
        self.loop.turn(0.01)

    def close(self) -> None:
        self.router.close()
        self.notes.close()
        self.gate.close()
        self.loop.close()


@pytest.fixture
def farm(context: Context, path: Path) -> Iterator[Farm]:
    farm = Farm(context, path)
    yield farm
    farm.close()


def test_who_is_enrolled_gets_in_at_once_under_its_name(farm: Farm, path: Path) -> None:
    pair = enrol(path, "alice", "client")
    until(lambda: farm.changes, farm.turn)
    dealer = DealerPort(farm.context, farm.access(pair))
    dealer.send([b"hello"])
    until(lambda: farm.heard, farm.turn)
    assert farm.heard == [(f"client:alice:{fingerprint(pair.public)}", b"hello")]
    dealer.close()


def test_who_dials_as_soon_as_it_is_enrolled_gets_in(
    farm: Farm, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by one that dialled before the broker had looked at the keys: who is refused stays out."""
    enrol(path, "first", "client")
    until(lambda: farm.changes, farm.turn)
    monkeypatch.setattr(farm.loop, "_timers", [])  # nobody looks at the file by itself any more
    denied = farm.gate.door.denied
    pair = enrol(path, "alice", "client")
    dealer = DealerPort(farm.context, farm.access(pair))
    dealer.send([b"hello"])
    until(lambda: farm.heard, farm.turn)
    assert farm.heard == [(f"client:alice:{fingerprint(pair.public)}", b"hello")]
    assert (farm.changes, farm.gate.door.denied, farm.router.refused) == (2, denied, 0)
    dealer.close()


def test_who_is_revoked_is_disconnected_though_silent_and_comes_in_no_more(farm: Farm, path: Path) -> None:
    alice, bob = enrol(path, "alice", "client"), enrol(path, "bob", "client")
    until(lambda: len(farm.gate.keys.principals) == 2, farm.turn)
    troubles: list[Exception] = []
    links: list[bool] = []
    out = DealerPort(farm.context, farm.access(alice), troubles.append, links.append)
    stays = DealerPort(farm.context, farm.access(bob))
    out.send([b"hello"])
    stays.send([b"hello"])
    until(lambda: len(farm.heard) == 2, farm.turn, out.watch_link)
    revoke(path, "alice")
    until(lambda: troubles, farm.turn, out.watch_link)
    assert links == [True, False]
    assert "does not know our key" in str(troubles[0])
    assert len(farm.lost) == 1
    out.send([b"again"])
    stays.send([b"again"])
    until(lambda: len(farm.heard) == 3, farm.turn)
    assert farm.heard[-1][0].startswith("client:bob:")
    out.close()
    stays.close()


def test_one_who_was_let_in_and_spoke_only_after_its_key_was_revoked_is_not_heard(
    farm: Farm, path: Path
) -> None:
    pair = enrol(path, "alice", "client")
    until(lambda: farm.changes, farm.turn)
    dealer = DealerPort(farm.context, farm.access(pair))
    until(lambda: dealer.up, farm.turn, dealer.watch_link)
    revoke(path, "alice")
    until(lambda: farm.changes == 2, farm.turn)
    dealer.send([b"hello"])
    until(lambda: farm.router.refused, farm.turn)
    until(lambda: not dealer.up, farm.turn, dealer.watch_link)
    assert farm.heard == []
    dealer.close()


def test_a_watcher_whose_key_is_revoked_gets_no_more_notes(farm: Farm, path: Path) -> None:
    alice, bob = enrol(path, "alice", "monitor"), enrol(path, "bob", "monitor")
    until(lambda: len(farm.gate.keys.principals) == 2, farm.turn)
    out, stays = (NotesReader(farm.context, farm.access(pair)) for pair in (alice, bob))

    def publish() -> None:
        farm.turn()
        farm.notes.publish(b"farm", [b"note"])

    until(out.receive, publish)
    until(stays.receive, publish)
    revoke(path, "alice")
    until(lambda: farm.changes >= 2 and len(farm.gate.keys.principals) == 1, farm.turn)
    until(lambda: not out.receive(), farm.turn)
    got = 0
    while got < 20:
        publish()
        got += len(stays.receive())
        assert out.receive() == []
    out.close()
    stays.close()


def test_a_client_gets_no_notes(farm: Farm) -> None:
    reader = NotesReader(farm.context, farm.access(farm.gate.keys.roles["client"]))
    denied = farm.gate.door.denied
    until(lambda: farm.gate.door.denied > denied, farm.turn)
    assert not farm.notes.watched
    reader.close()


def test_a_keys_file_that_cannot_be_read_changes_nothing(
    farm: Farm, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = farm.gate.keys
    whole = path.read_bytes()
    for damage in (lambda: path.write_bytes(whole[:50]), lambda: path.chmod(0o644), path.unlink):
        caplog.clear()
        damage()
        until(lambda: "the keys stay as they were" in caplog.text, farm.turn)
    write = ServerKeys.fresh()
    caplog.clear()
    write.save(path)
    until(lambda: "another broker's keys" in caplog.text, farm.turn)
    assert farm.gate.keys is before
    assert farm.changes == 0


def test_a_canary_that_gets_in_ends_the_broker(
    farm: Farm, lax: Table, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    farm.gate._send_canary(farm.loop)
    canary = farm.gate._canary
    assert canary is not None
    until(lambda: not canary.is_alive(), farm.turn)
    monkeypatch.setattr(farm.gate.door, "_table", lax)
    farm.gate._send_canary(farm.loop)
    assert [thread.name for thread in threading.enumerate()].count("zfarm-canary") == 1

    def forever() -> None:
        while True:
            farm.turn()

    with pytest.raises(Unsafe, match="stranger was let in"):
        forever()


def test_a_canary_that_is_not_answered_for_long_ends_the_broker_and_one_alone_does_not(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(zap, "knock", lambda *_: None)
    for _ in range(gates.UNANSWERED_MAX - 1):
        farm.gate._knock(farm.loop)
    farm.turn()
    assert "stranger was not answered" in caplog.text
    farm.gate._knock(farm.loop)
    with pytest.raises(Unsafe, match="not answered"):
        farm.turn()


def test_a_doorkeeper_that_stops_ends_the_broker(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    farm.gate.door.stop()
    with pytest.raises(Unsafe, match="has stopped"):
        until(lambda: False, farm.turn)


def test_a_doorkeeper_that_is_stuck_ends_the_broker(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr(gates, "STUCK_LOOKS", 2)
    monkeypatch.setattr(farm.gate.door._refusals, "tell", lambda now: free.wait())
    try:
        with pytest.raises(Unsafe, match="has stopped"):
            until(lambda: False, farm.turn)
    finally:
        free.set()


def test_a_broker_that_was_stopped_for_long_does_not_take_its_doorkeeper_for_stuck(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by SIGSTOP for some seconds: of all threads that go on then, the loop may be the first."""
    now = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now + 3600)
        farm.gate._check_alive()


def test_a_second_gate_in_one_context_is_unsafe(farm: Farm, path: Path) -> None:
    with pytest.raises(Unsafe, match="did not start"):
        Gate(farm.context, path)
    assert gates.LOOK_S < 1
