"""Limits for pools of segments in tests; it knows no pool."""

from __future__ import annotations


class Lenient:
    """Limits that let nothing spill."""

    shared_spill_max = 0
    shared_segments_max = 100
    shared_warm_bytes = 10**9
