"""The archive of a simulated broker: the real machine, and blobs that are always there, or gone; it takes no
upload.

It lives in the broker's process and dies with it; between the two nothing is lost.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING

from tests.simulation.lane import Lane
from tests.simulation.shelves import CHUNK, read
from zfarm import messages as m
from zfarm.core.archivist import Archivist, Reader

if TYPE_CHECKING:
    from tests.simulation.processes import BrokerProcess

ARCHIVE = "archive"


class Archive:
    """What one life of the broker gives to workers."""

    def __init__(self, broker: BrokerProcess) -> None:
        self._broker = broker
        self._farm = broker.farm
        self._machine = Archivist(self._farm.mix.settings)
        self._machine.giving.chunk_bytes = CHUNK
        self._in, self._out = Lane(self._farm), Lane(self._farm)
        self._wake_at = inf

    def hear(self, want: m.Want) -> None:
        """The broker's machine passes this on."""
        self._farm.books.wanted_of_archive(want)
        self._farm.story.probe("the archive is asked")
        self._in.push(self._farm.rng.random() * 1e-3, partial(self._want, want))

    def _want(self, want: m.Want) -> None:
        reader = Reader(ARCHIVE, want.owner, want.lease, want.task)
        self._machine.want(reader, want, self._broker.clock)
        self._turn()

    def _turn(self) -> None:
        self._wake_at = inf
        if not self._broker.alive:
            return
        for action in self._machine.advance(self._broker.clock):
            assert isinstance(action, m.Give), f"an archive without uploads wants {action}"
            self._out.push(self._farm.rng.random() * 1e-3, partial(self._give, action))
        self._machine.check()
        soon = max(self._farm.now, self._farm.now + self._machine.deadline - self._broker.clock) + 1e-6
        if soon < self._wake_at:
            self._wake_at = soon
            self._farm.at(soon, partial(self._wake, soon))

    def _wake(self, at: float) -> None:
        if at == self._wake_at:
            self._turn()

    def _give(self, give: m.Give) -> None:
        reader: Reader = give.token
        chunks, payload = read(self._farm, give.wants)
        most = self._farm.mix.settings.batch_calls_max
        for start in range(0, len(chunks), most):
            message = m.Chunks(reader.lease, reader.number, chunks[start : start + most])
            self._broker.hand("archive", reader.owner, message, payload[start : start + most])
