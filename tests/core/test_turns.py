"""Clients share the slots by run time, whatever the length and the number of their calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.core.rigs import JOIN, SETUP, VERSIONS, BrokerRig, sent
from zfarm.messages import VALUE, Action, Call, Demand, Grants, Hello, Join, Report, Reports, Submit


class Shared(BrokerRig):
    """A broker with one worker of two slots, and calls of a known length for each client."""

    def __init__(self, **run_us: int) -> None:
        super().__init__()
        self.run_us = run_us
        self.used: Counter[str] = Counter()  # run time, in microseconds
        self.left = dict.fromkeys(run_us, 0)
        self.next = dict.fromkeys(run_us, 1)
        self._granted: list[tuple[int, str]] = []
        self.say("W", JOIN)

    def come(self, name: str, calls: int) -> None:
        """A client says hello and submits."""
        self.say(name, Hello(name, VERSIONS, "host", 1, ""))
        self.more(name, calls)

    def more(self, name: str, calls: int) -> None:
        first = self.next[name]
        self.next[name] += calls
        self.left[name] += calls
        numbers = range(first, first + calls)
        listed = [Call(number, 0, 0, 0, 3) for number in numbers]
        payload = [name.encode(), SETUP, *(b"body" for _ in numbers)]
        self.note(self.say(name, Submit(listed, ["f"], 1, [], 1), payload))

    def note(self, actions: list[Action]) -> None:
        for message in sent(actions, "W"):
            if isinstance(message, Grants):
                for lease in message.leases:
                    self._granted.append((lease.lease, message.owners[lease.owner]))

    def runs(self) -> Iterator[str]:
        """Run what is granted, one call after the other; whose it was."""
        while self._granted:
            lease, owner = self._granted.pop(0)
            self.used[owner] += self.run_us[owner]
            self.left[owner] -= 1
            self.note(self.say("W", Reports([Report(lease, VALUE, self.run_us[owner])]), [b"value"]))
            yield owner

    def run(self, until_us: int) -> None:
        """Run calls for so long in all, while every client has some that wait."""
        for _ in self.runs():
            assert all(self.left[name] for name in list(self.used)), "one of them ran out of calls"
            if self.used.total() >= until_us:
                return


def test_long_calls_and_short_ones_get_the_same_time() -> None:
    rig = Shared(long=50_000, short=1_000)
    rig.come("long", 100)
    rig.come("short", 4_000)
    rig.run(until_us=4_000_000)

    assert abs(rig.used["long"] - rig.used["short"]) <= 200_000


def test_a_flood_of_calls_takes_no_more_than_its_share() -> None:
    rig = Shared(flood=2_000, modest=2_000)
    rig.come("flood", 5_000)
    rig.come("modest", 300)
    rig.run(until_us=1_000_000)

    assert rig.used["modest"] >= 0.45 * rig.used.total()


def test_who_comes_late_or_rested_has_no_turns_saved_up() -> None:
    rig = Shared(old=5_000, new=5_000)
    rig.come("old", 2_000)
    rig.run(until_us=2_000_000)
    rig.come("new", 1_000)
    rig.used.clear()
    rig.run(until_us=1_000_000)

    assert 0.45 <= rig.used["old"] / rig.used.total() <= 0.55


class Keyed(Shared):
    """The same, where the name of each client says whose key it has: ``key/session``."""

    def come(self, name: str, calls: int) -> None:
        key, _, session = name.partition("/")
        self.machine.receive(name, Hello(session, VERSIONS, "host", 1, ""), (), self.now, f"client:{key}")
        self.turn()
        self.more(name, calls)

    def note(self, actions: list[Action]) -> None:
        for message in sent(actions, "W"):
            if isinstance(message, Grants):
                for lease in message.leases:
                    owner = message.owners[lease.owner].removeprefix("client:")
                    self._granted.append((lease.lease, owner))

    def of(self, key: str) -> int:
        return sum(used for name, used in self.used.items() if name.startswith(key + "/"))


GREEDY = [f"alice/{n}" for n in range(9)]


def test_who_comes_with_many_clients_has_no_more_turns() -> None:
    rig = Keyed(**dict.fromkeys([*GREEDY, "bob/1"], 5_000))
    for name in GREEDY:
        rig.come(name, 60)
    rig.come("bob/1", 300)
    rig.run(until_us=1_800_000)

    assert 0.45 <= rig.of("bob") / rig.used.total() <= 0.55
    shares = [rig.used[name] / rig.of("alice") for name in GREEDY]
    assert max(shares) - min(shares) <= 0.03, "her clients share her turns alike"


def test_another_client_of_a_key_that_has_had_much_gets_no_turns_of_others() -> None:
    rig = Keyed(**dict.fromkeys([*GREEDY, "bob/1"], 5_000))
    rig.come("alice/0", 400)
    rig.run(until_us=500_000)
    rig.come("bob/1", 300)
    rig.come("alice/1", 300)
    rig.used.clear()
    rig.run(until_us=1_000_000)

    assert 0.45 <= rig.of("bob") / rig.used.total() <= 0.55
    assert 0.4 <= rig.used["alice/1"] / rig.of("alice") <= 0.6, "it has no turns saved up, and owes none"


def test_clients_of_one_key_take_turns_for_calls_with_demands_as_one() -> None:
    rig = BrokerRig()
    rig.say("W", Join("w", VERSIONS, 2, "host-w", 22, resources={"gpu": 2000}))
    granted: Counter[str] = Counter()
    leases: list[int] = []

    def note(actions: list[Action]) -> None:
        for message in sent(actions, "W"):
            if isinstance(message, Grants):
                for lease in message.leases:
                    granted[message.owners[lease.owner].partition("/")[0]] += 1
                    leases.append(lease.lease)

    for name in [*GREEDY, "bob/1"]:
        key, _, session = name.partition("/")
        rig.machine.receive(name, Hello(session, VERSIONS, "host", 1, ""), (), rig.now, f"client:{key}")
        calls = [Call(number, 0, 0, 0, 3, demand=1) for number in range(1, 101)]
        demand = Demand((("gpu", 1000),), ())
        submit = Submit(calls, ["f"], 1, [], 1, [demand])
        note(rig.say(name, submit, [b"f", SETUP, *(b"body" for _ in calls)]))
    while granted.total() < 100:
        note(rig.say("W", Reports([Report(leases.pop(0), VALUE, 5_000)]), [b"value"]))

    assert 0.4 <= granted["client:bob"] / 100 <= 0.6
