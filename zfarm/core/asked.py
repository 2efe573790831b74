"""What a client's machine knows of one open task; no behaviour."""

from __future__ import annotations

from typing import Any

import msgspec

from zfarm.messages import Blob

__all__ = ["EARLIER", "Asked"]

EARLIER = -1
"""In place of a Submit's number: it may or may not have arrived, so whatever the broker says of it holds."""


class Asked(msgspec.Struct, gc=False, eq=False):
    """One open task: all that is needed to ask for it again. Untracked by the garbage collector: there may be
    millions, and they refer to nothing that refers back but their token, which the client's ``_tasks`` lets
    go."""

    number: int
    token: Any
    name: str
    function: bytes
    setup: bytes
    body: Blob
    items: int
    max_attempts: int
    timeout_us: int = 0
    priority: int = 0
    memory_bytes: int = 0
    sent: int = 0  # the number of its Submit; EARLIER: one from before the last Welcome; 0: none yet
    cancelling: bool = False
    books: int = 0  # the books of the broker that it was first sent to, as its Welcome named them
