"""One word per thing: the core and the shared words use those of docs/ARCHITECTURE.md, and no rivals."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator

import pytest

from tests.tidy.sources import ROOT, Source, sources

RIVALS = {
    "node": "worker (the agent of a host) or child (a process)",
    "manager": "worker",
    "scheduler": "broker",
    "engine": "worker",
    "cluster": "farm",
    "hub": "broker",
    "interchange": "broker",
    "event": "message, note or record",
    "tick": "turn",
}
WORDS = ("errors.py", "messages.py", "settings.py")
HELD = sources("zfarm/core") + [source for source in sources("zfarm") if source.path.name in WORDS]

PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def pieces(text: str) -> Iterator[str]:
    """The words in a text or identifier, small: `NodeList` and `node_list` give node and list."""
    for piece in PIECE.findall(text):
        word = piece.lower()
        yield word[:-1] if word.endswith("s") and word[:-1] in RIVALS else word


def rivals_in(text: str) -> list[tuple[int, str]]:
    """Line and word of each rival in the names, comments and strings of a Python text."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in {tokenize.NAME, tokenize.COMMENT, tokenize.STRING}:
            found += [(token.start[0], word) for word in pieces(token.string) if word in RIVALS]
    return found


@pytest.mark.parametrize("source", HELD, ids=str)
def test_the_core_calls_each_thing_by_its_one_word(source: Source) -> None:
    found = [f"{source.name}:{line}: {word}: say {RIVALS[word]}" for line, word in rivals_in(source.text)]

    assert not found


def test_the_check_sees_rivals_in_names_comments_and_strings() -> None:
    text = 'class NodeList: pass  # the scheduler\nnot_eventually = "two events"\n'

    assert rivals_in(text) == [(1, "node"), (1, "scheduler"), (2, "event")]


OURS = """farm broker worker slot child task job lease outcome stream item blob chunk message frame payload
record note action peer beat turn realm nursery""".split()


def test_the_architecture_page_names_every_word() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")

    missing = [word for word in OURS if not re.search(rf"\*\*{word}\*\*", page)]
    assert not missing, f"docs/ARCHITECTURE.md does not explain {missing}"
