"""Names of files that travel: whatever is let through names one file below its directory, and only one."""

from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfarm.edge.names import Names, check_name, fold
from zfarm.errors import UnsafeName

PARTS = st.text(max_size=300) | st.sampled_from(
    ["..", ".", "", "a", "A", "é", "e\u0301", "ß", "SS", ".zfarm-x"]
)
PATHS = st.lists(PARTS, max_size=70).map("/".join)


@given(PATHS)
def test_what_is_let_through_stays_below(name: str) -> None:
    try:
        check_name(name)
    except UnsafeName as error:
        assert str(error).isprintable()
        return
    assert os.path.normpath(os.path.join("/top", name)) == f"/top/{name}"
    assert "\0" not in name
    assert all(0 < len(part.encode()) <= 255 for part in name.split("/"))


@given(st.lists(st.tuples(PATHS, st.booleans()), max_size=30))
def test_no_two_that_are_let_through_are_one_on_any_disk(entries: list[tuple[str, bool]]) -> None:
    names = Names()
    kept: dict[str, str] = {}
    files = set()
    for name, directory in entries:
        try:
            names.add(name, directory)
        except UnsafeName:
            continue
        parts = name.split("/")
        for n in range(1, len(parts) + 1):
            path = "/".join(parts[:n])
            assert kept.setdefault(fold(path), path) == path
        if not directory:
            assert name not in files
            files.add(name)
    for name in files:
        assert not any(other.startswith(name + "/") for other in kept.values())


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "/a", "a/", "a//b", "..", "a/..", "../a", "./a", "a/./b", "a\0", "\n", "\x7f", "\udcff"),
        *("x" * 256, "a/" * 64 + "a", "ab/" * 700 + "a", ".zfarm-parts-1", "a/.ZFARM-x", 7, b"a", None),
    ],
)
def test_bad_names_are_refused(name: object) -> None:
    with pytest.raises(UnsafeName):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "a b/c.d", "...", "..a", "-rf", "日本/語", "x" * 255, "a\\b", "~"])
def test_good_names_are_not(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a", "A"),
        ("straße", "STRASSE"),
        ("é", unicodedata.normalize("NFD", "é")),
        ("a/x", "A/y"),
        ("a/x", "a/X"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("a", "a"),
    ],
)
def test_clashes_are_refused_and_named(one: str, other: str) -> None:
    names = Names()
    names.add(one)
    with pytest.raises(UnsafeName, match="clashes"):
        names.add(other)
    names.add("another")
    assert len(names) == one.count("/") + 2
