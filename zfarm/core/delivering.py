"""Results that are on their way to their clients in pieces: their calls run until they are there.

Such a call has come to its end in its child, which keeps its slot and waits. So there is no outcome before
its client has what belongs to it, and whatever dies before that has died under a call that runs.
"""

from __future__ import annotations

from math import inf
from typing import Final

from msgspec import structs

from zfarm.core.kids import Duty
from zfarm.core.machine import NOW
from zfarm.core.outflow import Outflow
from zfarm.core.oversize import most_of, text_of_result
from zfarm.core.supply import Supply
from zfarm.messages import OVERSIZED, Blob, Report, ToldDelivered, Welcome
from zfarm.settings import Settings

__all__ = ["GONE_OVER", "Delivering"]

GONE_OVER: Final = "stopped since its client had gone over to another run of it"


class Delivering(Supply):
    """A brood whose calls have streams, and deliver large results in those."""

    def __init__(
        self, slots: int, host: str, pid: int, limits: Settings, resources: dict[str, int] | None = None
    ) -> None:
        super().__init__(slots, host, pid, limits, resources)
        self._outflow = Outflow(limits)
        self._blob_bytes = inf
        """Of the largest result that the broker takes."""

    def _obey(self, welcome: Welcome) -> None:
        """This broker, perhaps another one, says what it takes: some of what is owed may not be."""
        self._blob_bytes = most_of(welcome)
        for lease, owed in self._owed.items():
            if len(owed.blob) > self._blob_bytes:
                report = self._oversized(owed.report, len(owed.blob))
                self._owed[lease] = owed._replace(report=report, blob=b"")

    def _owe(self, duty: Duty, report: Report, blob: Blob) -> None:
        if len(blob) > self._blob_bytes:
            report, blob = self._oversized(report, len(blob)), b""
        super()._owe(duty, report, blob)

    def _oversized(self, report: Report, size: int) -> Report:
        fate = self._fate(0, 0, text_of_result(size, self._blob_bytes))
        return structs.replace(report, kind=OVERSIZED, fate=fate)

    def child_delivers(self, child: int, seq: int, whole: bool, now: float) -> None:
        """Call ``seq`` of this child has come to its end: what follows of its files is its result, or that
        was the ``whole`` of it. Its timeout is over."""
        duty = self._duty(child, seq)
        if duty is None:
            return
        kid = self._kids[child]
        if not duty.grace_us:
            kid.stop_at = inf
        if kid.delivers(seq):
            self._take_back(kid)
        self._outflow.deliver(duty.lease, duty.owner, duty.task, whole, now)
        self.deadline = NOW

    def duct_up(self, lease: int, now: float) -> None:
        """The reader of this stream is seen at the duct of this worker."""
        self._outflow.duct(lease, True)
        self.deadline = NOW

    def duct_down(self, lease: int, now: float) -> None:
        """It is there no more."""
        self._outflow.duct(lease, False)
        self.deadline = NOW

    @property
    def duct(self) -> str:
        """Where clients may dial this worker, and the key that it shows there; empty: nowhere."""
        return self._outflow.ducts.address

    @duct.setter
    def duct(self, address: str) -> None:
        self._outflow.ducts.address = address

    def _duty(self, child: int, seq: int) -> Duty | None:
        """The call of this number, if it is wanted; those before it may not have been reported yet."""
        kid = self._kids.get(child)
        for duty in kid.duties() if kid is not None else ():
            if duty.seq == seq:
                return duty if duty.lease in self._leases else None
        return None

    def _end_deliveries(self, now: float) -> None:
        """Let the calls end whose clients have what they have given. Stop those whose clients had gone over
        to a later run, which is lost since, and have dropped what had come of this one."""
        voided, self._outflow.voided = self._outflow.voided, []
        for lease in voided:
            duty = self._leases.get(lease)
            if duty is not None:
                self._cut(duty, now, GONE_OVER)
        delivered, self._outflow.delivered = self._outflow.delivered, []
        for lease in delivered:
            duty = self._leases.get(lease)
            if duty is not None and duty.kid is not None:
                self._actions.append(ToldDelivered(duty.kid.number, duty.seq))
