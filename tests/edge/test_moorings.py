"""Mappings that are kept: found again, never with anything but what their segment holds, bounded, and given
back."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zfarm.edge import moorings as module
from zfarm.edge import segments
from zfarm.edge.moorings import KEPT_MAX, Berths, Moorings
from zfarm.edge.segments import Segment, bytes_of

pytestmark = pytest.mark.skipif(not segments.POSSIBLE, reason="no memfd and /proc here")

SIZE = 4 * 1024 * 1024
PAGES = SIZE // module._PAGE
MOST = 4 * SIZE


@pytest.fixture
def moorings() -> Iterator[Moorings]:
    moorings = Moorings(MOST)
    yield moorings
    moorings.clear()


@pytest.fixture
def berths() -> Iterator[Berths]:
    berths = Berths(MOST)
    yield berths
    berths.clear()


def segment(content: bytes = b"a", size: int = SIZE, folder: str = "") -> Segment:
    made = Segment(size, folder)
    made.write(memoryview(content * size))
    return made


def mappings(of: Segment) -> int:
    """How many of a segment this process has, beside the segment's own; 0 of one that was closed, too."""
    name = f"memfd:zfarm-{of.token.hex()}"
    own = of._area is not None
    return sum(name in line for line in Path("/proc/self/maps").read_text().splitlines()) - own


def read(area: Any) -> bytes:
    """The first byte of each page, so that all are there."""
    return bytes(bytes_of(area)[:: module._PAGE])


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_a_mapping_is_kept_and_shows_what_its_segment_holds_then(moorings: Moorings) -> None:
    source = segment()
    area = moorings.area_of(source.ref())
    assert read(area) == b"a" * PAGES
    address = ctypes.addressof(area)
    del area
    moorings.settle()
    source.write(memoryview(b"b" * SIZE))
    before = faults()
    area = moorings.area_of(source.ref())
    seen = read(area)
    spent = faults() - before

    assert ctypes.addressof(area) == address
    assert seen == b"b" * PAGES
    assert spent < PAGES / 32, "its pages were there"
    assert moorings.bytes == 0, "it is in use"


@pytest.mark.parametrize("at", [0, SIZE // 2 + 17, SIZE - 1])
def test_one_that_was_written_to_is_not_kept(moorings: Moorings, at: int) -> None:
    source = segment()
    area = moorings.area_of(source.ref())
    read(area)
    area[at] = 7
    del area
    moorings.settle()
    assert (moorings.bytes, mappings(source)) == (0, 0)

    assert bytes(bytes_of(moorings.area_of(source.ref()))) == b"a" * SIZE


def test_one_of_another_size_is_mapped_anew(moorings: Moorings) -> None:
    source = segment()
    moorings.area_of(source.ref())
    source.write(memoryview(b"b" * (SIZE // 2)))
    area = moorings.area_of(source.ref())

    assert bytes(bytes_of(area)) == b"b" * (SIZE // 2)
    assert (moorings.bytes, mappings(source)) == (0, 1)


def test_two_at_once_are_two_mappings(moorings: Moorings) -> None:
    source = segment()
    first, second = moorings.area_of(source.ref()), moorings.area_of(source.ref())
    first[0] = 1
    assert second[0] == ord("a")
    del first, second
    moorings.settle()

    assert mappings(source) <= 1


def test_as_long_as_a_byte_can_be_reached_nobody_else_gets_it(moorings: Moorings) -> None:
    source = segment()
    area = moorings.area_of(source.ref())
    part = bytes_of(area)[10:20]
    del area
    other = moorings.area_of(source.ref())
    other[10] = 0

    assert part.tobytes() == b"a" * 10


def test_what_is_kept_is_bounded(moorings: Moorings) -> None:
    large = [segment() for _ in range(6)]
    for one in large:
        moorings.area_of(one.ref())
    moorings.settle()
    assert [mappings(one) for one in large] == [0, 0, 1, 1, 1, 1]
    assert moorings.bytes == MOST
    small = [segment(size=SIZE // 4) for _ in range(KEPT_MAX + 3)]
    for one in small:
        moorings.area_of(one.ref())
    moorings.settle()
    assert sum(map(mappings, large + small)) == KEPT_MAX
    too_large = segment(size=2 * MOST)
    moorings.area_of(too_large.ref())
    moorings.settle()

    assert mappings(too_large) == 0
    moorings.clear()
    assert (sum(map(mappings, large + small)), moorings.bytes) == (0, 0)


def test_small_and_spilled_ones_are_not_kept(moorings: Moorings, tmp_path: Path) -> None:
    small, spilled = segment(size=64 * 1024), segment(folder=str(tmp_path))
    for one in (small, spilled):
        assert moorings.area_of(one.ref())[0] == ord("a")
    moorings.settle()

    assert moorings.bytes == 0


def test_without_a_word_of_the_system_nothing_is_kept(
    moorings: Moorings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(fd: int, size: int, at: int) -> bytes:
        raise PermissionError

    source = segment()
    moorings.area_of(source.ref())
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", forbidden)
        moorings.settle()

    assert (moorings.bytes, mappings(source)) == (0, 0)


def test_after_the_end_areas_are_unmapped_at_once(moorings: Moorings) -> None:
    source = segment()
    area, kept = moorings.area_of(source.ref()), segment()
    moorings.area_of(kept.ref())
    moorings.close()
    assert (mappings(source), mappings(kept)) == (1, 0)
    del area

    assert mappings(source) == 0


def in_a_fork(check: Any) -> bool:
    """Whether this is true in a process that is forked now."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


def test_processes_that_are_forked_have_what_is_in_use_alone(moorings: Moorings, berths: Berths) -> None:
    kept, left, used, written = (segment() for _ in range(4))
    moorings.area_of(kept.ref())
    moorings.settle()
    moorings.area_of(left.ref())
    area = moorings.area_of(used.ref())
    berths.write(written.ref(), memoryview(b"b" * SIZE))
    assert [mappings(one) for one in (kept, left, used, written)] == [1] * 4

    assert in_a_fork(lambda: [mappings(one) for one in (kept, left, used, written)] == [0, 0, 1, 0])
    assert in_a_fork(lambda: not (moorings.bytes or moorings.left or berths.bytes))
    assert in_a_fork(lambda: read(area) == b"a" * PAGES)
    again = moorings.area_of(kept.ref())
    assert in_a_fork(lambda: read(again) == b"a" * PAGES)


def test_one_that_will_not_come_again_is_not_kept(moorings: Moorings) -> None:
    first, second, used = segment(), segment(b"b"), segment(b"c")
    area = moorings.area_of(used.ref())
    for one in (first, second):
        read(moorings.area_of(one.ref()))
    moorings.settle()
    for one in (first, used, segment()):
        moorings.forget(one.token)
    assert [mappings(one) for one in (first, second, used)] == [0, 1, 1]
    assert moorings.bytes == SIZE
    assert read(area) == b"c" * PAGES
    moorings.forget(second.token)

    assert (mappings(second), moorings.bytes) == (0, 0)


# ---------------------------------------------------------------- writing


def test_what_is_written_again_goes_through_the_same_mapping(berths: Berths) -> None:
    target = segment()
    if not berths.write(target.ref(), memoryview(b"b" * SIZE)):
        pytest.skip("this system does not fill page tables at once")
    assert bytes(bytes_of(target.area)) == b"b" * SIZE
    data = memoryview(b"c" * (SIZE - 5))
    before = faults()
    assert berths.write(target.ref(), data)
    spent = faults() - before

    assert bytes(bytes_of(target.area)) == b"c" * (SIZE - 5) + b"b" * 5
    assert spent < PAGES / 32
    assert (mappings(target), berths.bytes) == (1, SIZE)


def test_where_to_write_is_bounded(berths: Berths, tmp_path: Path) -> None:
    data = memoryview(b"b" * SIZE)
    targets = [segment() for _ in range(6)]
    if not berths.write(targets[0].ref(), data):
        pytest.skip("this system does not fill page tables at once")
    assert all(berths.write(one.ref(), data) for one in targets)
    assert [mappings(one) for one in targets] == [0, 0, 1, 1, 1, 1]
    assert not berths.write(segment(folder=str(tmp_path)).ref(), data)
    assert not berths.write(targets[0].ref(), data[:1000])
    berths.clear()

    assert (sum(map(mappings, targets)), berths.bytes) == (0, 0)


def test_one_that_was_too_small_is_mapped_anew(berths: Berths) -> None:
    target = segment()
    if not berths.write(target.ref(), memoryview(b"b" * (SIZE // 2))):
        pytest.skip("this system does not fill page tables at once")
    assert berths.write(target.ref(), memoryview(b"c" * SIZE))

    assert bytes(bytes_of(target.area)) == b"c" * SIZE
    assert (mappings(target), berths.bytes) == (1, SIZE)


def test_a_segment_that_is_gone_is_an_error(berths: Berths, moorings: Moorings) -> None:
    gone = segment()
    ref = gone.ref()
    gone.close()

    with pytest.raises(OSError):
        berths.write(ref, memoryview(b"b" * SIZE))
    with pytest.raises(OSError):
        moorings.area_of(ref)
