"""How a large file is written: its blocks set aside, its pages used again where fresh ones are dear."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from itertools import chain
from pathlib import Path

import pytest

from zfarm.edge import writing
from zfarm.edge.landing import Landed, Landing, Lost
from zfarm.edge.parcels import file_items
from zfarm.edge.writing import (
    BEHIND_BYTES,
    DEAR_S,
    DEAR_WINDOWS,
    RESERVED_BYTES,
    TRIED_WINDOWS,
    WRITING_BYTES,
    Writing,
)
from zfarm.messages import CHUNK_BYTES

CHEAP_S = DEAR_S * WRITING_BYTES / 3
FRESH_S = DEAR_S * WRITING_BYTES * 3
WINDOWS = 40


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was to be kept in memory no more."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(writing, "begin_writing", lambda fd, start, size: None)
    monkeypatch.setattr(writing, "drop", lambda fd, start, end: asked.append((start, end)))
    monkeypatch.setattr(writing, "_trial", writing.Trial())
    return asked


def test_where_pages_are_cheap_a_file_stays_in_memory(dropped: list[tuple[int, int]]) -> None:
    one = Writing(-1, 0)
    for n in range(WINDOWS):
        one.wrote((n + 1) * WRITING_BYTES, FRESH_S if n % 5 == 4 else CHEAP_S)

    assert not dropped


def test_where_pages_are_dear_those_on_the_disk_are_used_again(dropped: list[tuple[int, int]]) -> None:
    one = Writing(-1, 0)
    for n in range(WINDOWS):  # now and then the disk was not done, so that fresh ones had to do
        one.wrote((n + 1) * WRITING_BYTES, FRESH_S if n < DEAR_WINDOWS or n % 5 == 4 else CHEAP_S)

    asked_for = range(DEAR_WINDOWS - 1, WINDOWS)
    assert dropped == [(max(0, n * WRITING_BYTES - BEHIND_BYTES), n * WRITING_BYTES) for n in asked_for], (
        "all but what was written last"
    )


def test_a_file_stays_in_memory_where_it_helps_nothing_to_drop_it(dropped: list[tuple[int, int]]) -> None:
    one = Writing(-1, 0)
    for n in range(WINDOWS):
        one.wrote((n + 1) * WRITING_BYTES, FRESH_S)

    assert len(dropped) == TRIED_WINDOWS
    another = Writing(-1, 0)
    for n in range(WINDOWS):
        another.wrote((n + 1) * WRITING_BYTES, FRESH_S)
    assert len(dropped) == TRIED_WINDOWS, "nor is it tried again"


def test_blocks_are_set_aside_some_way_ahead_and_not_beyond_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(writing, "reserve", lambda fd, start, size: asked.append((start, size)))
    size = RESERVED_BYTES + WRITING_BYTES
    one = Writing(-1, size)
    for at in range(0, size, CHUNK_BYTES):
        one.prepare(at)

    assert asked == [(0, RESERVED_BYTES), (RESERVED_BYTES, WRITING_BYTES)]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no blocks are set aside")
def test_too_little_room_is_told_before_it_is_written(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (WRITING_BYTES, hard))
        try:
            with pytest.raises(OSError) as error:
                Writing(file.fileno(), 2 * WRITING_BYTES).prepare(0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)

    assert error.value.errno == errno.EFBIG
    assert not (tmp_path / "large").stat().st_size


def test_where_no_blocks_can_be_set_aside_it_is_written_without() -> None:
    reading, writing_end = os.pipe()
    try:
        Writing(writing_end, WRITING_BYTES).prepare(0)  # a pipe has none
    finally:
        os.close(reading)
        os.close(writing_end)


def test_a_small_file_is_left_alone(dropped: list[tuple[int, int]]) -> None:
    one = Writing(-1, 0)
    one.wrote(WRITING_BYTES - 1, FRESH_S)

    assert not dropped


def test_what_is_dropped_while_it_is_written_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "DEAR_S", 0.0)
    monkeypatch.setattr(writing, "_trial", writing.Trial())
    monkeypatch.setattr(writing, "WRITING_BYTES", 1 << 20)
    asked: list[tuple[int, int]] = []
    drop = writing.drop

    def noted(fd: int, start: int, end: int) -> None:
        os.fsync(fd)  # all of it can go
        asked.append((start, end))
        drop(fd, start, end)

    monkeypatch.setattr(writing, "drop", noted)
    data = os.urandom(9 << 20)
    source = tmp_path / "source"
    source.write_bytes(data)
    landing = Landing(tmp_path / "home")
    with source.open("rb") as file:
        said: list[Landed | Lost] = list(
            chain.from_iterable(landing.take(item) for item in file_items(file.fileno(), "big"))
        )
    said += landing.finish()

    [landed] = said
    assert isinstance(landed, Landed)
    assert landed.path.read_bytes() == data
    assert asked
    assert all(end < len(data) for _, end in asked)
