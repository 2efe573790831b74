"""Lines of text for a screen: tables, titled blocks and panes, each cut to its width and height.

A line is a list of (text, style) and no rich table: a dashboard draws hundreds of cells twice a second, and
this costs a tenth. Nothing in here knows the farm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from rich.cells import cell_len, set_cell_size

__all__ = ["Block", "Cells", "Column", "Line", "beside", "fit", "share", "stack", "table"]

Cells: TypeAlias = dict[str, tuple[str, str]]
"""The cells of one row: title of the column -> (text, style)."""
Line: TypeAlias = list[tuple[str, str]]
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. ``width`` 0: what the others leave, ``least`` at least.

    When there is not room for all, the one with the highest ``rank`` goes first.
    """

    title: str
    width: int
    right: bool = False
    rank: int = 0
    least: int = 10


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the screen: a title, and as many lines below it as there is room for."""

    title: str
    facts: str
    wants: Callable[[int], int]
    """width -> how many lines there would be."""
    rows: Callable[[int, int], list[Line]]
    """(width, height) -> lines; cells are built only for what is shown."""
    least: int = 1
    weight: int = 1
    """How much of the room that is left goes here, compared with others that want more."""


def fit(line: Line, width: int) -> Line:
    """``line`` cut or padded to exactly ``width`` columns."""
    fitted: Line = []
    for text, style in line:
        length = cell_len(text)
        if length > width:
            fitted.append((set_cell_size(text, width), style))
            return fitted
        fitted.append((text, style))
        width -= length
    fitted.append((" " * width, ""))
    return fitted


def _cell(text: str, style: str, column: Column, width: int) -> tuple[str, str]:
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…", style
    return (text.rjust(len(text) + width - length) if column.right else set_cell_size(text, width)), style


def table(
    columns: Sequence[Column],
    rows: Sequence[Row],
    cells: Callable[[Row], Cells],
    width: int,
    height: int,
) -> list[Line]:
    """Head and rows; when they do not all fit, the last line says how many are missing."""
    shown = list(columns)
    while sum(column.width or column.least for column in shown) + len(shown) + 1 > width and len(shown) > 1:
        shown.remove(max(shown, key=lambda column: (column.rank, column.width)))
    rest = width - 1 - sum(column.width for column in shown) - len(shown)
    widths = [column.width or max(1, rest) for column in shown]

    def line(texts: Cells) -> Line:
        out: Line = [(" ", "")]
        for column, cell_width in zip(shown, widths, strict=True):
            out += [_cell(*texts[column.title], column, cell_width), (" ", "")]
        return out

    fitting = len(rows) if 1 + len(rows) <= height else max(0, height - 2)
    if height == 1 and rows:
        return [line(cells(rows[0]))]
    lines = [line({column.title: (column.title, "dim") for column in shown})]
    lines += [line(cells(row)) for row in rows[:fitting]]
    if fitting < len(rows):
        lines.append([(f" … {len(rows) - fitting:,} more", "dim")])
    return lines[:height]


def stack(blocks: Sequence[Block], width: int, height: int) -> list[Line]:
    """Blocks below one another, each under its title; the height is shared out."""
    lines: list[Line] = []
    heights = share(
        height - len(blocks),
        [block.wants(width) for block in blocks],
        [block.least for block in blocks],
        [block.weight for block in blocks],
    )
    for block, rows in zip(blocks, heights, strict=True):
        title: Line = [
            ("── ", "dim"),
            (block.title, "bold"),
            (f" {block.facts} " if block.facts else " ", ""),
        ]
        used = sum(cell_len(text) for text, _ in title)
        lines.append([*title, ("─" * max(0, width - used), "dim")])
        lines += block.rows(width, rows)[:rows] if rows else []
    return [fit(line, width) for line in lines[: max(0, height)]]


def share(height: int, wants: Sequence[int], least: Sequence[int], weights: Sequence[int]) -> list[int]:
    """Split ``height`` lines: first to each its least, in order; then by weight among who wants more."""
    got = []
    for want, low in zip(wants, least, strict=True):
        first = max(0, min(height, max(1, min(want, low))))
        got.append(first)
        height -= first
    while height > 0:
        hungry = [i for i, want in enumerate(wants) if want > got[i]]
        if not hungry:
            break
        unit = height / sum(weights[i] for i in hungry)
        for i in hungry:
            extra = min(max(1, int(unit * weights[i])), wants[i] - got[i], height)
            got[i] += extra
            height -= extra
    return got


def beside(left: list[Line], right: list[Line], width: int) -> list[Line]:
    """Two panes side by side, the left one ``width`` wide."""
    rows = max(len(left), len(right))
    left = left + [[] for _ in range(rows - len(left))]
    right = right + [[] for _ in range(rows - len(right))]
    return [[*fit(one, width), ("  ", ""), *two] for one, two in zip(left, right, strict=True)]
