"""Peers with a valid key who want more than it allows, and strangers: an honest client notices nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import zmq

import zfarm
from tests.face.processes import TcpFarm, wait_until
from tests.integration.hostile import Raw, hello, join, submit, versions
from zfarm.edge import wire
from zfarm.edge.principals import enrol, keys_path, new_principal, revoke
from zfarm.edge.security import ROLES, KeyPair, Role, load_connection
from zfarm.edge.tokens import read_token
from zfarm.errors import AccessDenied
from zfarm.messages import (
    REFUSED,
    Ask,
    Attach,
    Attached,
    Beat,
    Began,
    Cancel,
    Ended,
    Forget,
    Leave,
    Look,
    Picture,
    Refused,
    Report,
    Reports,
    Return,
    Stranger,
    Unknown,
    Welcome,
)
from zfarm.settings import settings

pytestmark = pytest.mark.timeout(120)


def admit(farm: TcpFarm, name: str, role: Role) -> Path:
    """A principal's connection file; the broker knows the key once this returns."""
    file = farm.directory / f"{name}.json"
    new_principal(farm.connection, name, role, file)
    wait_until(lambda: _reaches(file, role), f"{name} to be let in")
    return file


def _reaches(file: Path, role: Role) -> bool:
    with Raw(file, role) as peer:
        try:
            peer.say(join("probe") if role == "worker" else Look())
        except zmq.Again:  # the key was refused before that
            return False
        answered = peer.hear(0.4) is not None
        if role == "worker" and answered:
            peer.say(Leave())
        return answered


# ---------------------------------------------------------------- whose tasks they are


def test_a_session_of_another_is_as_unknown_as_one_that_never_was(farm: TcpFarm) -> None:
    farm.start_broker()
    files = [admit(farm, name, "client") for name in ("alice", "mallory")]
    with Raw(files[0], "client") as alice, Raw(files[1], "client") as mallory:
        alice.say(hello("secret", job="nightly"))
        alice.hear_a(Welcome)
        alice.say(*submit(1, 2, 3))
        alice.say(Ask([1, 2, 3]))

        for session in ("secret", "never-was"):
            mallory.say(hello(session))
            mallory.hear_a(Welcome)
            mallory.say(Ask([1, 2, 3]))
            assert mallory.hear_a(Unknown).tasks == [1, 2, 3]
            mallory.say(Cancel([1, 2, 3]))
            assert mallory.hear_a(Unknown).tasks == [1, 2, 3]
            mallory.say(Forget([1, 2, 3]))
        for job in ("nightly", "never-was"):
            mallory.say(Attach(job, versions(), "late"))
            text = mallory.hear_a(Refused).text
            assert text.replace(job, "X") == "this farm has no job 'X'; there is none"

        alice.say(Attach("nightly", versions(), "late"))
        attached = alice.hear_a(Attached)
        assert (attached.session, [task.task for task in attached.tasks]) == ("secret", [1, 2, 3])
        alice.say(hello("secret", job="nightly"))
        assert "taken over" in alice.hear_a(Refused).text, "who had the job before"
        alice.say(hello("secret", job="nightly", life="late"))
        alice.hear_a(Welcome)
        alice.say(Cancel([1]))
        assert [outcome.task for outcome in alice.hear_a(Ended).outcomes] == [1]


def test_a_client_sees_its_own_tasks_and_a_monitor_sees_all(farm: TcpFarm) -> None:
    farm.start_broker()
    files = [admit(farm, name, "client") for name in ("alice", "mallory")]
    with Raw(files[0], "client") as alice, Raw(files[1], "client") as mallory:
        for peer, name in ((alice, "hers"), (mallory, "his")):
            peer.say(hello("s"))
            peer.hear_a(Welcome)
            peer.say(*submit(1, 2, name=name))
            peer.say(Look())
            picture = peer.hear_a(Picture)
            assert picture.queue == {name: 2}
            assert len(picture.clients) == 1
    assert {row["call"] for row in farm.status()["queue"]} == {"hers", "his"}


def test_a_worker_cannot_speak_as_a_client_nor_a_client_as_a_worker_nor_a_monitor_at_all(
    farm: TcpFarm,
) -> None:
    farm.start_broker()
    words = {
        "client": [join("w"), Beat(seen=0, held=[1], room=1), Reports(reports=[]), Return([1]), Leave()],
        "worker": [hello("c"), Cancel([1]), Ask([1]), Forget([1]), Look(), Attach("j", versions(), "x")],
        "monitor": [hello("c"), Cancel([1]), Ask([1]), join("w"), Leave()],
    }
    for role, messages in words.items():
        for message in messages:
            with Raw(farm.connection, role) as peer:
                peer.say(message)
                refused = peer.hear_a(Refused)
            assert refused.code == "AccessDenied"
            assert refused.text == f"the key of a {role} does not allow {type(message).__name__}"
    status = farm.status()
    assert (status["workers"], status["clients"]) == ([], [])


def test_forged_leases_change_nothing(farm: TcpFarm) -> None:
    farm.start_broker()
    farm.start_worker(1)
    farm.wait_slots(1)
    file = admit(farm, "mallory", "worker")
    release = farm.directory / "release"
    with zfarm.Executor(farm.connection) as client, Raw(file, "worker") as mallory:
        held = client.submit(_hold, str(release))
        wait_until(lambda: farm.status()["tasks"]["running"], "the call to run")
        mallory.say(join("mallory", slots=1))
        mallory.hear_a(Welcome)
        epoch = farm.status()["brokers"][0]["epoch"]
        forged = [epoch << 32 | number for number in range(1, 200)]
        mallory.say(Reports(reports=[Report(lease=n, kind=0) for n in forged]), [b"forged"] * len(forged))
        mallory.say(Return(forged))
        mallory.say(Began(forged))
        mallory.say(Beat(seen=0, held=forged, room=0))
        mallory.say(Leave())
        mallory.say(Beat(seen=0, held=[], room=0))
        mallory.hear_a(Stranger)
        assert not held.done()
        release.touch()
        assert held.result(20) == "mine"
    assert farm.status()["tasks"]["values"] == 1


def _hold(release: str) -> str:
    import time as clock

    while not os.path.exists(release):
        clock.sleep(0.01)
    return "mine"


def test_a_submit_said_a_thousand_times_is_one_task(farm: TcpFarm) -> None:
    farm.start_broker()
    file = admit(farm, "mallory", "client")
    with Raw(file, "client") as mallory:
        mallory.say(hello("s"))
        mallory.hear_a(Welcome)
        for _ in range(1000):
            mallory.say(*submit(1))
        mallory.say(Ask([2]))
        mallory.hear_a(Unknown)
        assert farm.status()["tasks"]["queued"] == 1


# ---------------------------------------------------------------- keys that come and go


def test_a_revoked_client_is_out_and_an_honest_one_stays(farm: TcpFarm) -> None:
    broker = farm.start_broker()
    farm.start_worker(1)
    farm.wait_slots(1)
    files = [admit(farm, name, "client") for name in ("alice", "mallory")]
    with zfarm.Executor(files[0]) as alice, zfarm.Executor(files[1]) as mallory:
        assert mallory.submit(pow, 2, 3).result(20) == 8
        revoke(keys_path(farm.connection), "mallory")
        wait_until(lambda: _ends(mallory), "mallory to be told")
        assert alice.submit(pow, 2, 5).result(20) == 32
    with pytest.raises(AccessDenied):
        zfarm.Executor(files[1])
    assert broker.process.poll() is None


def _ends(executor: zfarm.Executor) -> bool:
    """Whether this executor has heard that it may no more."""
    try:
        executor.submit(pow, 2, 4).result(20)
    except AccessDenied:
        return True
    return False


def test_the_key_command_makes_lists_and_revokes(farm: TcpFarm) -> None:
    farm.start_broker()
    options = ("--connection", str(farm.connection))
    out = farm.directory / "alice.json"
    made = farm.run("key", "new", "alice", "--role", "client", "--out", str(out), *options)
    assert made.returncode == 0, made.stderr
    connection = json.loads(out.read_text())
    assert list(connection["keys"]) == ["client"]
    assert connection["keys"]["client"]["secret"] not in made.stdout + made.stderr
    listed = farm.run("key", "list", *options).stdout
    assert [line.split()[:2] for line in listed.splitlines()[1:]] == [
        ["client"] * 2, ["worker"] * 2, ["admin"] * 2, ["monitor"] * 2, ["alice", "client"],
    ]  # fmt: skip
    assert farm.run("status", "--connection", str(out)).returncode == 0
    assert farm.run("key", "revoke", "alice", *options).returncode == 0
    began = time.monotonic()
    wait_until(lambda: farm.run("status", "--connection", str(out)).returncode == 77, "alice to be out")
    assert time.monotonic() - began < 10
    again = farm.run("key", "revoke", "alice", *options)
    assert (again.returncode, "no key called" in again.stderr) == (78, True)


def test_a_worker_joins_with_one_line(farm: TcpFarm) -> None:
    farm.start_broker()
    made = farm.run("token", "--connection", str(farm.connection))
    assert made.returncode == 0, made.stderr
    line = made.stdout.strip()
    assert line.startswith("zfarm-join:")
    assert "\n" not in line
    file = farm.directory / "token"
    file.touch(0o600)
    file.write_text(made.stdout)
    worker = farm.start("worker", "--slots", "1", "--token-file", str(file))
    farm.wait_slots(1)
    with zfarm.Executor(farm.connection) as client:
        assert client.submit(pow, 2, 3).result(20) == 8
    access = read_token(line)
    assert access.keys is not None
    assert access.keys.secret not in repr(access) + worker.said

    revoke(keys_path(farm.connection), access.name)
    assert worker.wait() == 77
    farm.wait_slots(0)
    file.chmod(0o644)
    loose = farm.run("worker", "--token-file", str(file))
    assert (loose.returncode, "chmod 600" in loose.stderr) == (78, True)
    damaged = farm.run("worker", "--token-file", "-")
    assert (damaged.returncode, "this is no token" in damaged.stderr) == (78, True)


def test_the_shared_key_of_a_role_can_be_changed_while_the_broker_runs(farm: TcpFarm) -> None:
    farm.start_broker()
    before = farm.connection.read_bytes()
    revoke(keys_path(farm.connection), "client")
    wait_until(lambda: farm.connection.read_bytes() != before, "a fresh connection file")
    assert _reaches(farm.connection, "client")
    old = farm.directory / "old.json"
    old.touch(0o600)
    old.write_bytes(before)
    assert not _reaches(old, "client")


def test_keys_and_files_of_a_principal_outlive_the_broker(farm: TcpFarm) -> None:
    first = farm.start_broker()
    file = admit(farm, "alice", "client")
    port = farm.port
    first.process.kill()
    first.wait()
    enrol(keys_path(farm.connection), "while-it-is-away", "client")
    farm.start_broker(port=port)
    assert _reaches(file, "client")


# ---------------------------------------------------------------- bad manners


def refusals(farm: TcpFarm) -> dict[str, int]:
    counted: dict[str, int] = farm.status()["refusals"]
    return counted


def test_garbage_and_floods_of_frames_harm_nobody_else(farm: TcpFarm) -> None:
    broker = farm.start_broker()
    farm.start_worker(2)
    farm.wait_slots(2)
    file = admit(farm, "mallory", "client")
    rng = random.Random(1)
    sound = [bytes(frame) for frame in wire.encode(*submit(1, 2))]
    with zfarm.Executor(farm.connection) as client:
        for round_ in range(30):
            with Raw(file, "client") as mallory:
                mallory.send(*[b""] * 5000)
                for _ in range(20):
                    mallory.send(*(rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 6))))
                    flipped = bytearray(rng.choice(sound))
                    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
                    mallory.send(bytes(flipped), *sound[1:])
                mallory.send(b"")
                assert list(client.map(abs, range(round_, round_ + 20))) == list(range(round_, round_ + 20))
        counted = refusals(farm)
        assert counted["malformed"] > 10
        assert counted["kicked"] + counted["senders"] > 10
    assert broker.process.poll() is None
    assert "Traceback" not in broker.said


def test_who_says_too_much_that_is_wrong_is_disconnected(farm: TcpFarm) -> None:
    broker = farm.start_broker()
    with Raw(farm.connection, "client") as mallory:
        for _ in range(settings.faults_max - 1):
            mallory.send(b"nonsense")
            assert mallory.hear_a(Refused).code == "ProtocolError"
        mallory.send(b"nonsense")
        wait_until(lambda: "disconnected client:client:" in broker.said, "the end of patience")

        def answered() -> bool:
            mallory.say(Look())  # what was said while the connection ended is lost
            return mallory.hear(0.5) is not None

        wait_until(answered, "a new connection, which the library makes by itself")
    assert refusals(farm)["kicked"] == 1


def test_nobody_chooses_a_routing_id(farm: TcpFarm) -> None:
    farm.start_broker()
    for identity in (b"worker", b"x" * 255, b"\x01abcd"):
        with Raw(farm.connection, "client", identity=identity) as mallory:
            before = refusals(farm)["senders"]
            mallory.say(hello("s"))
            wait_until(lambda before=before: refusals(farm)["senders"] > before, "a refusal")  # type: ignore[misc]
    assert farm.status()["clients"] == []


def test_a_client_beyond_its_limit_is_refused_and_another_is_not(farm: TcpFarm) -> None:
    farm.variables["ZFARM_CLIENT_TASKS_MAX"] = "50"
    farm.variables["ZFARM_CLIENT_BYTES_MAX"] = "5000"
    farm.start_broker()
    own = admit(farm, "alice", "client")
    with (
        Raw(farm.connection, "client") as mallory,
        Raw(farm.connection, "client") as accomplice,
        Raw(own, "client") as alice,
    ):
        for peer, name in ((mallory, "mallory"), (accomplice, "accomplice"), (alice, "alice")):
            peer.say(hello(name))
            peer.hear_a(Welcome)
        mallory.say(*submit(*range(80)))
        refused = mallory.hear_a(Ended).outcomes
        assert [one.task for one in refused] == list(range(50, 80))
        assert {one.kind for one in refused} == {REFUSED}
        assert "ZFARM_CLIENT_TASKS_MAX" in refused[0].deaths[0].text
        accomplice.say(*submit(1))
        (refused,) = accomplice.hear_a(Ended).outcomes
        assert "2 clients with this key have 50 tasks" in refused.deaths[0].text
        alice.say(*submit(*range(10), body=b"x" * 1000))
        refused = alice.hear_a(Ended).outcomes
        assert [one.task for one in refused] == list(range(5, 10))
        assert "ZFARM_CLIENT_BYTES_MAX" in refused[0].deaths[0].text
        assert refusals(farm)["tasks"] == 36


def test_strangers_and_half_greetings_by_the_hundred_keep_nobody_out(farm: TcpFarm) -> None:
    broker = farm.start_broker()
    farm.start_worker(1)
    farm.wait_slots(1)
    known = load_connection(farm.connection)
    stranger = replace(known.access("client"), keys=KeyPair.fresh())
    wrong = replace(known.access("client"), server=KeyPair.fresh().public)
    bare = replace(known.access("client"), keys=None)
    opened = len(psutil.Process(broker.pid).open_files()) + psutil.Process(broker.pid).num_fds()
    links = []
    try:
        for number in range(400):
            link = socket.create_connection(("127.0.0.1", farm.port))
            link.sendall(
                [b"", b"\xff", b"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE", b"GET / HTTP/1.0\r\n\r\n"][number % 4]
            )
            links.append(link)
        with (
            Raw(farm.connection, "client", stranger) as one,
            Raw(farm.connection, "client", wrong) as two,
            Raw(farm.connection, "client", bare, plain=True) as three,
        ):
            began = time.monotonic()
            with zfarm.Executor(farm.connection) as client:
                assert client.submit(pow, 2, 3).result(20) == 8
            assert time.monotonic() - began < 5
            assert all(peer.hear(0.1) is None for peer in (one, two, three))
    finally:
        for link in links:
            link.close()
    process = psutil.Process(broker.pid)
    wait_until(lambda: process.num_fds() < opened + 20, "descriptors to come back")
    assert refusals(farm)["handshakes"] >= 1


def test_only_the_addresses_that_were_bound_listen(farm: TcpFarm) -> None:
    broker = farm.start_broker()
    worker = farm.start_worker(1)
    farm.wait_slots(1)
    family = [psutil.Process(broker.pid), psutil.Process(worker.pid)]
    family += family[1].children(recursive=True)
    listening = [
        (process.pid, link.laddr.ip, link.laddr.port)
        for process in family
        for link in process.net_connections("inet")
        if link.status == psutil.CONN_LISTEN
    ]
    notes = load_connection(farm.connection).notes_port
    assert {(pid, address) for pid, address, _ in listening} == {(broker.pid, "127.0.0.1")}
    assert {farm.door(role) for role in ROLES} | {notes} < {port for _, _, port in listening}
    assert len(listening) == 7, "a door for each role, notes, and the two of the relay of items"


def test_a_broker_may_open_as_many_files_as_its_host_allows(farm: TcpFarm) -> None:
    broker = farm.start_broker()
    soft, hard = psutil.Process(broker.pid).rlimit(psutil.RLIMIT_NOFILE)
    assert soft == hard


@pytest.mark.parametrize("rate", ["2", "0.5"], ids=["answered later", "put off"])
def test_a_key_that_comes_too_often_waits_and_others_do_not(farm: TcpFarm, rate: str) -> None:
    farm.variables |= {"ZFARM_KNOCKS_PER_S": rate, "ZFARM_KNOCKS_BURST": "10"}
    farm.start_broker()

    def throttled(monitor: Raw) -> int:
        monitor.say(Look())
        count: int = monitor.hear_a(Picture).refusals["throttled"]
        return count

    with contextlib.ExitStack() as stack:
        monitor = stack.enter_context(Raw(farm.connection, "monitor"))
        peers = [stack.enter_context(Raw(farm.connection, "client")) for _ in range(14)]
        wait_until(lambda: throttled(monitor) >= 2, "some to wait")
        peers[-1].say(Look())
        assert peers[-1].hear(30) is not None  # in time it is its turn
