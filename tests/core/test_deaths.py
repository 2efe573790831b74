"""What the books keep of deaths, and how large the messages become that tell them."""

from __future__ import annotations

from tests.core.rigs import HELLO, JOIN, BrokerRig, submit
from zfarm.core.deaths import with_death, words_of_outcome, words_of_report
from zfarm.core.machine import batches
from zfarm.messages import LOST, Blob, Ended, Fate, Grants, Outcome, Report, Reports, Send


def fate(number: int) -> Fate:
    return Fate("h", f"h/{number}", 11, 0, "killed by SIGSEGV", f"words {number}", number, "")


def test_the_latest_deaths_keep_the_last_words_of_their_children() -> None:
    deaths: tuple[Fate, ...] = ()
    for number in range(1, 8):
        deaths = with_death(deaths, fate(number))

    assert [death.peak_bytes for death in deaths] == list(range(1, 8)), "all are counted and told"
    assert [death.stderr for death in deaths] == ["", "", "", "", "words 5", "words 6", "words 7"]


def test_messages_full_of_last_words_are_cut() -> None:
    long = Fate("h", "w", 11, 0, "killed", "x" * 4000)
    outcomes: list[tuple[Outcome, Blob]] = [(Outcome(n, LOST, deaths=(long,) * 3), b"") for n in range(100)]
    parts = list(batches(outcomes, 2000, 50_000, words_of_outcome))
    assert [outcome.task for part in parts for outcome, _ in part] == list(range(100))
    assert {len(part) for part in parts} == {4}

    reports: list[tuple[Report, Blob]] = [(Report(n, LOST, 0, long if n else None), b"") for n in range(10)]
    assert [len(part) for part in batches(reports, 2000, 9000, words_of_report)] == [3, 2, 2, 2, 1]


def test_what_a_worker_tells_of_a_death_arrives_at_the_client() -> None:
    rig = BrokerRig()
    rig.say("c", HELLO)
    rig.say("w", JOIN)
    actions = rig.say("c", *submit(1, attempts=1))
    (grants,) = [a.message for a in actions if isinstance(a, Send) and isinstance(a.message, Grants)]
    actions = rig.say("w", Reports([Report(grants.leases[0].lease, LOST, 0, fate(5))]), [b""])

    (ended,) = [a.message for a in actions if isinstance(a, Send) and isinstance(a.message, Ended)]
    assert ended.outcomes[0].deaths == (fate(5),)
