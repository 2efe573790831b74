"""Keys that are taken away, and sessions of journals that name their owners in the old way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.core.test_durable import V, hello, restored, submit
from zfarm.core.broker import Broker
from zfarm.core.owners import expel, renamed
from zfarm.edge.journal import Journal
from zfarm.messages import (
    VALUE,
    Accepted,
    Append,
    Attach,
    Dropped,
    Enrolled,
    Grants,
    Held,
    Join,
    Outcome,
    Refused,
    Report,
    Reports,
    Revoke,
    Send,
    Settled,
)

ALICE, BOB = "client:alice:aaaa", "client:bob:bbbb"
NEW_ALICE = "client:alice:cccc"
W1, W2 = "worker:one:1111", "worker:two:2222"


class Rig:
    """A broker with a journal, two clients and two workers of one slot, each with a key of its own."""

    def __init__(self) -> None:
        self.broker = Broker(1, V, 0.0, journal=True)
        self.journal: list[Any] = []
        for peer, principal in (("a", ALICE), ("b", BOB)):
            self.say(peer, hello(f"of {peer}", job="night"), principal=principal)
        for peer, principal in (("1", W1), ("2", W2)):
            self.say(peer, Join(f"w{peer}", V, 1, "host", 2), principal=principal)

    def say(self, peer: str, message: Any, payload: Any = (), principal: str = "") -> list[tuple[Any, Any]]:
        self.broker.receive(peer, message, payload, 0.0, principal)
        return self.turn()

    def turn(self) -> list[tuple[Any, Any]]:
        actions = self.broker.advance(0.0)
        self.broker.check()
        for action in actions:
            if isinstance(action, Append):
                self.journal.extend(action.records)
        return [(action.peer, action.message) for action in actions if isinstance(action, Send)]


def test_what_a_revoked_client_had_is_stopped_and_dropped_and_others_keep_theirs() -> None:
    rig = Rig()
    said = rig.say("a", *submit(1, 2, 3)) + rig.say("b", *submit(1))
    running = {lease.lease for _, m in said if isinstance(m, Grants) for lease in m.leases}
    assert len(running) == 2

    expel(rig.broker, {BOB, W1, W2}, 0.0)
    said = rig.turn()
    assert {n for _, m in said if isinstance(m, Revoke) and m.force for n in m.leases} == running
    assert [record.client for record, _ in rig.journal if isinstance(record, Dropped)] == [f"{ALICE}/of a"]
    assert [m.owners for _, m in said if isinstance(m, Grants)] == [[f"{BOB}/of b"]], "a slot is free"
    assert sorted(restored(rig.journal).clients) == [f"{BOB}/of b"]


def test_who_gets_a_new_key_of_an_old_name_is_somebody_else() -> None:
    rig = Rig()
    rig.say("a", *submit(1, 2, 3))
    ((_, answer),) = rig.say("n", Attach("night", V, "x"), principal=NEW_ALICE)
    assert isinstance(answer, Refused)
    assert (answer.code, answer.text.rpartition("; ")[2]) == ("JobUnknown", "there is none")


def test_the_leases_of_a_revoked_worker_move() -> None:
    rig = Rig()
    said = rig.say("a", *submit(1, 2))
    one = {peer: lease for peer, m in said if isinstance(m, Grants) for lease in m.leases}
    rig.say("2", Reports([Report(one["2"].lease, VALUE, 90_000)]), [b"value"])

    expel(rig.broker, {ALICE, BOB, W2}, 0.0)
    ((peer, grants),) = [(peer, m) for peer, m in rig.turn() if isinstance(m, Grants)]
    assert (peer, grants.leases[0].task) == ("2", one["1"].task)
    assert grants.leases[0].lease != one["1"].lease


def test_what_a_worker_still_runs_of_a_revoked_client_is_stopped_when_it_joins() -> None:
    after = Broker(2, V, 0.0, journal=True)
    expel(after, {BOB, W1}, 0.0)
    after.receive(
        "1", Join("w1", V, 1, "host", 2, [Held(1 << 32 | 1, f"{ALICE}/of a", 1, True)]), (), 0.0, W1
    )
    said = [action.message for action in after.advance(0.0) if isinstance(action, Send)]
    assert Revoke([1 << 32 | 1], force=True) in said


def test_a_journal_of_an_earlier_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "farm.journal"
    call = (b"function", b"setup", b"body")
    with Journal(path) as journal:
        for name in ("alice", "carol"):
            journal.append([(Enrolled(f"client:{name}/s", job="night"), ())])
            journal.append([(Accepted(f"client:{name}/s", n, "f", 0, 3), call) for n in (1, 2, 3)])
            journal.append([(Settled(f"client:{name}/s", Outcome(2, VALUE)), (b"value",))])

    for _ in range(2):
        with Journal(path) as journal:
            written: list[Any] = []
            broker = Broker(2, V, 0.0, journal=True)
            broker.restore(renamed(journal.replay(), {ALICE, BOB}, written), 0.0)
            journal.append(written)
            assert sorted(broker.clients) == [f"{ALICE}/s", "client:carol/s"]
            mine = broker.clients[f"{ALICE}/s"].tasks
            assert [(n, task.body, task.blob) for n, task in sorted(mine.items())] == [
                (1, b"body", b""), (2, b"", b"value"), (3, b"body", b""),
            ]  # fmt: skip
    assert not written, "once for all"
    expel(broker, {ALICE, BOB}, 0.0)
    assert sorted(broker.clients) == [f"{ALICE}/s"], "whose key is not there any more"
