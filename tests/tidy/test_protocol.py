"""docs/PROTOCOL.md and zfarm/messages.py agree: one row of the table per message, with its directions."""

from __future__ import annotations

import re
from typing import get_args

import msgspec

from tests.tidy.sources import ROOT
from zfarm import messages

UNIONS = {
    "client -> broker": messages.FromClient,
    "broker -> client": messages.ToClient,
    "worker -> broker": messages.FromWorker,
    "broker -> worker": messages.ToWorker,
    "worker -> child": messages.ToChild,
    "child -> worker": messages.FromChild,
    "note": messages.Note,
    "record": messages.Record,
}


def table() -> dict[str, str]:
    """Message to direction, from the table that opens with `| Message | direction | ...`."""
    lines = (ROOT / "docs" / "PROTOCOL.md").read_text(encoding="utf-8").splitlines()
    rows: dict[str, str] = {}
    within = False
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.lstrip().startswith("|"):
            within = False
        elif [cell.lower() for cell in cells[:2]] == ["message", "direction"]:
            within = True
        elif within and not set(cells[0]) <= set("-: "):
            name = cells[0].strip("`*")
            assert name not in rows, f"docs/PROTOCOL.md has two rows for {name}"
            rows[name] = cells[1]
    return rows


def tagged() -> dict[str, type[msgspec.Struct]]:
    """Every struct of messages.py that travels as a header: those with a tag."""
    return {
        name: thing
        for name, thing in vars(messages).items()
        if isinstance(thing, type)
        and issubclass(thing, msgspec.Struct)
        and thing.__struct_config__.tag is not None
    }


def test_every_message_has_one_row_and_every_row_a_message() -> None:
    rows = table()

    assert rows, "docs/PROTOCOL.md has no table that opens with `| Message | direction | ...`"
    assert set(rows) == set(tagged())


def test_every_row_names_the_directions_in_which_the_message_travels() -> None:
    wrong = {}
    for name, cell in table().items():
        said = re.sub(r"\s*(→|->)\s*", " -> ", cell.lower().replace("↔", "<->").replace("`", ""))
        for direction, union in UNIONS.items():
            travels = name in {kind.__name__ for kind in get_args(union)}
            if travels and not says(said, direction):
                wrong[name] = f"travels {direction}, and the row says {cell!r}"
    assert not wrong


def says(cell: str, direction: str) -> bool:
    """Is the direction in the cell: alone, in a list, in a chain, or as a double arrow?"""
    if "->" not in direction:
        return direction in cell
    giver, taker = direction.split(" -> ")
    for part in re.split(r"[;,]", cell):
        if giver in part and taker in part:
            if "<->" in part:
                return True
            after = part.split(" -> ")
            senders, takers = after[0], after[-1]
            if giver in senders and taker in takers:
                return True
    return False


def test_every_tagged_message_belongs_to_a_union() -> None:
    united = {kind.__name__ for union in UNIONS.values() for kind in get_args(union)}

    assert set(tagged()) == united


def test_within_one_direction_every_tag_names_one_message() -> None:
    for direction, union in UNIONS.items():
        tags = [kind.__struct_config__.tag for kind in get_args(union)]

        assert len(tags) == len(set(tags)), direction


def test_every_message_says_what_it_means() -> None:
    silent = [name for name, kind in tagged().items() if not (kind.__doc__ or "").strip()]

    assert not silent
