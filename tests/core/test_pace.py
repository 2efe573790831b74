"""How large batches get: from one item to as much as runs for the aimed time, within every bound."""

from __future__ import annotations

from zfarm.core.pace import BATCHES_PER_SLOT, Pace
from zfarm.settings import Settings

LIMITS = Settings(batch_us=20_000, batch_growth=64, batch_bytes_max=1_000_000)


def paced(items: int, run_us: int, size: int = 0) -> Pace:
    pace = Pace(limits=LIMITS)
    pace.measured(items, run_us, size)
    return pace


def test_nothing_is_known_at_first() -> None:
    assert Pace(limits=LIMITS).size(1_000_000, 2) == 1


def test_a_batch_aims_at_the_time() -> None:
    assert paced(10, 1_000).size(1_000_000, 2) == 200


def test_long_items_go_one_by_one() -> None:
    assert paced(1, 3_000_000).size(1_000_000, 2) == 1


def test_growth_is_bounded_by_what_was_measured() -> None:
    assert paced(1, 0).size(10_000_000, 2) == 64
    assert paced(64, 3).size(10_000_000, 2) == 64 * 64


def test_bytes_are_bounded() -> None:
    assert paced(100, 1, size=100 * 10_000).size(1_000_000, 2) == 99


def test_the_tail_is_shared_among_the_slots() -> None:
    pace = paced(1000, 1_000)  # 20,000 items aimed at
    assert pace.size(40_000, 2) == 40_000 // (2 * BATCHES_PER_SLOT)
    assert pace.size(100, 2) == 5_000  # not ever shorter: what is left goes at once


def test_recent_batches_count_more() -> None:
    pace = paced(100, 100)
    for _ in range(10):
        pace.measured(100, 10_000, 0)

    assert 190 < pace.size(1_000_000, 2) < 210


def test_a_fixed_size_is_never_left() -> None:
    pace = Pace(7, LIMITS)
    assert pace.size(1000, 2) == 7
    pace.measured(7, 1, 0)
    assert pace.size(3, 2) == 7
