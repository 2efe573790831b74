"""The documents: links lead somewhere, decisions have four parts and one screen, the one page is a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT, sources

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
PARTS = ["Context", "Decision", "Consequences", "What would change our mind"]

LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")
IN_CODE = re.compile(r"docs/[\w/.-]+\.md")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_leads_to_a_file(path: Path) -> None:
    targets = LINK.findall(path.read_text(encoding="utf-8"))

    dead = [target for target in targets if not (path.parent / target).exists()]
    assert not dead, f"{name_of(path)} links to what is not there: {dead}"


def test_every_document_that_the_code_names_exists() -> None:
    named = {(match, source.name) for source in sources("zfarm") for match in IN_CODE.findall(source.text)}

    dead = [(target, where) for target, where in named if not (ROOT / target).exists()]
    assert not dead


@pytest.mark.parametrize("path", DECISIONS, ids=name_of)
def test_a_decision_is_one_screen_with_four_parts(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]

    assert re.match(rf"# {int(path.name[:4])}\. \S", lines[0]), "opens with `# <number>. <what was decided>`"
    assert headings == PARTS
    assert len(lines) <= 50, "a decision fits on one screen"


def test_decisions_are_numbered_without_gaps_and_listed() -> None:
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")

    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    for path in DECISIONS:
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").partition(". ")[2]
        assert f"[{title}]({path.name})" in listed, (
            f"docs/decisions/README.md does not list {path.name} as {title!r}"
        )


def test_the_architecture_is_one_page() -> None:
    lines = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()

    assert len(lines) <= 120
    assert max(map(len, lines)) <= 140


def test_the_changelog_has_an_entry_for_what_is_being_built() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)

    assert headings[0] == "Unreleased" or re.fullmatch(r"\d+\.\d+\.\d+", headings[0])
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
