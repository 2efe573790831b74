"""Numbers, times, sizes and texts as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from zfarm.face.figures import (
    ascii_only,
    clean,
    count,
    duration,
    meter,
    per_second,
    percent,
    plural,
    size,
    sparkline,
)


@pytest.mark.parametrize(
    ("number", "width", "text"),
    [
        (0, 6, "0"),
        (999, 4, "999"),
        (1234, 5, "1,234"),
        (1234, 4, "1.2k"),
        (999_999, 6, "1.00M"),
        (1_234_567, 9, "1,234,567"),
        (1_234_567, 6, "1.23M"),
        (123_456_789, 6, "123.5M"),
        (123_456_789, 5, "123M"),
        (12_345_678_901, 4, "12G"),
    ],
)
def test_counts(number, width, text):
    assert count(number, width) == text


@given(st.integers(0, 10**20), st.integers(4, 20))
def test_counts_always_fit(number, width):
    assert len(count(number, width)) <= width


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (9.96, "10s"), (59.6, "1m00s"), (185, "3m05s"),
        (3599.7, "1h00m"), (7620, "2h07m"), (86400 * 3 + 4 * 3600, "3d04h"), (86400 * 412, "412d"),
        (-5, "0.0s"), (math.inf, "never"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


@given(st.floats(0, 9e8))
def test_durations_always_fit(seconds):
    assert len(duration(seconds)) <= 6


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (512, "512"), (999, "999"), (1000, "1.0K"), (1536, "1.5K"), (12 * 2**20, "12M"),
     (1.5 * 2**30, "1.5G"), (999.7 * 2**20, "1.0G"), (3 * 2**40, "3.0T"), (-1, "0")],
)  # fmt: skip
def test_sizes(number, text):
    assert size(number) == text


@given(st.integers(0, 2**70))
def test_sizes_always_fit(number):
    assert len(size(number)) <= 4


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0"),
        (0.251, "0.25"),
        (12.34, "12.3"),
        (99.96, "100.0"),
        (1234.5, "1,234"),
        (12_345_678.0, "12.35M"),
    ],
)
def test_rates(rate, text):
    assert per_second(rate, 8) == text


def test_percent_and_plural():
    assert (percent(7.4), percent(99.6), percent(0)) == ("7%", "100%", "0%")
    assert (plural(1, "worker"), plural(0, "worker"), plural(1200, "slot")) == (
        "1 worker",
        "0 workers",
        "1,200 slots",
    )


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 8, "────"), (8, 8, "━━━━"), (4, 8, "━━──"), (1, 100, "━───"), (9, 8, "━━━━"), (1, 0, "────")],
)
def test_meters(part, whole, text):
    assert "".join(meter(part, whole, 4)) == text


def test_sparklines_scale_to_their_highest_and_show_the_newest():
    assert sparkline([9, 0, 1, 2, 4, 8], 5) == " ▂▃▅█"
    assert sparkline([5], 3) == "  █"
    assert sparkline([], 3) == "   "
    assert sparkline([1, 2], 0) == ""


@given(st.lists(st.floats(0, 1e9), max_size=50), st.integers(0, 30))
def test_sparklines_have_their_width(values, width):
    assert len(sparkline(values, width)) == width


def test_texts_from_elsewhere_cannot_steer_the_terminal():
    assert clean("\x1b[2J\x07evil\nname\u202e\tx") == "�[2J�evil name� x"
    assert clean("<lambda> äöü 数") == "<lambda> äöü 数"
    assert clean("x" * 600) == "x" * 499 + "…"


@given(st.text())
def test_ascii_is_as_wide_as_what_it_stands_for(text):
    plain = ascii_only(text)

    assert plain.isascii()
    assert cell_len(plain) == cell_len(text) or not text.isprintable()
    assert ascii_only("── 3 ×4 ▁█ 数…") == "-- 3 x4 _# ??~"
