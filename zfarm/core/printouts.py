"""What tasks print, on its way from their worker to the broker; it knows no child and no text.

It waits while there is no broker, up to a bound; beyond that it is counted instead, and the count is told.
"""

from __future__ import annotations

from zfarm.messages import BROKER, Action, Blob, Printed, Send
from zfarm.settings import Settings

__all__ = ["Printouts"]


class Printouts:
    """The output of all tasks of one worker."""

    def __init__(self, limits: Settings) -> None:
        self._most = limits.output_burst_bytes
        self._bytes = 0
        self._waiting: list[tuple[Printed, Blob]] = []
        self._dropped: dict[tuple[int, int], int] = {}

    def add(self, lease: int, source: int, blob: Blob, dropped: int) -> None:
        """A task has printed this, and ``dropped`` bytes before it that are gone."""
        key = (lease, source)
        if self._bytes + len(blob) > self._most:
            self._dropped[key] = self._dropped.get(key, 0) + len(blob) + dropped
            return
        self._bytes += len(blob)
        self._waiting.append((Printed(lease, source, dropped + self._dropped.pop(key, 0)), blob))

    def flush(self, actions: list[Action]) -> None:
        """The broker is there: send it all."""
        if not (self._waiting or self._dropped):
            return
        for message, blob in self._waiting:
            actions.append(Send(BROKER, message, [blob]))
        for (lease, source), dropped in self._dropped.items():
            actions.append(Send(BROKER, Printed(lease, source, dropped), [b""]))
        self._waiting, self._bytes, self._dropped = [], 0, {}
