"""Waiting for what sockets and threads do in their own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

DEADLINE_S = 20.0


def until(condition: Callable[[], Any], *turns: Callable[[], Any]) -> Any:
    """Call ``turns`` until ``condition`` gives something, which is returned."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        for turn in turns:
            turn()
        time.sleep(0.002)
    return found
