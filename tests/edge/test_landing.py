"""Where files arrive: what is sent is what is there; anything else is an error, and nothing is left of it."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from zfarm.edge import landing as landing_module
from zfarm.edge import parcels, writing
from zfarm.edge.beside import PARTS, parts_name
from zfarm.edge.handover import Givers, take_back
from zfarm.edge.landing import Landed, Landing, Lost
from zfarm.edge.parcels import Handed, Head, directory_item, file_items, handed_item, refusal_item, tail_item
from zfarm.edge.scratch import Scratch, scratch_root
from zfarm.errors import DamagedFile, TransferError, UnsafeName


def items_of(data: bytes, name: str, tmp_path: Path, mode: int = 0o644) -> list[bytes]:
    """The items of a file with this content."""
    path = tmp_path / "source"
    path.write_bytes(data)
    path.chmod(mode)
    fd = os.open(path, os.O_RDONLY)
    try:
        return [bytes(item) for item in file_items(fd, name)]
    finally:
        os.close(fd)


def pour(landing: Landing, items: list[bytes]) -> list[Landed | Lost]:
    """Take all of these and finish."""
    said: list[Landed | Lost] = []
    for item in items:
        said += landing.take(item)
        if landing.full:
            said += landing.settle()
    return said + landing.finish()


def contents(top: Path) -> dict[str, bytes]:
    """All files below, ours too."""
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "SMALL_BYTES", 10)
    monkeypatch.setattr(parcels, "CHUNK_BYTES", 16)
    monkeypatch.setattr(landing_module, "CHUNK_BYTES", 16)


@pytest.mark.usefixtures("small_chunks")
@hypothesis_settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)
@given(st.lists(st.tuples(st.binary(max_size=100), st.sampled_from([0o644, 0o755, 0o400])), max_size=12))
def test_what_was_sent_is_there(tmp_path: Path, files: list[tuple[bytes, int]]) -> None:
    home = tmp_path / os.urandom(8).hex()
    items = []
    for n, (data, mode) in enumerate(files):
        items += items_of(data, f"{n % 3}/{n}", tmp_path, mode)
    said = pour(Landing(home), items)

    assert [one.name for one in said] == [f"{n % 3}/{n}" for n in range(len(files))]
    assert contents(home) == {f"{n % 3}/{n}": data for n, (data, _) in enumerate(files)}
    for n, (_, mode) in enumerate(files):
        assert stat.S_IMODE((home / f"{n % 3}/{n}").stat().st_mode) == mode


@pytest.mark.usefixtures("small_chunks")
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_whatever_comes_is_whole_or_an_error(tmp_path: Path, data: Any) -> None:
    home = tmp_path / os.urandom(8).hex()
    first, second = os.urandom(50), os.urandom(37)
    items = items_of(first, "first", tmp_path) + items_of(second, "second", tmp_path)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(items) - 1))
        kind = data.draw(st.sampled_from(["drop", "double", "swap", "flip", "cut", "junk"]))
        if kind == "drop" and len(items) > 1:
            del items[at]
        elif kind == "double":
            items.insert(at, items[at])
        elif kind == "swap":
            items[at], items[0] = items[0], items[at]
        elif kind == "flip":
            spot = data.draw(st.integers(0, len(items[at]) - 1)) if items[at] else 0
            items[at] = (
                items[at][:spot] + bytes([items[at][spot] ^ 1]) + items[at][spot + 1 :] if items[at] else b""
            )
        elif kind == "cut":
            items[at] = items[at][:-1]
        else:
            items[at] = data.draw(st.binary(max_size=60))
    pour(Landing(home), items)

    whole = {first, second}
    assert all(content in whole for content in contents(home).values())
    assert not [name for name in os.listdir(home) if name.startswith(PARTS)]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("spoilt", ["chunk", "tail", "short", "size"])
def test_damage_is_told_and_nothing_is_left(home: Path, tmp_path: Path, spoilt: str) -> None:
    items = items_of(b"0123456789" * 5, "name", tmp_path)
    if spoilt == "chunk":
        items[2] = items[2][:-1] + b"x"
    elif spoilt == "tail":
        items[-1] = tail_item(bytes(32))
    elif spoilt == "short":
        del items[-2]
    else:
        items[0] = b"H" + parcels._pack(Head("name", 49))
    said = pour(Landing(home), items)

    assert [type(one.error) for one in said if isinstance(one, Lost)] == [DamagedFile]
    assert not any(isinstance(one, Landed) for one in said)
    assert not os.listdir(home)


@pytest.mark.usefixtures("small_chunks")
def test_the_disk_begins_with_a_large_file_while_its_rest_comes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    begin = writing.begin_writing

    def noted(fd: int, start: int, size: int) -> None:
        begun.append((start, size))
        begin(fd, start, size)

    monkeypatch.setattr(writing, "begin_writing", noted)
    monkeypatch.setattr(writing, "WRITING_BYTES", 40)
    data = os.urandom(200)
    pour(Landing(home), items_of(data, "big", tmp_path))

    assert begun == [(at, 48) for at in range(0, 192, 48)]
    assert contents(home) == {"big": data}


def test_an_unfinished_file_is_no_file(home: Path, tmp_path: Path) -> None:
    landing = Landing(home)
    for item in items_of(bytes(3_000_000), "name", tmp_path)[:-2]:
        assert not landing.take(item)
    assert landing.interrupted("the worker died")[0].name == "name"
    landing.take(items_of(bytes(3_000_000), "name", tmp_path)[-2])  # late pieces of it
    landing.close()

    assert not os.listdir(home)


def test_nothing_is_written_through_links(home: Path, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    home.mkdir()
    (home / "link").symlink_to(tmp_path / "away")
    (home / "file").symlink_to(tmp_path / "target")
    os.mkfifo(home / "pipe")
    items = items_of(b"data", "link/x", tmp_path) + items_of(b"data", "file", tmp_path)
    said = pour(Landing(home), items + items_of(b"data", "pipe", tmp_path) + [directory_item("link", 0o700)])

    assert len(said) == 4
    assert all(isinstance(one, Lost) and isinstance(one.error, UnsafeName) for one in said)
    assert not os.listdir(tmp_path / "away")
    assert not (tmp_path / "target").exists()
    assert sorted(os.listdir(home)) == ["file", "link", "pipe"]


def test_a_directory_that_is_swapped_for_a_link_is_not_followed(home: Path, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    landing = Landing(home)
    for item in [directory_item("sub", 0o755), *items_of(b"data", "sub/x", tmp_path)]:
        assert not landing.take(item)
    (home / "sub").rmdir()
    (home / "sub").symlink_to(tmp_path / "away")
    said = landing.finish()

    assert [type(one.error) for one in said if isinstance(one, Lost)] == [UnsafeName, UnsafeName]
    assert not os.listdir(tmp_path / "away")


def test_names_are_checked_where_they_arrive(home: Path, tmp_path: Path) -> None:
    items = [items_of(b"x", name, tmp_path)[0] for name in ("../x", "/etc/x", "a/../../x", "a", "A", "a/b")]
    said = pour(Landing(home), items)

    assert [one.name for one in said if isinstance(one, Landed)] == ["a"]
    assert all(isinstance(one.error, UnsafeName) for one in said if isinstance(one, Lost))
    assert len(said) == 6
    assert contents(tmp_path) == {"source": b"x", "home/a": b"x"}


def test_a_claimed_size_beyond_the_disk_is_refused_at_once(home: Path) -> None:
    said = pour(Landing(home), [b"H" + parcels._pack(Head("bomb", 1 << 43))])

    assert isinstance(said[0], Lost)
    assert said[0].error.errno == errno.ENOSPC
    assert not os.listdir(home)


def test_too_many_files_are_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zfarm.settings import Settings

    monkeypatch.setattr(landing_module, "settings", Settings(files_max=3))
    said = pour(Landing(home), [items_of(b"x", f"{n}", tmp_path)[0] for n in range(5)])

    assert [isinstance(one, Lost) for one in said].count(True) == 2
    assert len(contents(home)) == 3


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename"])
def test_a_full_disk_is_told_and_the_next_file_comes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    landing = Landing(home)

    def full(*_args: Any, **_kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, call, full)
        said: list[Any] = []
        for item in items_of(bytes(100_000), "first", tmp_path):
            said += landing.take(item)
        said += landing.settle()
    assert [(one.name, one.error.errno) for one in said] == [("first", errno.ENOSPC)]
    assert "No space left" in str(said[0].error)
    said = pour(landing, items_of(b"data", "second", tmp_path))

    assert [one.name for one in said] == ["second"]
    assert contents(home) == {"second": b"data"}


def test_what_a_killed_receiver_left_is_swept_up_and_what_is_in_use_is_not(
    home: Path, tmp_path: Path
) -> None:
    using = Landing(home)
    for item in items_of(bytes(3_000_000), "big", tmp_path)[:-1]:
        using.take(item)
    dead = home / parts_name("0123")
    dead.mkdir()
    (dead / "0").write_bytes(b"half")
    pour(Landing(home), [])

    assert len(os.listdir(home)) == 1
    assert not using.take(items_of(bytes(3_000_000), "big", tmp_path)[-1])
    assert [one.name for one in using.finish()] == ["big"]
    assert os.listdir(home) == ["big"]


def test_what_another_host_has_half_written_is_let_be(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    with monkeypatch.context() as there:
        there.setattr(platform, "node", lambda: "there")
        theirs = home / parts_name("01" * 8)
        theirs.mkdir()
    said = pour(Landing(home), items_of(b"data", "first", tmp_path))

    assert [one.name for one in said] == ["first"]
    assert sorted(os.listdir(home)) == [theirs.name, "first"]


def test_files_land_where_the_file_system_has_no_locks(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    home.mkdir()
    dead = home / parts_name("01" * 8)
    dead.mkdir()
    said = pour(Landing(home), items_of(b"data", "first", tmp_path))

    assert [one.name for one in said] == ["first"]
    assert sorted(os.listdir(home)) == [dead.name, "first"]  # who knows who is at it


def test_refusals_end_what_was_begun(home: Path, tmp_path: Path) -> None:
    items = items_of(bytes(3_000_000), "big", tmp_path)
    said = pour(Landing(home), [*items[:2], refusal_item("big", "the disk is broken"), *items[2:]])

    assert [(one.name, str(one.error)) for one in said if isinstance(one, Lost)] == [
        ("big", "the disk is broken")
    ]
    assert len(said) == 1
    assert not os.listdir(home)


# ---------------------------------------------------------------- files that lie ready on this host


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    scratch = Scratch()
    yield scratch
    scratch.remove()


def test_a_handed_file_is_moved_and_verified(home: Path, scratch: Scratch, tmp_path: Path) -> None:
    data = os.urandom(2_000_000)
    tail = items_of(data, "x", tmp_path)[-1]
    (scratch.path / "1").write_bytes(data)
    (scratch.path / "2").write_bytes(data[:-1] + b"?")
    items = [
        handed_item(Head("good", len(data), 0o600), scratch.path.name, 1), tail,
        handed_item(Head("bad", len(data)), scratch.path.name, 2), tail,
        handed_item(Head("absent", len(data)), scratch.path.name, 3), tail,
        *items_of(b"in chunks", "absent", tmp_path),
    ]  # fmt: skip
    said = pour(Landing(home), items)

    assert [one.name for one in said if isinstance(one, Landed)] == ["good", "absent"]
    assert [type(one.error) for one in said if isinstance(one, Lost)] == [DamagedFile]
    assert contents(home) == {"good": data, "absent": b"in chunks"}
    assert not os.listdir(scratch.path)


def test_only_numbered_files_of_scratch_directories_are_ever_touched(
    scratch: Scratch, tmp_path: Path
) -> None:
    secret = tmp_path / "1"
    secret.write_bytes(b"secret")
    (scratch.path / "1").symlink_to(secret)
    os.link(secret, scratch.path / "2")
    os.mkfifo(scratch.path / "3")
    (scratch.path / "4").write_bytes(b"other size")
    folder = os.open(tmp_path, os.O_RDONLY)
    givers = Givers()
    try:
        head = Head("x", 6)
        for number in range(1, 6):
            assert givers.take(Handed(head, scratch.path.name, number), folder, "got") is None
        hostile = [str(tmp_path), f"../{tmp_path.name}", "..", "", "0" * 15, "0" * 16]
        assert [givers.take(Handed(head, name, 1), folder, "got") for name in hostile] == [None] * 6
    finally:
        givers.close()
        os.close(folder)

    assert secret.read_bytes() == b"secret"
    assert not (tmp_path / "got").exists()


def test_to_look_for_what_lies_on_another_host_leaves_nothing_on_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    givers = Givers()

    assert givers.take(Handed(Head("x", 6), "0" * 16, 1), -1, "got") is None
    assert not os.listdir(tmp_path)


def test_either_side_gets_it_and_never_both(scratch: Scratch, tmp_path: Path) -> None:
    (scratch.path / "1").write_bytes(b"123")
    near = os.open(scratch.path, os.O_RDONLY)
    folder = os.open(tmp_path, os.O_RDONLY)
    givers = Givers()
    try:
        fd = take_back(near, 1)
        assert fd is not None
        os.close(fd)
        assert givers.take(Handed(Head("x", 3), scratch.path.name, 1), folder, "got") is None
        assert take_back(near, 1) is None
    finally:
        givers.close()
        os.close(near)
        os.close(folder)


def test_scratch_directories_of_the_dead_are_swept_up(scratch: Scratch) -> None:
    dead = scratch_root() / ("0" * 16)
    (dead / "closed").mkdir(parents=True)
    (dead / "closed" / "file").write_text("x")
    (dead / "closed").chmod(0o500)
    other = Scratch()

    assert not dead.exists()
    assert scratch.path.exists()
    other.remove()
    assert not other.path.exists()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TransferError, match="cannot be written"):
        Landing(tmp_path / "file" / "below")
