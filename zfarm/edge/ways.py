"""The ways in which large results come to the client whose calls give them, in a Setup; no behaviour."""

from __future__ import annotations

from typing import Final

__all__ = ["AS_THEY_ARE", "BOUNDED", "IN_PIECES"]

AS_THEY_ARE: Final = 0
"""With their reports, whatever their size: client and worker are on one host."""
IN_PIECES: Final = 1
"""Those of ``results_from_bytes`` or more ahead of their reports: their client is there to take them."""
BOUNDED: Final = 2
"""With their reports, up to ``job_result_bytes_max``: the broker keeps them for their client."""
