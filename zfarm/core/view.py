"""A picture of the farm, folded from a snapshot and the notes that follow it; what every dashboard shows.

Rules of this file:
  1. Snapshot + numbered updates: a gap in the numbers makes the view stale until a new Picture closes it.
  2. It never looks at a clock: when something arrived is an argument, and rates follow the broker's uptime.
  3. It holds what is known, not how it looks: words, colours and units belong to the faces.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from zfarm.messages import (
    ClientPicture,
    FarmNote,
    FarmPicture,
    Note,
    Picture,
    TaskPicture,
    TextNote,
    WorkerPicture,
    WorkersNote,
)

__all__ = ["RATE_WINDOW_S", "SILENT_AFTER_S", "Said", "View", "worker_state"]

RATE_WINDOW_S: Final = 5.0
"""Rates are averages over this long: short enough to follow a change, long enough to be read."""

SAMPLE_S: Final = 1.0
"""One value of the history stands for about this much of the broker's time."""

HISTORY_MAX: Final = 600
"""Values kept for sparklines and charts: ten minutes."""

TEXTS_MAX: Final = 200
"""Sentences kept."""

SILENT_AFTER_S: Final = 2.5
"""A worker that has missed two beats is shown as silent, well before the broker gives it up."""


@dataclass(frozen=True, slots=True)
class Said:
    """One sentence of the broker and when it was heard (in the caller's clock)."""

    level: str
    text: str
    at: float


@dataclass(frozen=True, slots=True)
class _Sample:
    """The counters at one moment of the broker's life."""

    uptime_s: float
    ended: int
    failed: int


class View:
    """The farm as it was last seen. ``stale``: something was missed or nothing seen yet; ask for a Picture.

    ``now`` is any clock that grows, the same one in every call; it tells only how old the view is.
    """

    def __init__(self) -> None:
        self.stale = True
        self.farm: FarmPicture | None = None
        self.workers: list[WorkerPicture] = []
        self.clients: list[ClientPicture] = []
        self.running: list[TaskPicture] = []
        self.queue: dict[str, int] = {}
        self.first: dict[str, str] = {}
        """One task of each function that waits there, as CLIENT/NUMBER."""
        self.unmet: dict[str, int] = {}
        """What no worker has, and how many tasks wait for it."""
        self.texts: deque[Said] = deque(maxlen=TEXTS_MAX)
        self.history: deque[float] = deque(maxlen=HISTORY_MAX)
        """Ended tasks per second, one value for about each second, the newest last."""
        self._seen_at: float | None = None
        self._number = 0  # of the newest note or picture that is in here
        self._whole_from = 0  # no note is missing between this number and _number
        self._farm_number = self._workers_number = 0  # of what told about the farm, and about the workers
        self._samples: deque[_Sample] = deque()
        self._kept: _Sample | None = None  # where the history ends

    # ------------------------------------------------------------------ what arrives

    def take(self, picture: Picture, now: float) -> None:
        """Start from ``picture``; what newer notes have told already stays as they told it."""
        self._notice_restart(picture.farm, now)
        number = picture.farm.number
        if number >= self._workers_number:
            self._show_workers(picture.workers, number)
        if number >= self._farm_number:
            self._show_farm(picture.farm, picture.running, picture.queue, picture.clients)
            self.unmet, self.first = picture.unmet, picture.first
        if number >= self._whole_from - 1:
            self.stale = False
            self._whole_from = min(self._whole_from, number)
        self._number = max(self._number, number)
        self._seen_at = now

    def fold(self, note: Note, now: float) -> None:
        """Bring the view up to date with ``note``; one that was seen already changes nothing."""
        if isinstance(note, FarmNote):
            self._notice_restart(note.farm, now)
        number = note.farm.number if isinstance(note, FarmNote) else note.number
        if isinstance(note, TextNote):
            self.texts.append(Said(note.level, note.text, now))  # a sentence is never sent twice
        if number <= self._number:
            return
        if number > self._number + 1:
            self.stale = True
            self._whole_from = number
        self._number = number
        if isinstance(note, FarmNote):
            self._show_farm(note.farm, note.running, note.queue, note.clients)
            self.unmet, self.first = note.unmet, note.first
        elif isinstance(note, WorkersNote):
            self._show_workers(note.workers, number)
        self._seen_at = now

    def _notice_restart(self, farm: FarmPicture, now: float) -> None:
        """Another epoch is another broker: its counters and numbers start anew."""
        if self.farm is None or farm.epoch == self.farm.epoch:
            return
        self.texts.append(Said("warning", "the broker was started anew", now))
        self.farm = None
        self.stale = True
        self.workers = []
        self._number = self._whole_from = self._farm_number = self._workers_number = 0
        self._samples.clear()
        self._kept = None

    def _show_workers(self, workers: list[WorkerPicture], number: int) -> None:
        self.workers = workers
        self._workers_number = number

    def _show_farm(
        self,
        farm: FarmPicture,
        running: list[TaskPicture],
        queue: dict[str, int],
        clients: list[ClientPicture],
    ) -> None:
        self.farm = farm
        self.running = running
        self.queue = queue
        self.clients = clients
        self._farm_number = farm.number
        self._count(farm)

    def _count(self, farm: FarmPicture) -> None:
        sample = _Sample(
            farm.uptime_s, farm.values + farm.errors + farm.cancelled + farm.lost, farm.errors + farm.lost
        )
        if self._samples and sample.uptime_s <= self._samples[-1].uptime_s:
            return
        self._samples.append(sample)
        while len(self._samples) > 2 and self._samples[1].uptime_s <= sample.uptime_s - RATE_WINDOW_S:
            self._samples.popleft()
        if self._kept is None:
            self._kept = sample
            return
        passed_s = sample.uptime_s - self._kept.uptime_s
        if passed_s >= 0.9 * SAMPLE_S:  # notes come every half second, and not to the microsecond
            rate = (sample.ended - self._kept.ended) / passed_s
            self.history.extend([rate] * min(HISTORY_MAX, max(1, round(passed_s / SAMPLE_S))))
            self._kept = sample

    # ------------------------------------------------------------------ what can be asked

    def age_s(self, now: float) -> float:
        """How long ago anything was heard (inf: never); ages in the pictures are as of then."""
        return float("inf") if self._seen_at is None else max(0.0, now - self._seen_at)

    @property
    def rated(self) -> bool:
        """Rates are known: the counters were seen at two moments at least."""
        return len(self._samples) > 1

    @property
    def ended_per_s(self) -> float:
        """Tasks that ended per second, in whatever way, over the last RATE_WINDOW_S."""
        return self._rate("ended")

    @property
    def failed_per_s(self) -> float:
        """Tasks that ended with an error or were lost, per second, over the last RATE_WINDOW_S."""
        return self._rate("failed")

    def _rate(self, counter: str) -> float:
        if len(self._samples) < 2:
            return 0.0
        first, last = self._samples[0], self._samples[-1]
        rise: int = getattr(last, counter) - getattr(first, counter)
        return max(0.0, rise / (last.uptime_s - first.uptime_s))

    @property
    def running_now(self) -> int:
        """Tasks that run: those leased but those that were granted ahead of a free slot."""
        return sum(min(worker.leases, worker.room) for worker in self.workers)

    @property
    def waiting_now(self) -> int:
        """Tasks that wait for a slot, at the broker or, a few, beside a busy slot."""
        leased = sum(worker.leases for worker in self.workers)
        return (self.farm.queued if self.farm is not None else 0) + leased - self.running_now

    @property
    def room(self) -> int:
        """How many tasks all workers together can run at once now."""
        return sum(worker.room for worker in self.workers if not (worker.draining or worker.aside_s))


def worker_state(worker: WorkerPicture, later_s: float = 0.0) -> str:
    """One word for a worker ``later_s`` after its picture was taken: silent, draining, aside, idle, busy,
    full."""
    if worker.last_seen_s + later_s > SILENT_AFTER_S:
        return "silent"
    if worker.draining:
        return "draining"
    if worker.aside_s > later_s:
        return "aside"
    if not worker.leases:
        return "idle"
    return "busy" if worker.leases < worker.room else "full"
