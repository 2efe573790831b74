"""Calls that need what is on a host: there if a slot is free, elsewhere if not, and nobody waits for it."""

from __future__ import annotations

from typing import Any

from tests.core.rigs import HELLO, SETUP, VERSIONS, BrokerRig, sent
from zfarm.core.nearness import PASSES_MAX
from zfarm.messages import LOST, VALUE, Blob, Call, Demand, Grants, Join, Need, Report, Reports, Submit


def near(tasks: dict[int, str], demand: Demand | None = None) -> tuple[Submit, list[Blob]]:
    """These tasks, and the host which each rather runs on; empty: any."""
    hosts = list(dict.fromkeys(tasks.values()))
    needs: list[tuple[Need, ...]] = [
        (Need(bytes(32), 0, near=f"host-{host}" if host else ""),) for host in hosts
    ]
    place = 0 if demand is None else 1
    calls = [Call(task, 0, 0, demand=place, needs=hosts.index(host) + 1) for task, host in tasks.items()]
    bodies: list[Blob] = [b"body %d" % task for task in tasks]
    demands = [] if demand is None else [demand]
    return Submit(calls, ["f"], 1, [], 1, demands, needs), [b"function", SETUP, *bodies]


class Two(BrokerRig):
    """A broker with two workers, a and b."""

    def __init__(self, slots: int = 1) -> None:
        super().__init__()
        self.say("C", HELLO)
        for name in "ab":
            self.say(name, Join(name, VERSIONS, slots, f"host-{name}", 22, [], {}, ["x"]))
        self.leases: dict[str, list[int]] = {"a": [], "b": []}
        self.ran: dict[str, list[int]] = {"a": [], "b": []}

    def see(self, actions: list[Any]) -> None:
        for name in "ab":
            for message in sent(actions, name):
                if isinstance(message, Grants):
                    self.leases[name].extend(lease.lease for lease in message.leases)
                    self.ran[name].extend(lease.task for lease in message.leases)

    def submit(self, tasks: dict[int, str], demand: Demand | None = None) -> None:
        self.see(self.say("C", *near(tasks, demand)))

    def end(self, name: str, kind: int = VALUE) -> None:
        """What that worker runs ends."""
        report = Report(self.leases[name].pop(0), kind, 1_000_000)
        self.see(self.say(name, Reports([report]), [b"value"]))


def test_a_call_goes_where_its_needs_are_and_elsewhere_if_no_slot_is_free_there() -> None:
    farm = Two(slots=2)
    farm.submit({1: "b", 2: "b", 3: "b", 4: ""})
    assert farm.ran == {"a": [3, 4], "b": [1, 2]}


def test_it_runs_again_elsewhere_if_it_has_killed_its_child_there() -> None:
    farm = Two()
    farm.submit({1: "b"})
    farm.end("b", LOST)
    assert farm.ran == {"a": [1], "b": [1]}


def test_nor_does_it_pass_others_to_where_it_has_killed_its_child() -> None:
    farm = Two()
    farm.submit({1: "b", 2: "a", 3: "a", 4: "b"})
    assert farm.ran == {"a": [2], "b": [1]}
    farm.end("b", LOST)
    assert farm.ran == {"a": [2], "b": [1, 4]}


def test_a_host_that_is_not_there_is_no_reason_to_wait() -> None:
    farm = Two()
    farm.submit({1: "c", 2: "c"})
    assert farm.ran == {"a": [1], "b": [2]}


def test_one_with_a_demand_goes_there_too() -> None:
    farm = Two(slots=2)
    farm.submit({1: "b", 2: "b", 3: "b"}, Demand((), ("x",)))
    assert farm.ran == {"a": [3], "b": [1, 2]}


def test_a_slot_takes_what_is_near_to_it_but_nobody_is_passed_for_ever() -> None:
    farm = Two()
    farm.submit({1: "a", 2: "b"})
    farm.submit({3: "b", **dict.fromkeys(range(4, 4 + 2 * PASSES_MAX), "a")})
    for _ in range(PASSES_MAX):  # b stays busy
        farm.end("a")
    assert farm.ran == {"a": [1, *range(4, 4 + PASSES_MAX)], "b": [2]}
    farm.end("a")
    assert farm.ran["a"][-1] == 3
    farm.end("a")
    assert farm.ran["a"][-1] == 4 + PASSES_MAX
    farm.end("b")
    assert farm.ran["b"][-1] == 5 + PASSES_MAX, "no slot is idle"
