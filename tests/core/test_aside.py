"""Bad workers and bad calls: who is blamed when something dies, and who is set aside for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.core.rigs import HELLO, JOIN, LIMITS, SETUP, VERSIONS, BrokerRig, sent, submit
from zfarm.core.view import worker_state
from zfarm.messages import (
    BROKEN,
    CANCELLED,
    CUT,
    ERROR,
    LOST,
    VALUE,
    Beat,
    Began,
    Call,
    Cancel,
    Fate,
    Grants,
    Hello,
    Join,
    Leave,
    Look,
    Picture,
    Report,
    Reports,
    Revoke,
    Submit,
    Tell,
    WorkerPicture,
)

STRICT = replace(LIMITS, worker_deaths_max=3, worker_aside_s=20.0, unstarted_losses_max=2)
OTHER = Join("v", VERSIONS, 2, "host-v", 33)
NAMES = {"W": "host-w/22", "V": "host-v/33"}
SESSIONS = {"W": "w", "V": "v"}


class Rig(BrokerRig):
    """A client ``C`` with two workers ``W`` and ``V`` of two slots each."""

    def __init__(self, others: bool = True) -> None:
        super().__init__(STRICT)
        self.said: list[str] = []
        self.say("C", HELLO)
        self.say("W", JOIN)
        if others:
            self.say("V", OTHER)

    def turn(self, after: float = 0.0) -> list[Any]:
        actions = super().turn(after)
        self.said += [action.text for action in actions if isinstance(action, Tell)]
        return actions

    def leases(self, peer: str) -> dict[int, int]:
        """Its leases, and their tasks."""
        worker = self.machine.workers[SESSIONS[peer]]
        return {lease: task.number for lease, task in worker.leases.items()}

    def ends(self, peer: str, lease: int, kind: int = LOST) -> list[Any]:
        fate = Fate(f"host-{SESSIONS[peer]}", NAMES[peer], 9, 0, "killed by signal 9")
        with_fate = fate if kind in (LOST, BROKEN) else None
        return self.say(peer, Reports([Report(lease, kind, 50_000, with_fate)]), [b""])

    def kill(self, peer: str) -> None:
        """A child of this worker dies under the first of its calls."""
        self.ends(peer, next(iter(self.leases(peer))))

    def well(self, peer: str) -> None:
        """The first of its calls ends well there."""
        self.ends(peer, next(iter(self.leases(peer))), VALUE)

    def more(self, peer: str, principal: str, function: bytes) -> None:
        """A client of this principal comes and submits calls of this function."""
        self.machine.receive(peer, Hello(peer, VERSIONS, "host", 1, ""), (), self.now, principal)
        message, payload = submit(*range(1, 21), attempts=1)
        self.machine.receive(peer, message, [function, *payload[1:]], self.now, principal)
        self.turn()

    def aside(self) -> list[str]:
        return [session for session, worker in self.machine.workers.items() if worker.aside_until]

    def pictured(self) -> dict[str, WorkerPicture]:
        (picture,) = (m for m in sent(self.say("M", Look()), "M") if isinstance(m, Picture))
        return {worker.worker: worker for worker in picture.workers}

    def pass_time(self, seconds: float, *peers: str) -> None:
        """Time in which only these say that they are there."""
        for _ in range(int(seconds)):
            self.turn(after=1.0)
            for peer in peers:
                worker = self.machine.workers.get(SESSIONS[peer])
                if worker is not None:
                    self.say(peer, Beat(worker.grants_number, list(worker.leases), 2))


def test_children_that_end_by_our_interrupts_set_nobody_aside() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 21), attempts=1))
    rig.well("V")
    for _ in range(4):
        lease = next(iter(rig.leases("W")))
        rig.say("C", Cancel([rig.machine.workers["w"].leases[lease].number], force=True, grace_us=500_000))
        ended = rig.say("W", Reports([Report(lease, CUT, fate=Fate("host-w", NAMES["W"], 2))]), [b""])
        assert [one.kind for one in sent(ended, "C")[0].outcomes] == [CANCELLED]
    assert rig.aside() == []
    assert rig.pictured()["w"].deaths == 0


def test_a_worker_under_whose_calls_children_keep_dying_is_set_aside_visibly() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 21), attempts=1))
    rig.well("V")
    for _ in range(3):
        rig.kill("W")

    assert rig.aside() == ["w"]
    assert any("host-w/22 is set aside for 20 s" in text for text in rig.said)
    picture = rig.pictured()["w"]
    assert picture.aside_s == 20.0
    assert worker_state(picture) == "aside"
    assert worker_state(picture, later_s=25.0) != "aside"
    assert worker_state(rig.pictured()["v"]) != "aside"


def test_it_is_granted_nothing_until_its_time_is_over() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 21), attempts=1))
    rig.well("V")
    for _ in range(3):
        rig.kill("W")
    for lease in rig.leases("W"):
        rig.ends("W", lease, VALUE)
    assert not rig.leases("W")
    assert rig.machine.ready

    rig.pass_time(18, "W", "V")
    assert not rig.leases("W")
    rig.pass_time(3, "W", "V")
    assert len(rig.leases("W")) == 2
    assert any("host-w/22 gets calls again" in text for text in rig.said)


def test_what_waits_there_goes_elsewhere_and_what_runs_there_goes_on() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 21), attempts=1))
    rig.well("V")
    rig.kill("W")
    rig.kill("W")
    running, waiting = rig.leases("W")
    rig.say("W", Began([running]))
    rig.machine.workers["w"].suspects["other", 1, b""] = "other", b"other"
    actions = rig.ends("W", waiting)

    assert rig.aside() == ["w"]
    assert not any(isinstance(m, Revoke) and running in m.leases for m in sent(actions, "W"))
    assert list(rig.leases("W")) == [running]


def test_one_call_that_kills_its_children_sets_nobody_aside() -> None:
    rig = Rig()
    rig.say("C", *submit(1, attempts=20))
    for _ in range(10):
        rig.kill("W" if rig.leases("W") else "V")

    assert not rig.aside()


def test_calls_that_kill_children_elsewhere_too_are_not_counted() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 5), attempts=9))
    for _ in range(4):  # all of them die on both, until each has done so
        for peer in ("W", "V"):
            for lease in list(rig.leases(peer)):
                if not rig.aside():
                    rig.ends(peer, lease)

    suspects = [len(worker.suspects) for worker in rig.machine.workers.values()]
    assert max(suspects) < 3
    assert not rig.aside()


def test_a_call_that_ends_well_clears_its_worker() -> None:
    for kind in (VALUE, ERROR):
        rig = Rig()
        rig.say("C", *submit(*range(1, 21), attempts=1))
        rig.kill("W")
        rig.kill("W")
        rig.ends("W", next(iter(rig.leases("W"))), kind)
        rig.kill("W")
        rig.kill("W")

        assert not rig.aside()


def test_the_last_worker_is_never_set_aside() -> None:
    rig = Rig(others=False)
    rig.say("C", *submit(*range(1, 21), attempts=1))
    for _ in range(6):
        rig.kill("W")

    assert not rig.aside()
    assert rig.leases("W")


def test_a_worker_comes_back_when_nobody_else_is_left() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 21), attempts=1))
    rig.well("V")
    for _ in range(3):
        rig.kill("W")
    assert rig.aside() == ["w"]
    rig.say("V", Leave())
    rig.pass_time(2, "W")

    assert not rig.aside()
    assert rig.leases("W")


def test_a_worker_that_is_alone_keeps_no_list_of_all_that_died_there() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 21), attempts=1))
    rig.well("V")
    rig.say("V", Leave())
    for _ in range(12):
        rig.kill("W")

    assert not rig.aside()
    assert len(rig.machine.workers["w"].suspects) == 3


def test_initializers_of_one_client_that_die_count_once() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 21), attempts=1))
    rig.well("V")
    for _ in range(6):
        rig.ends("W", next(iter(rig.leases("W"))), BROKEN)
    assert len(rig.machine.workers["w"].suspects) == 1

    rig.kill("W")
    rig.kill("W")
    assert rig.aside() == ["w"]


def test_all_calls_of_a_function_that_ends_well_nowhere_count_as_one() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 21), attempts=1))
    for _ in range(6):
        rig.kill("W")

    assert not rig.aside()
    assert len(rig.machine.workers["w"].suspects) == 1


def test_a_function_that_dies_on_another_worker_too_proves_nothing_any_more() -> None:
    rig = Rig()
    rig.say("C", *submit(*range(1, 21), attempts=1))
    rig.well("V")
    rig.kill("V")
    for _ in range(6):
        rig.kill("W")

    assert not rig.aside()


def test_calls_of_several_clients_that_die_set_a_worker_aside() -> None:
    rig = Rig()
    for n in range(6):
        rig.more(f"c{n}", f"client:{n}", b"function %d" % n)
    for _ in range(8):
        if not rig.aside():
            rig.kill("W")

    assert rig.aside() == ["w"]


def test_calls_of_one_key_set_no_worker_aside_where_those_of_others_end_well() -> None:
    rig = Rig()
    rig.more("good", "client:good", b"good")
    rig.well("W")
    rig.pass_time(1, "W", "V")
    rig.more("bad", "client:bad", b"bad")
    for peer in ("V", "W"):
        while any(task.client.peer == "good" for task in rig.machine.workers[SESSIONS[peer]].leases.values()):
            rig.well(peer)
        if peer == "V":
            rig.well(peer)
    for _ in range(6):
        of_bad = [n for n, task in rig.machine.workers["w"].leases.items() if task.client.peer == "bad"]
        rig.ends("W", of_bad[0])
        if len(of_bad) == 1:
            break

    assert len(rig.machine.workers["w"].suspects) >= 1
    assert not rig.aside()


# ---------------------------------------------------------------- whom the loss of a worker is blamed on


def test_the_loss_of_a_worker_is_blamed_on_what_ran_there_and_not_on_what_waited() -> None:
    rig = Rig(others=False)
    rig.say("C", *submit(1, 2))
    first, second = rig.leases("W")
    rig.say("W", Began([first]))
    rig.pass_time(7)

    tasks = rig.machine.clients["c"].tasks
    assert [len(tasks[n].deaths) for n in (1, 2)] == [1, 0]
    assert (first, second) == (tasks[1].lease, tasks[2].lease), "should it come back, it may go on with both"
    rig.say("V", OTHER)
    assert sorted(rig.leases("V").values()) == [1, 2]


def test_a_batch_that_only_waited_is_not_cut_to_pieces() -> None:
    rig = Rig(others=False)
    rig.say("C", *submit(1, items=50))
    rig.pass_time(7)

    assert rig.machine.clients["c"].tasks[1].outcome is None
    rig.say("V", OTHER)
    assert list(rig.leases("V").values()) == [1]


def test_what_takes_worker_after_worker_along_before_it_can_be_said_to_run_ends_too() -> None:
    rig = Rig(others=False)
    rig.say("C", *submit(1, attempts=2))
    lost = 0
    while rig.machine.clients["c"].tasks[1].outcome is None:
        rig.pass_time(7)
        lost += 1
        assert lost < 10
        rig.say("W", Join(f"w{lost}", VERSIONS, 2, "host-w", 22))

    outcome = rig.machine.clients["c"].tasks[1].outcome
    assert (outcome.kind, len(outcome.deaths)) == (LOST, 2)
    assert lost == STRICT.unstarted_losses_max + 2


def test_calls_granted_to_a_worker_that_was_set_aside_are_asked_back() -> None:
    rig = Rig()
    calls = [Call(n, 0, 0) for n in range(1, 5)]
    rig.say("C", Submit(calls, ["f"], 1), [b"function", SETUP, *(b"%d" % call.task for call in calls)])
    rig.machine.workers["w"].suspects.update(
        {("other", 1, b""): ("other", b""), ("other", 2, b""): ("other", b"")}
    )
    first, second = rig.leases("W")
    actions = rig.ends("W", first)

    assert Revoke([second]) in sent(actions, "W")
    assert not any(isinstance(m, Grants) for m in sent(actions, "W"))
