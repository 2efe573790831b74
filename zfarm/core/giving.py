"""What workers have asked this client for, or others an archive: which chunks are to be sent now; it reads
no file.

How much of a blob may be sent its worker says; how much of all blobs may be on its way is a limit of ours. A
worker that is silent for long, or whose lease was replaced, is sent nothing more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from math import inf
from typing import Any, Protocol

from zfarm.core.machine import NOW
from zfarm.messages import CHUNK_BYTES, Action, Give, Need, Want, Wanted
from zfarm.settings import Settings

__all__ = ["Giving", "Needy"]


class Needy(Protocol):
    """What blobs are given for: a task of a client, or whoever reads from an archive."""

    @property
    def token(self) -> Any:
        """What its shell calls it."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it needs; nothing: it is given nothing."""


class Gift:
    """What one lease is given."""

    __slots__ = ("given", "heard_at", "host", "taken", "task", "wants")

    def __init__(self, task: int, host: str) -> None:
        self.task = task
        self.host = host
        self.given = 0  # bytes sent, and those that came; lost ones are struck
        self.taken = 0
        self.heard_at = 0.0
        self.wants: dict[tuple[bytes, int], Wanted] = {}  # what may be sent: from ``at`` up to ``upto``

    @property
    def flight(self) -> int:
        """Bytes on their way."""
        return max(0, self.given - self.taken)


class Giving:
    """All that one client is asked for."""

    def __init__(self, limits: Settings) -> None:
        self.deadline = inf
        self.chunk_bytes = CHUNK_BYTES
        self._limits = limits
        self._gifts: OrderedDict[int, Gift] = OrderedDict()

    @property
    def tasks(self) -> Collection[int]:
        """Those that are given something."""
        return {gift.task for gift in self._gifts.values()}

    def want(self, message: Want, tasks: Mapping[int, Needy], now: float) -> None:
        """A worker asks for blobs of a task of ours."""
        asked = tasks.get(message.task)
        if asked is None or not asked.needs:
            return
        self.deadline = NOW
        if not message.wants:
            self._gifts.pop(message.lease, None)
            return
        gift = self._gifts.get(message.lease)
        if gift is None:
            for lease in [lease for lease, other in self._gifts.items() if other.task == message.task]:
                del self._gifts[lease]
            gift = self._gifts[message.lease] = Gift(message.task, message.host)
        gift.heard_at = now
        gift.taken = max(gift.taken, message.taken)
        for one in message.wants:
            key = one.digest, one.size
            known = gift.wants.get(key)
            if known is None or one.again:
                gift.given = gift.taken if one.again else gift.given
                gift.wants[key] = one
            else:
                upto = max(known.upto, one.upto)
                gift.wants[key] = Wanted(one.digest, one.size, max(known.at, one.at), upto, False, one.far)

    def ended(self, task: int) -> None:
        """A task has its outcome."""
        for lease in [lease for lease, gift in self._gifts.items() if gift.task == task]:
            del self._gifts[lease]

    def clear(self) -> None:
        """Nothing is given any more."""
        self._gifts.clear()
        self.deadline = inf

    def advance(self, now: float, tasks: Mapping[int, Needy], actions: list[Action]) -> None:
        """Have sent what there is room for: of each lease a part, then of the next one."""
        kept = self._limits.give_kept_s
        for lease in [lease for lease, gift in self._gifts.items() if now >= gift.heard_at + kept]:
            del self._gifts[lease]
        room = self._limits.gives_window_bytes - sum(gift.flight for gift in self._gifts.values())
        for lease in list(self._gifts):
            if room <= 0:
                break
            gift = self._gifts[lease]
            wants, sent = self._take(gift, room)
            if wants:
                gift.given += sent
                room -= sent
                self._gifts.move_to_end(lease)
                actions.append(Give(tasks[gift.task].token, gift.task, lease, gift.host, wants))
        heard = min((gift.heard_at for gift in self._gifts.values()), default=inf)
        self.deadline = heard + kept

    def _take(self, gift: Gift, room: int) -> tuple[list[Wanted], int]:
        """What is to be sent of one lease, in parts of whole chunks, and how many bytes that are."""
        taken: list[Wanted] = []
        sent = 0
        for key, one in list(gift.wants.items()):
            if sent >= room:
                break
            chunks = max(1, (room - sent) // self.chunk_bytes)
            upto = min(one.upto, one.at + chunks * self.chunk_bytes)
            if upto > one.at:
                taken.append(Wanted(one.digest, one.size, one.at, upto, False, one.far))
                sent += upto - one.at
            if upto == one.size:
                del gift.wants[key]
            else:
                gift.wants[key] = Wanted(one.digest, one.size, upto, one.upto, False, one.far)
        return taken, sent

    def check(self) -> None:
        """What is on its way is bounded."""
        flight = sum(gift.flight for gift in self._gifts.values())
        assert flight <= self._limits.gives_window_bytes + self.chunk_bytes, flight
