"""Which ducts of workers a client dials, and for which streams. It knows no item.

Rules of this file:
  1. A stream that is read is dialled for once it is offered, and hung up on when it is over or another
     attempt takes its place.
  2. What comes over a duct counts if it belongs to a stream that was dialled for there.
  3. A duct that is left alone is said to be so with each stream that was offered there: its worker may not
     know that the line is cut, and would go on to send what nobody gets.
  4. A worker hangs up when it has no stream for us any more, which it may know before we do. So a duct that
     ends is dialled again a little later, if a stream is still to be had there. Who is refused then waits for
     the next offer, which follows a permission; it was no break. If the line ends once more within a minute,
     or where a duct cannot be reached, it is left alone for a while. The broker passes on meanwhile what
     comes of its streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Final

from zfarm.core.instream import InStream
from zfarm.messages import Action, Dial, HangUp
from zfarm.settings import Settings

__all__ = ["Dialling"]

REDIAL_S: Final = 0.5
"""After its end a duct is dialled again; by then it is known which streams were over."""
BREAKS_S: Final = 60.0
"""A duct that breaks a second time within this is left alone."""


class Dialling:
    """The ducts that one client has dialled."""

    def __init__(self, limits: Settings) -> None:
        self._limits = limits
        self._dialled: dict[int, str] = {}
        self._offers: list[int] = []  # streams to be dialled for
        self._again: dict[int, tuple[float, str]] = {}  # streams, and when to dial where again for them
        self._broke: dict[str, float] = {}  # until when another break is one too many
        self._shunned: dict[str, float] = {}  # and until when nobody dials there
        self._news: set[str] = set()  # of these, such whose workers do not know that yet
        self.refused = 0
        """Items that came over a duct on which nobody waits for them."""

    def offered(self, stream: InStream, duct: str) -> bool:
        """Its worker offers this stream over that duct; False: that was known."""
        if self._dialled.get(stream.lease) == duct:
            return False
        stream.duct = duct
        self._offers.append(stream.lease)
        return True

    def counts(self, lease: int, duct: str) -> bool:
        """What came over that duct belongs to a stream that is had there."""
        known = self._dialled.get(lease) == duct
        self.refused += not known
        return known

    def broke(self, duct: str, reached: bool, now: float, refused: bool = False) -> None:
        """That duct has ended, could not be reached at all, or was refused: none of our streams is there."""
        leases = [lease for lease, at in self._dialled.items() if at == duct]
        for lease in leases:
            del self._dialled[lease]
        if not reached:
            self._shun(duct, now)
        elif refused:  # and so the line that ended before was no break, either
            self._broke.pop(duct, None)
        else:
            self._again |= dict.fromkeys(leases, (now + REDIAL_S, duct))

    def leaves_alone(self, duct: str, now: float) -> bool:
        """Nobody dials this duct for now."""
        return now < self._shunned.get(duct, 0.0)

    def _shun(self, duct: str, now: float) -> None:
        self._shunned = _still(self._shunned, now) | {duct: now + self._limits.duct_shunned_s}
        self._news.add(duct)

    def _dial_again(self, now: float, streams: Mapping[int, InStream]) -> None:
        wanted: dict[str, list[int]] = {}
        for lease, (due, duct) in list(self._again.items()):
            if now >= due:
                del self._again[lease]
                if _is_had(streams.get(lease), duct) and lease not in self._dialled:
                    wanted.setdefault(duct, []).append(lease)
        for duct, leases in wanted.items():
            if self.had_at(duct):  # dialled for others meanwhile, and up
                self._offers += leases
            elif now < self._broke.get(duct, 0.0):
                self._shun(duct, now)
            else:
                self._broke = _still(self._broke, now) | {duct: now + BREAKS_S}
                self._offers += leases

    @property
    def deadline(self) -> float:
        """When to dial again; inf: never."""
        return min(self._again.values())[0] if self._again else inf

    def advance(self, now: float, streams: Mapping[int, InStream], actions: list[Action]) -> bool:
        """Dial for what is offered, and hang up on what is over; whether streams have to be listened to."""
        for lease, duct in list(self._dialled.items()):
            if not _is_had(streams.get(lease), duct):
                del self._dialled[lease]
                actions.append(HangUp(lease, duct))
        if self._again:
            self._dial_again(now, streams)
        offers, self._offers = self._offers, []
        dialled = set(self._dialled.values()) if offers else set()
        for lease in offers:
            stream = streams.get(lease)
            if stream is None or lease in self._dialled or not (stream.reading and stream.duct):
                continue
            if self.leaves_alone(stream.duct, now):
                self._news.add(stream.duct)
                continue
            room = stream.duct in dialled or len(dialled) < self._limits.ducts_dialled_max
            if room:
                self._dialled[lease] = stream.duct
                dialled.add(stream.duct)
                actions.append(Dial(lease, stream.duct))
        news, self._news = self._news, set()
        told = [stream for stream in streams.values() if stream.reading and stream.duct in news]
        for stream in told:
            stream.listen_due = True
        return bool(told)

    def clear(self) -> None:
        """Forget all but what is to be hung up on."""
        self._offers.clear()
        self._again.clear()

    def had_at(self, duct: str) -> set[int]:
        """The streams that are dialled for at this duct."""
        return {lease for lease, at in self._dialled.items() if at == duct}


def _is_had(stream: InStream | None, duct: str) -> bool:
    return stream is not None and stream.reading and stream.duct == duct


def _still(until: dict[str, float], now: float) -> dict[str, float]:
    return {duct: at for duct, at in until.items() if now < at}
