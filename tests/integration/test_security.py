"""Peers with a valid key who want more than it allows, and strangers: an honest client notices nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until
from tests.integration.hostile import Raw, hello, join, submit, versions
from zfarm.edge.principals import enrol, keys_path, new_principal, revoke
from zfarm.edge.security import Role
from zfarm.edge.tokens import read_token
from zfarm.errors import AccessDenied
from zfarm.messages import (
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

pytestmark = pytest.mark.timeout(120)


def admit(farm: TcpFarm, name: str, role: Role) -> Path:
    """A principal's connection file; the broker knows the key once this returns."""
    file = farm.directory / f"{name}.json"
    new_principal(farm.connection, name, role, file)
    wait_until(lambda: _reaches(file, role), f"{name} to be let in")
    return file


def _reaches(file: Path, role: Role) -> bool:
    with Raw(file, role) as peer:
        peer.say(join("probe") if role == "worker" else Look())
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
            mallory.say(Attach(job=job, versions=versions()))
            text = mallory.hear_a(Refused).text
            assert text.replace(job, "X") == "this farm has no job 'X'; there is none"

        alice.say(Attach(job="nightly", versions=versions()))
        attached = alice.hear_a(Attached)
        assert (attached.session, [task.task for task in attached.tasks]) == ("secret", [1, 2, 3])
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
        "worker": [hello("c"), Cancel([1]), Ask([1]), Forget([1]), Look(), Attach("j", versions())],
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
    import os
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
