"""The piece that is held so that the memory below it stays."""

from __future__ import annotations

import ctypes
import gc
import weakref

from zfarm.edge.highest import HELD_FROM, Highest


class Area(ctypes.c_ubyte * (4 * HELD_FROM)):  # type: ignore[misc]
    """Memory of which it is known when nobody needs it."""


def test_the_highest_large_piece_is_held_and_no_other() -> None:
    areas = sorted((Area() for _ in range(3)), key=ctypes.addressof)
    highest = Highest()
    for area in (areas[1], areas[0], areas[2]):
        highest.note(memoryview(area))
    held = [weakref.ref(area) for area in areas]
    del area
    areas.clear()
    gc.collect()
    assert [one() is not None for one in held] == [False, False, True]


def test_small_pieces_and_copies_are_not_held() -> None:
    highest = Highest()
    area = Area()
    known = weakref.ref(area)
    highest.note(memoryview(area)[: HELD_FROM - 1])
    highest.note(bytes(2 * HELD_FROM))
    del area
    gc.collect()
    assert known() is None
