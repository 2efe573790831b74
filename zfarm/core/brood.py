"""The children of one worker and the leases in them: who gets calls, is watched, is ended; knows no broker.

The worker's machine (zfarm.core.worker) is a brood that listens to messages.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from math import inf
from typing import Final

from msgspec import structs

from zfarm.core.feeding import Place, feed, feed_ahead
from zfarm.core.kids import Duty, Kid, Owed
from zfarm.messages import (
    BROKEN,
    CANCELLED,
    CUT,
    LOST,
    MEMORY,
    TIMEOUT,
    Action,
    Blob,
    Fate,
    InterruptChild,
    Left,
    LimitChild,
    Report,
    StartChild,
    StopChild,
    TakeBack,
)
from zfarm.settings import Settings

__all__ = ["NOTHING", "NO_WORD", "Brood"]

SIGKILL: Final = 9
NOTHING: Final = Left()
NO_WORD: Final = "stopped since its worker had no word from the broker"


class Brood:
    """Leases, children and what the broker is to be told of them in this turn."""

    def __init__(
        self, slots: int, host: str, pid: int, limits: Settings, resources: dict[str, int] | None = None
    ) -> None:
        self.slots = slots
        self.resources = resources or {}
        """What there is for the calls that run, in thousandths."""
        self.store = ""
        """Where the files are that calls need; set by the shell."""
        self._host = host
        self._pid = pid
        self._worker = f"{host}/{pid}"
        self._limits = limits
        self._draining = self._stopping = False
        self._leases: dict[int, Duty] = {}
        self._queue: deque[Duty] = deque()
        self._short: deque[Duty] = deque()  # for which resources are missing: somebody still has them
        self._unsupplied: dict[int, Duty] = {}  # whose files are on their way
        self._owed: dict[int, Owed] = {}
        self._kids: dict[int, Kid] = {}
        self._next_kid = 1
        self._short_until = 0.0  # no child can be started, and none is tried until then; 0: nothing is known
        self._init_deaths: dict[str, tuple[int, int]] = {}  # how many of a realm, and the first child since
        # what this turn has for the broker
        self._reports: list[int] = []
        self._returns: list[int] = []
        self._begans: list[int] = []
        self._actions: list[Action] = []
        for _ in range(slots):
            self._start_kid()

    # ------------------------------------------------------------ leases

    def _take_home(self, duty: Duty, now: float) -> None:
        """A call that has certainly not started: back into the queue, or away if it was revoked."""
        duty.kid = None
        if duty.lease not in self._leases:
            return
        if duty.stopping:
            del self._leases[duty.lease]
        elif duty.revoked or (self._draining and not duty.own):
            del self._leases[duty.lease]
            self._returns.append(duty.lease)
        else:
            duty.queued_at = now
            self._queue.appendleft(duty)

    def _cut(self, duty: Duty, now: float, text: str = NO_WORD) -> None:
        """Stop a call that is alone in its child, or give it back if it waits for one."""
        if duty.kid is not None:
            del self._leases[duty.lease]
            fate = self._fate(SIGKILL, 0, text)
            held_us = duty.kid.held_us(now)
            self._owe(duty, Report(duty.lease, CUT, fate=fate, held_us=held_us), b"")
            self._stop_kid(duty.kid, kill=True)
            return
        self._end_shortage()
        if self._unsupplied.pop(duty.lease, None) is None:
            self._queue.remove(duty)
        duty.revoked = True
        self._take_home(duty, now)

    def _owe(self, duty: Duty, report: Report, blob: Blob) -> None:
        self._owed[report.lease] = Owed(report, blob, duty.owner, duty.task)
        self._reports.append(report.lease)

    def _fate(self, signal: int, exit_code: int, text: str, left: Left = NOTHING) -> Fate:
        worker = f"{self._host}/{self._pid}"
        return Fate(self._host, worker, signal, exit_code, text, left.stderr, left.peak_bytes, left.oom)

    def _begin(self, duty: Duty) -> None:
        if duty.lease in self._leases:
            self._begans.append(duty.lease)

    def _return_queue(self) -> None:
        self._end_shortage()
        for duty in self._queue:
            del self._leases[duty.lease]
            self._returns.append(duty.lease)
        self._queue.clear()

    def _drain_more(self) -> None:
        """Give back what has not started, unless another call waits for it here."""
        self._end_shortage()
        own = [duty for duty in self._queue if duty.own]
        unsupplied = {lease: duty for lease, duty in self._unsupplied.items() if duty.own}
        if len(own) < len(self._queue) or len(unsupplied) < len(self._unsupplied):
            self._queue.extend(self._unsupplied.values())
            self._queue = deque(duty for duty in self._queue if not duty.own)
            self._return_queue()
            self._queue.extend(own)
            self._unsupplied = unsupplied
        for kid in self._kids.values():
            if kid.calls > 1 and not all(duty.own for duty in islice(kid.duties(), 1, None)):
                self._take_back(kid)

    # ------------------------------------------------------------ children

    def _start_kid(self) -> Kid:
        kid = Kid(self._next_kid)
        self._next_kid += 1
        self._kids[kid.number] = kid
        self._actions.append(StartChild(kid.number))
        return kid

    def _stop_kid(self, kid: Kid, kill: bool) -> None:
        """End a child; with ``kill`` the calls that it has started are dropped: whoever wanted this knows
        why."""
        kid.ending = True
        if kill:
            for duty in kid.duties():
                self._leases.pop(duty.lease, None)
        if not kid.stopped or kill:
            kid.stopped = True
            self._actions.append(StopChild(kid.number, kill))

    def _take_back(self, kid: Kid) -> None:
        if not kid.taking_back:
            kid.taking_back = True
            self._actions.append(TakeBack(kid.number))

    def _busy(self) -> int:
        """Slots in use: children with calls (or asked to give some back) that do not wait for nested ones."""
        return sum(1 for kid in self._kids.values() if (kid.calls or kid.taking_back) and not kid.waiting)

    def _idle_kid(self, realm: str) -> Kid | None:
        """An idle child for this realm: one that serves it, else a fresh one; too many idle ones of other
        realms are ended. None: no child can be started for now."""
        idle = [kid for kid in self._kids.values() if kid.idle]
        for wanted in (realm, ""):
            for kid in idle:
                if kid.realm == wanted:
                    return kid
        spare = [kid for kid in idle if kid.realm]
        if spare and (self._short_until or len(spare) >= self._limits.children_idle_max):
            self._stop_kid(spare[0], kill=False)
        return None if self._short_until else self._start_kid()

    def _end_shortage(self) -> None:
        """Let all that waits for resources wait in the queue again, where it came from."""
        self._queue.extendleft(reversed(self._short))
        self._short.clear()

    def _affords(self, duty: Duty) -> bool:
        """Whether its children, those that are being ended included, leave what this call takes."""
        left = dict(self.resources)
        for kid in self._kids.values():
            for other in kid.duties():
                for name, amount in other.takes:
                    left[name] = left.get(name, 0) - amount
        return all(left.get(name, 0) >= amount for name, amount in duty.takes)

    def _feed(self, now: float) -> None:
        """Send queued calls to children: first to idle ones while there are free slots, then a little ahead
        of busy ones."""
        self._end_shortage()
        queue, limits = self._queue, self._limits
        free = self.slots - self._busy()
        while queue and free > 0:
            if queue[0].takes and not self._affords(queue[0]):
                self._short.append(queue.popleft())
                continue
            kid = self._idle_kid(queue[0].realm)
            if kid is None:
                break
            self._actions.append(feed(kid, queue, limits, now, share=free, place=self._place))
            free -= 1
        if queue and free >= 0:  # below: calls that waited go on, and the slots they had given up are taken
            self._actions.extend(feed_ahead(self._kids.values(), queue, limits, now, self._place))

    @property
    def _place(self) -> Place:
        return self.store, self._worker

    def _watch_kids(self, now: float) -> None:
        """Say which calls have started for good; free what waits behind a long one."""
        limits = self._limits
        for kid in self._kids.values():
            if now >= kid.stop_at:
                self._time_out(kid, now)
            elif kid.overshot is not None:
                self._cut_short(kid, kid.overshot, now)
            if not kid.calls or kid.ending:
                continue
            since = now - kid.head_since
            if not kid.head_began and since >= limits.began_after_us / 1e6:
                kid.head_began = True
                self._begin(kid.head())
            if (
                kid.calls > 1
                and not kid.taking_back
                and (kid.waiting or since >= limits.stuck_after_us / 1e6)
            ):
                self._take_back(kid)
        if self._short_until and now >= self._short_until:
            self._short_until = 0.0
        queue = self._queue
        stuck = queue and now - queue[0].queued_at >= limits.stuck_after_us / 1e6
        if stuck and (self._short_until or self._busy() >= self.slots):
            self._return_queue()

    def _interrupt(self, kid: Kid, stop_at: float) -> None:
        """Let the running call end by itself until then; in any case it is the last one of this child."""
        if not kid.ending:
            kid.ending = True
            kid.stop_at = min(kid.stop_at, stop_at)
            self._actions.append(InterruptChild(kid.number))

    def _time_out(self, kid: Kid, now: float) -> None:
        """The running call has had its time: its child is killed, another will take its place."""
        kid.stop_at = inf
        duty = kid.head()
        fate = self._fate(SIGKILL, 0, f"stopped after its timeout of {duty.timeout_us / 1e6:g} s")
        self._stop_running(kid, Report(duty.lease, TIMEOUT, duty.timeout_us, fate), now)

    def _cut_short(self, kid: Kid, left: Left, now: float) -> None:
        """The running call has had too much memory in use: as if its time were over."""
        kid.overshot = None
        duty = kid.head()
        text = (
            f"stopped at its memory limit of {duty.memory_bytes / 1e6:.1f} MB: "
            f"{left.peak_bytes / 1e6:.1f} MB were in use"
        )
        self._stop_running(kid, Report(duty.lease, MEMORY, 0, self._fate(SIGKILL, 0, text, left)), now)

    def _stop_running(self, kid: Kid, report: Report, now: float) -> None:
        """Kill the child; its running call ends so, or as cancelled, or unheard where nobody wants it."""
        duty = kid.head()
        if self._leases.pop(duty.lease, None) is not None:
            report = Report(duty.lease, CANCELLED) if duty.grace_us else report
            self._owe(duty, structs.replace(report, held_us=kid.held_us(now)), b"")
        self._stop_kid(kid, kill=True)

    def _lift_limit(self, kid: Kid) -> None:
        """The call that was watched has ended."""
        kid.limited, kid.overshot = False, None
        self._actions.append(LimitChild(kid.number, 0))

    def _retire_kids(self) -> None:
        """End children that have run as many tasks as their realm allows, or that are too many."""
        idle = 0
        for kid in self._kids.values():
            if kid.stopped or kid.calls:
                continue
            idle += 1
            if kid.ending or kid.worn_out or idle > self.slots + self._limits.children_idle_max:
                self._stop_kid(kid, kill=False)

    def _died_early(self, kid: Kid, fate: Fate) -> None:
        """A child died before it started its first call: after a few in a row its realm counts as broken.

        A death counts where the child was started after the one before was known: those that were there
        already may all have been killed at once, and before they had read their calls.
        """
        deaths, first = self._init_deaths.get(kid.realm, (0, 0))
        if kid.number < first:
            return
        if deaths + 1 < self._limits.initializer_deaths_max:
            self._init_deaths[kid.realm] = deaths + 1, self._next_kid
            return
        self._init_deaths.pop(kid.realm, None)
        self._end_shortage()
        broken = [duty for duty in self._queue if duty.realm == kid.realm]
        self._queue = deque(duty for duty in self._queue if duty.realm != kid.realm)
        for duty in broken:
            del self._leases[duty.lease]
            kind = BROKEN if duty.initialized else LOST
            held_us = int(duty.held_s * 1e6)
            self._owe(duty, Report(lease=duty.lease, kind=kind, fate=fate, held_us=held_us), b"")

    def _kids_deadline(self) -> float:
        """When the clock has something to say about a child or about the queue."""
        limits = self._limits
        deadline = self._short_until or inf
        for kid in self._kids.values():
            deadline = min(deadline, kid.stop_at)
            if kid.calls and not kid.ending:
                if not kid.head_began:
                    deadline = min(deadline, kid.head_since + limits.began_after_us / 1e6)
                elif kid.calls > 1 and not kid.taking_back:
                    deadline = min(deadline, kid.head_since + limits.stuck_after_us / 1e6)
        if self._queue:
            deadline = min(deadline, self._queue[0].queued_at + limits.stuck_after_us / 1e6)
        return deadline
