"""The ways in which large results come to the client whose calls give them, in a Setup; no behaviour."""

from __future__ import annotations

from typing import Final

from zfarm.settings import settings

__all__ = ["AS_THEY_ARE", "BOUNDED", "IN_PIECES", "ITEM_MAX"]

AS_THEY_ARE: Final = 0
"""With their reports, whatever their size: client and worker are on one host."""
IN_PIECES: Final = 1
"""Those of ``results_from_bytes`` or more ahead of their reports: their client is there to take them."""
BOUNDED: Final = 2
"""With their reports, up to ``undivided_bytes_max``: the broker keeps them for their client."""
ITEM_MAX: Final = min(settings.undivided_bytes_max, settings.payload_bytes_max)
"""Bytes of an emitted item that may travel in each of them."""
