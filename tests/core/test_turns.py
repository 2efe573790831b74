"""Clients share the slots by run time, whatever the length and the number of their calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.core.rigs import JOIN, SETUP, VERSIONS, BrokerRig, sent
from zfarm.messages import VALUE, Action, Call, Grants, Hello, Report, Reports, Submit


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
