"""The leases of a worker that need files: they wait until those are in the store, and hold their place.

Between the brood (zfarm.core.brood), which runs calls, and what is missing (zfarm.core.lacking).
"""

from __future__ import annotations

from collections.abc import Sequence

from zfarm.core.brood import Brood
from zfarm.core.kids import Duty
from zfarm.core.lacking import Lacking
from zfarm.core.machine import NOW
from zfarm.messages import (
    BROKER,
    MISSING,
    Chunks,
    Need,
    Payload,
    Pin,
    PinBlobs,
    Pinned,
    Report,
    Send,
)
from zfarm.settings import Settings

__all__ = ["Supply"]


class Supply(Brood):
    """A brood whose calls may need files."""

    def __init__(
        self, slots: int, host: str, pid: int, limits: Settings, resources: dict[str, int] | None = None
    ) -> None:
        super().__init__(slots, host, pid, limits, resources)
        self.deadline = NOW
        self.lacking = self._lacking = Lacking(limits)

    # ------------------------------------------------------------ what the store says

    def blob_found(self, errand: int, have: int, lacks: Sequence[Need], now: float) -> None:
        """Answer to SeekBlob: see Lacking.found."""
        self._lacking.found(errand, have, lacks, now)
        self.deadline = NOW

    def blob_stored(self, errand: int, at: int, now: float) -> None:
        """Answer to StoreChunk and BuildTree: it is written up to here, or complete."""
        self._lacking.stored(errand, at, now)
        self.deadline = NOW

    def blob_failed(self, errand: int, text: str, kind: int, now: float) -> None:
        """Answer to SeekBlob, StoreChunk and BuildTree: why not; ``kind`` as in zfarm.core.lacking."""
        self._lacking.went_wrong(errand, text, kind, now)
        self.deadline = NOW

    def pinned(self, answer: Pinned, now: float) -> None:
        """Answer to PinBlobs. It may be lost: then it is asked again."""
        self._actions.append(Send(BROKER, answer))
        self.deadline = NOW

    # ------------------------------------------------------------ leases

    def _has_all(self, duty: Duty, needs: tuple[Need, ...]) -> bool:
        """A lease with needs was granted; False: it waits for them."""
        duty.needy = True
        missing = self._lacking.add(duty.lease, duty.owner, needs)
        if missing:
            self._unsupplied[duty.lease] = duty
            duty.expected_us = 0
        return not missing

    def _on_chunks(self, message: Chunks, payload: Payload, now: float) -> None:
        self._lacking.chunks(message, payload, now)

    def _on_pin(self, message: Pin, payload: Payload, now: float) -> None:
        self._actions.append(PinBlobs(message))

    def _supply(self, now: float, joined: bool) -> None:
        """Let go on what has all that it needs, and end what will never have it."""
        lacking, leases = self._lacking, self._leases
        lacking.reap(leases)
        lacking.advance(now, joined, self._actions)
        ready, lacking.ready = lacking.ready, []
        for lease in ready:
            duty = self._unsupplied.pop(lease, None)
            if duty is not None:
                duty.queued_at = now
                self._queue.append(duty)
        failed, lacking.failed = lacking.failed, []
        for lease, text in failed:
            duty = self._unsupplied.pop(lease, None)
            if duty is not None:
                del leases[lease]
                self._owe(duty, Report(lease, MISSING, fate=self._fate(0, 0, text)), b"")
