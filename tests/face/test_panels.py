"""The dashboard as text: golden pictures, every size, strange names, a broker that is away."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from rich.cells import cell_len
from rich.console import Console

from tests.face import sample
from zfarm.core.view import View
from zfarm.face.grid import share
from zfarm.face.panels import Scene, screenful
from zfarm.messages import Picture, TextNote

PICTURES = Path(__file__).parent / "pictures"
WALL = 1_763_680_000.0


@pytest.fixture(autouse=True)
def _utc(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def scene(view: View, **more: object) -> Scene:
    facts = {"now": 60.5, "wall": WALL, "versions": "zfarm 0.1.0", "keys": "q quit"}
    return Scene(view, "tcp://10.1.2.3:5555", **{**facts, **more})  # type: ignore[arg-type]


def drawn(shown: Scene, width: int, height: int, whole: bool = False, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(width=width, height=height, file=file, color_system=None, legacy_windows=False)
    console.print(screenful(shown, whole=whole), height=None if whole else height)
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()


def check_golden(name: str, lines: list[str]) -> None:
    """Compare with the stored picture; ZFARM_NEW_PICTURES=1 stores what there is now, to be looked at."""
    path = PICTURES / name
    text = "\n".join(lines) + "\n"
    if os.environ.get("ZFARM_NEW_PICTURES"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"looks different from {path.name}"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50)])
def test_it_looks_as_it_did(width, height):
    check_golden(f"top-{width}x{height}.txt", drawn(scene(sample.view()), width, height))


def test_a_large_farm_shows_what_fits_and_how_much_does_not():
    check_golden("large-80x24.txt", drawn(scene(sample.view(40, 60)), 80, 24))


def test_a_broker_that_is_away_leaves_its_last_picture_and_says_since_when():
    shown = scene(sample.view(), now=72.0, wall=WALL + 12, away_since=61.0)

    lines = drawn(shown, 80, 24)

    assert "no answer since 23:06:41 (11s); this is the last picture" in lines[1]
    assert "alpha03" in "\n".join(lines)
    check_golden("away-80x24.txt", lines)


def test_a_broker_that_does_not_let_us_in_says_why():
    shown = scene(
        sample.view(), now=72.0, wall=WALL + 12, away_since=61.0, trouble="it does not know our key"
    )

    assert "no answer since 23:06:41 (11s): it does not know our key" in drawn(shown, 80, 24)[1]


def test_before_the_first_answer_it_says_so():
    lines = drawn(scene(View(), away_since=50.5), 80, 24)

    assert "tcp://10.1.2.3:5555" in lines[0]
    assert "no answer since" in lines[2]
    assert len(lines) == 24


def test_a_screen_with_room_for_one_line_shows_a_row_and_not_its_head():
    lines = drawn(scene(sample.view(1, 1)), 80, 11)

    assert "simulate" in "\n".join(lines)


def test_missed_notes_are_admitted():
    view = sample.view()
    view.fold(TextNote(500, "info", "far ahead"), now=60.0)

    assert "some notes were missed" in drawn(scene(view), 80, 24)[-1]


def test_printed_once_it_shows_everything_without_blanks_at_the_ends():
    view = View()
    view.take(sample.picture(40, 60), now=60.5)
    lines = drawn(scene(view), 100, 24, whole=True)

    text = "\n".join(lines)
    assert all(f"alpha{i:02d}" in text for i in range(40))
    assert all(f" {1000 + i} " in text for i in range(60))
    assert not [line for line in lines if line != line.rstrip()]
    assert "more" not in text
    assert "failing" not in text  # one picture has no rates
    assert "recent" not in text


def test_ages_go_on_while_nothing_arrives():
    text = "\n".join(drawn(scene(sample.view(), now=70.0), 80, 24))

    assert "silent" in text
    assert "10.3s" not in text
    assert " 10s silent" in text


def test_what_is_said_again_and_again_stands_there_once():
    view = sample.view()
    for number in range(125, 135):
        view.fold(TextNote(number, "warning", "simulate runs again"), now=60.2)

    text = "\n".join(drawn(scene(view), 80, 24))

    assert text.count("simulate runs again ") == 1
    assert "simulate runs again (×10)" in text


def test_an_ascii_terminal_gets_ascii():
    lines = drawn(scene(sample.view()), 160, 50, encoding="ascii")

    assert "-- workers 4" in "\n".join(lines)


def test_names_from_elsewhere_are_shown_and_not_obeyed():
    first = sample.picture()
    evil = first.workers[0].__class__(
        **{
            **{f: getattr(first.workers[0], f) for f in first.workers[0].__struct_fields__},
            "host": "\x1b[31m[red]evil数\n",
        }
    )
    view = View()
    view.take(Picture(first.farm, [evil], first.clients, first.running, {"\x1b]0;x\x07": 4}), now=60.5)

    lines = drawn(scene(view), 80, 24)

    assert not [line for line in lines if "\x1b" in line or "\x07" in line]
    assert any("�[31m[red]" in line for line in lines)
    assert {cell_len(line) for line in lines} == {80}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 220), st.integers(1, 70), st.sampled_from([0, 1, 4, 40]), st.sampled_from([0, 3, 60]))
def test_it_fills_every_size_exactly(width, height, workers, running):
    lines = drawn(scene(sample.view(workers, running)), width, height)

    assert len(lines) == height
    assert {cell_len(line) for line in lines} == {max(40, width)} or width < 40


@given(
    st.integers(0, 50),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=6),
)
def test_lines_are_shared_out_completely_and_nobody_gets_more_than_it_wants(height, needs):
    wants = [want for want, _, _ in needs]

    got = share(height, wants, [low for _, low, _ in needs], [weight for _, _, weight in needs])

    assert all(0 <= lines <= max(1, want) for lines, want in zip(got, wants, strict=True))
    assert sum(got) <= height
    assert sum(got) == height or all(lines >= want for lines, want in zip(got, wants, strict=True))


@pytest.mark.parametrize(("duct", "shown"), [("tcp://10.1.2.3:5570", True), (":5570", True), ("", False)])
def test_where_workers_may_be_dialled_is_shown_if_there_is_room(duct, shown):
    view = View()
    workers = [structs.replace(worker, duct=duct) for worker in sample.workers(2)]
    view.take(structs.replace(sample.picture(), workers=workers), 0.0)

    lines = drawn(scene(view), 120, 40, whole=True)
    assert any(":5570 " in line for line in lines) is shown
    assert any(" duct " in line for line in lines) is shown
    assert not any("5570" in line for line in drawn(scene(view), 80, 40, whole=True))
