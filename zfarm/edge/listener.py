"""Who the children of a worker are reported to, and what they need of its loop; no behaviour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from zfarm.edge.pipe import Frames
from zfarm.edge.taps import Piece
from zfarm.messages import Done, Left, Payload, Progress

__all__ = ["Listener", "Sources"]


class Sources(Protocol):
    """What the loop offers (zfarm.edge.loop.Loop)."""

    def add_source(
        self, source: int, on_ready: Callable[[], None], on_writable: Callable[[], None] | None = None
    ) -> None:
        """Call ``on_ready`` when it can be read, ``on_writable`` when it can be written and is watched for
        it."""

    def watch(self, source: int, *, readable: bool = True, writable: bool = False) -> None:
        """Say what is of interest."""

    def remove_source(self, source: int) -> None:
        """Forget it."""


class Listener(Protocol):
    """Who is told; the first nine are zfarm.core.worker.Worker's."""

    def child_started(self, child: int, now: float) -> None:
        """Its process exists."""

    def child_reported(self, child: int, dones: list[Done], payload: Payload, now: float) -> None:
        """These calls have ended; each is told once, in order."""

    def child_starts(self, child: int, seq: int, now: float) -> None:
        """Its call ``seq``, which has a timeout, has started."""

    def child_emitted(
        self, child: int, seq: int, blobs: Payload, latest: bool, files: bool, now: float
    ) -> None:
        """Its call ``seq`` has emitted items, one of which only the newest counts (``latest``), or pieces
        of ``files``."""

    def child_delivers(self, child: int, seq: int, whole: bool, now: float) -> None:
        """What follows of the files of its call ``seq`` is the result of that, or that was the ``whole`` of
        it."""

    def child_advanced(self, child: int, progress: Progress, now: float) -> None:
        """Its call says how far it is."""

    def child_printed(self, child: int, piece: Piece, now: float) -> None:
        """It has printed lines."""

    def child_waits(self, child: int, waiting: bool, now: float) -> None:
        """Its call waits for other tasks, or goes on."""

    def child_took_back(self, child: int, started_seq: int, now: float) -> None:
        """Its calls after ``started_seq`` will never run."""

    def child_died(
        self, child: int, started_seq: int, signal: int, exit_code: int, text: str, now: float, left: Left
    ) -> None:
        """It is gone; its calls after ``started_seq`` have never run."""

    def child_unborn(self, child: int, text: str, now: float) -> None:
        """It could not be started; ``text`` says why."""

    def tunnel_frames(self, child: int, frames: Frames) -> None:
        """A client in this child says something."""

    def tunnel_closed(self, child: int) -> None:
        """There is no client in this child any more."""

    def nursery_died(self, now: float) -> None:
        """No child can be started any more; those that lived have been told as dead."""
