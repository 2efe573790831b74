"""Limits hold for a key, and not for each of its sessions; functions and setups count, once, while they are
needed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.rigs import SETUP, VERSIONS, BrokerRig, sent
from zfarm.messages import (
    REFUSED,
    VALUE,
    Action,
    Attach,
    Attached,
    Call,
    Ended,
    Forget,
    Grants,
    Hello,
    Join,
    Refused,
    Report,
    Reports,
    Submit,
    Welcome,
)
from zfarm.settings import Settings


class Keys(BrokerRig):
    """A broker and its clients, each with a key."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(Settings(**limits))

    def hello(self, peer: Any, key: str, session: str, job: str = "") -> list[Any]:
        hello = Hello(session, VERSIONS, "host", 1, "", job)
        self.machine.receive(peer, hello, (), self.now, key)
        return sent(self.turn(), peer)

    @property
    def sessions(self) -> list[str]:
        return sorted(self.machine.clients)

    def ask(self, peer: Any, *tasks: int, function: bytes = b"f", setup: bytes = SETUP, body: int = 1) -> int:
        """Submit these; how many of them are refused at once."""
        calls = [Call(task, 0, 0, 0, 3) for task in tasks]
        payload = [function, setup, *(bytes(body) for _ in tasks)]
        return refused(self.say(peer, Submit(calls, ["f"], 1, [], 1), payload), peer)

    @property
    def bytes(self) -> int:
        return self.machine.accounts.bytes


def refused(actions: list[Action], peer: Any) -> int:
    return sum(
        outcome.kind == REFUSED
        for message in sent(actions, peer)
        if isinstance(message, Ended)
        for outcome in message.outcomes
    )


# ---------------------------------------------------------------- sessions


def test_a_key_has_a_limited_number_of_sessions() -> None:
    rig = Keys(client_sessions_max=3)
    for n in range(3):
        assert isinstance(rig.hello(f"A{n}", "client:alice", f"s{n}")[0], Welcome)
    (no,) = rig.hello("A3", "client:alice", "s3")
    assert isinstance(no, Refused)
    assert no.code == "FarmBusy"
    assert "ZFARM_CLIENT_SESSIONS_MAX" in no.text
    assert isinstance(rig.hello("B", "client:bob", "s0")[0], Welcome), "another key has its own"
    assert isinstance(rig.hello("A5", "client:alice", "s0")[0], Welcome), "who is known may come back"
    assert rig.machine.refusals["clients"] == 1


def test_a_link_that_says_hello_again_and_again_has_one_session() -> None:
    rig = Keys(client_sessions_max=3)
    for n in range(100):
        assert isinstance(rig.hello("A", "client:alice", f"s{n}", job=f"j{n}")[0], Welcome)
    assert rig.sessions == ["client:alice/s99"]
    assert list(rig.machine.peers) == ["A"]
    assert len(rig.machine.accounts) == 1


def test_what_has_tasks_outlives_its_link_and_counts() -> None:
    rig = Keys(client_sessions_max=2)
    for n in range(2):
        rig.hello("A", "client:alice", f"s{n}")
        rig.ask("A", 1)
    assert isinstance(rig.hello("A", "client:alice", "s2")[0], Refused)
    assert rig.sessions == ["client:alice/s0", "client:alice/s1"]


def test_clients_in_tasks_have_room_beside_as_many_as_there_may_be_children() -> None:
    rig = Keys(client_sessions_max=2, blocked_children_max=1)
    for n in range(2):
        rig.machine.receive(f"W{n}", Join(f"w{n}", VERSIONS, 2, "h", 2), (), rig.now, "worker:w")
    rig.hello("A", "client:alice", "s")

    def nested(channel: int, session: str) -> list[Any]:
        peer = ("W0", channel)
        hello = Hello(session, VERSIONS, "host", 1, "")
        rig.machine.tunnelled(*peer, "client:alice/s", hello, (), rig.now)
        return sent(rig.turn(), peer)

    for n in range(7):
        assert isinstance(nested(n, f"t{n}")[0], Welcome)
    assert len(rig.sessions) == 2 + 2 * (2 + 1)
    assert isinstance(nested(9, "t9")[0], Refused)
    for n in range(10):
        assert isinstance(nested(3, f"u{n}")[0], Refused)
    assert len(rig.sessions) == 8


def test_a_local_socket_has_no_such_limit() -> None:
    rig = Keys(client_sessions_max=1)
    for n in range(5):
        assert isinstance(rig.hello(f"C{n}", "local", f"s{n}")[0], Welcome)


def test_jobs_are_found_by_key_and_name_and_gone_with_their_client() -> None:
    rig = Keys()
    rig.hello("A", "client:alice", "s1", job="night")
    (no,) = rig.hello("A2", "client:alice", "s2", job="night")
    assert isinstance(no, Refused)
    assert no.code == "JobExists"
    assert isinstance(rig.hello("B", "client:bob", "s2", job="night")[0], Welcome)
    rig.machine.receive("X", Attach("night", VERSIONS, "life"), (), rig.now, "client:alice")
    (attached,) = sent(rig.turn(), "X")
    assert isinstance(attached, Attached)
    assert attached.session == "s1"


def test_a_job_without_tasks_is_gone_with_its_link_and_its_name_is_free() -> None:
    rig = Keys()
    rig.hello("A", "client:alice", "s1", job="night")
    rig.hello("A", "client:alice", "s3")
    assert isinstance(rig.hello("A2", "client:alice", "s4", job="night")[0], Welcome)


# ---------------------------------------------------------------- tasks and bytes


def test_the_limit_on_tasks_is_that_of_the_key() -> None:
    rig = Keys(client_tasks_max=3)
    rig.hello("A", "client:alice", "s0")
    rig.hello("A2", "client:alice", "s1")
    rig.hello("B", "client:bob", "s0")
    assert rig.ask("A", 1, 2) == 0
    assert rig.ask("A2", 1, 2) == 1
    assert rig.ask("B", 1, 2, 3) == 0


@pytest.mark.parametrize("what", ["function", "setup", "body"])
def test_the_limit_on_bytes_is_that_of_the_key_whatever_they_are(what: str) -> None:
    rig = Keys(client_bytes_max=1000)
    rig.hello("A", "client:alice", "s0")
    rig.hello("A2", "client:alice", "s1")
    for n, peer in enumerate(["A", "A2", "A", "A2"]):
        size = 300
        sizes: dict[str, Any] = {what: size if what == "body" else b"%d" % n * size}
        assert rig.ask(peer, 10 + n, **sizes) == 0
    assert rig.ask("A", 1) == rig.ask("A2", 1) == 1
    (client, *_) = rig.machine.clients.values()
    rig.machine.drop_client(client, rig.now)
    assert rig.ask("A2", 1) == 0, "there is room again"


def test_a_farm_has_a_limit_for_all_together() -> None:
    rig = Keys(broker_bytes_max=1000)
    for key in ("alice", "bob"):
        rig.hello(key, f"client:{key}", "s")
        assert rig.ask(key, 1, body=600) == 0
    rig.hello("eve", "client:eve", "s")
    assert rig.ask("eve", 1) == 1


def test_a_function_counts_once_and_until_its_last_task_is_forgotten() -> None:
    rig = Keys()
    rig.hello("A", "client:alice", "s0")
    function, setup = bytes(50_000), bytes(10_000)
    for task in range(1, 11):
        assert rig.ask("A", task, function=function, setup=setup) == 0
    assert rig.bytes == 50_000 + 10_000 + 10
    rig.ask("A", 11, function=b"other", setup=setup)
    assert rig.bytes == 50_000 + 10_000 + 11 + len(b"other")

    grants = [m for m in sent(rig.say("W", Join("w", VERSIONS, 20, "h", 2)), "W") if isinstance(m, Grants)]
    leases = {lease.task: lease.lease for message in grants for lease in message.leases}
    for task in range(1, 11):
        rig.say(
            "W",
            Reports(
                [Report(leases[task], VALUE, 50)],
            ),
            [b"r"],
        )
    assert rig.bytes == 50_000 + 10_000 + 11 + len(b"other"), "an outcome is kept until it has arrived"
    rig.say("A", Forget(list(range(1, 11))))
    assert rig.bytes == 10_000 + 1 + len(b"other")
    rig.say("W", Reports([Report(leases[11], VALUE, 50)]), [b"r"])
    rig.say("A", Forget([11]))
    assert rig.bytes == 0
    assert len(rig.machine.functions) == 1, "a large function is forgotten with its last task"


def test_grants_take_functions_into_account_when_they_are_cut() -> None:
    rig = BrokerRig(Settings(batch_bytes_max=1000)).met()
    rig.say("W", Join("w", VERSIONS, 2, "host-w", 22))
    rig.machine.workers["w"].room = 10
    calls = [Call(n, n - 1, 0, 0, 3) for n in range(1, 9)]
    payload = [*(b"%d" % n * 400 for n in range(1, 9)), b"setup", *(b"x" for _ in calls)]
    actions = rig.say("C", Submit(calls, ["f"] * 8, 1, [], 1), payload)
    grants = [m for m in sent(actions, "W") if isinstance(m, Grants)]
    assert [len(m.leases) for m in grants] == [2, 2, 2, 2]
    assert all(m.functions == 2 for m in grants)
