"""The lists of faults and of guarantees name tests that exist, and leave no number out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tidy.sources import sources

ROOT = Path(__file__).parents[2]
CASES = 80
NAMED = re.compile(r"`(test_[a-z0-9_A-Z]+)`")
FILES = re.compile(r"`(tests/[a-z0-9_/]+(?:\.py|/))`")

CHECKED = re.compile(r"`([a-z_/]+\.py)`, `(\w+)`(?: and `(\w+)`)?")


def existing_tests() -> set[str]:
    return {name.rpartition(".")[2] for source in sources("tests") for name, _ in source.functions()}


@pytest.mark.parametrize("document", ["docs/faults.md", "docs/GUARANTEES.md"])
def test_every_test_that_is_named_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    named = set(NAMED.findall(text))
    there = existing_tests()
    missing = {name for name in named if name not in there}

    assert len(named) > 10
    assert not missing, f"{document} names tests that do not exist: {sorted(missing)}"
    assert not {name for name in FILES.findall(text) if not (ROOT / name).exists()}


def test_no_fault_is_left_out() -> None:
    numbers = re.findall(r"^\| (\d+) \|", (ROOT / "docs/faults.md").read_text(), re.MULTILINE)

    assert [int(number) for number in numbers] == list(range(1, CASES + 1))


def test_what_checks_an_invariant_is_in_the_file_that_is_named() -> None:
    _, _, invariants = (ROOT / "docs/faults.md").read_text().partition("## Invariants of the simulator")
    found = CHECKED.findall(invariants)
    there = {
        (source.path.name, name.rpartition(".")[2])
        for source in sources("tests")
        for name, _ in source.functions()
    }

    assert len(found) >= 3
    assert not {(file, name) for file, *names in found for name in filter(None, names)} - there
