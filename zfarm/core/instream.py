"""The stream of one task, as its client has it: what was handed on, and what is missing.

The rules that it follows stand in zfarm.core.inflow.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Any

from zfarm.core.machine import NOW
from zfarm.messages import Payload

__all__ = ["UNKNOWN", "InStream"]

UNKNOWN = -1
"""In place of the number of the last item: the task has not ended."""


class InStream:
    """The stream of one task, in its present attempt."""

    __slots__ = (
        "acked",
        "acked_at",
        "ahead",
        "ask_at",
        "asked_at",
        "attempt",
        "duct",
        "end",
        "fetch_at",
        "fetched",
        "gone",
        "gone_until",
        "heard_at",
        "kept_until",
        "lease",
        "listen_due",
        "moved_at",
        "next",
        "over",
        "reading",
        "seen",
        "sizes",
        "taken",
        "task",
        "token",
        "told",
        "untaken",
        "waits_since",
    )

    def __init__(self, task: int, token: Any) -> None:
        self.task = task
        self.token = token
        self.attempt = 0
        self.reading = False
        self.end = UNKNOWN
        self.over = False
        self.kept_until = inf
        self.listen_due = False
        self.begin(0, 0)

    def begin(self, lease: int, attempt: int) -> None:
        """From now on it is the stream of this lease, from the first item on."""
        self.lease = lease  # 0: none is known
        self.duct = ""  # where its worker itself offers it
        self.attempt = attempt
        self.next = 1  # the number of the next item to hand on
        self.taken = 0  # the reader has used all up to this one
        self.acked_at = NOW
        self.acked = 0  # and this is what the worker was told of that
        self.seen = 0
        self.told = 0  # the worker has sent all up to this one
        self.end = UNKNOWN
        self.gone = False  # the worker has nothing of it any more, or is lost
        self.gone_until = inf  # though items come from it: till then it may be welcome again, with all of it
        self.ahead: dict[int, Payload] = {}  # what came behind a hole, by its first number
        self.sizes: deque[tuple[int, int]] = deque()  # of what was handed on and not used: last number, bytes
        self.untaken = 0  # bytes used by the reader and not told to the worker
        self.ask_at = NOW
        self.asked_at = NOW
        self.fetch_at = NOW
        self.fetched = 0  # what is fetched begins with this number
        self.moved_at = self.waits_since = NOW
        self.heard_at = inf  # the broker was known then to have read something that was said after that

    @property
    def hole(self) -> tuple[int, int] | None:
        """The first numbers that are missing though they were sent."""
        if self.ahead:
            return (self.next, min(self.ahead) - 1)
        if self.next <= self.told:
            return (self.next, self.told)
        return None
