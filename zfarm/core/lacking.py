"""What the leases of a worker need and do not have: asked of their clients, a bounded part at a time.

A need is met by one errand, however many leases have it. What is there, what was written and what went wrong
the store says (zfarm.edge.store); this knows no file. Whatever may be lost is asked for again: when nothing
has come for a while, and after each Welcome.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator
from math import inf
from typing import Final

from zfarm.core.errands import BUILDING, BUSY, FETCHING, PARTS, QUEUED, SEEKING, Call, Errand, Waiter
from zfarm.core.machine import NOW
from zfarm.messages import (
    BROKER,
    CHUNK_BYTES,
    Action,
    Blob,
    BuildTree,
    Chunk,
    Chunks,
    DropBlob,
    Need,
    Payload,
    SeekBlob,
    Send,
    StoreChunk,
    Want,
    Wanted,
)
from zfarm.settings import Settings

__all__ = ["DAMAGED", "FAR", "FINAL", "Lacking"]

FINAL: Final = 0
"""An errand has failed for good."""
DAMAGED: Final = 1
"""What came is not what was wanted: it may come better a second time."""
FAR: Final = 2
"""It does not lie where it was said to: it has to be sent."""

PATIENCE_MAX: Final = 16
"""Beats between two times that the same is asked for again, at most."""
KEPT_BEATS: Final = 4
"""For how long a directory is kept that no lease has."""
IDLE_MAX: Final = 8
"""How many of those."""
LOOK_AGAIN_S: Final = 0.1
"""How long until the store is asked again for what another worker is fetching."""


class Lacking:
    """All needs of one worker's leases."""

    def __init__(self, limits: Settings) -> None:
        self.deadline = inf
        self.chunk_bytes = CHUNK_BYTES
        self.ready: list[int] = []
        """Leases that have all that they need now."""
        self.failed: list[tuple[int, str]] = []
        """Leases that need what cannot be had, and why."""
        self._limits = limits
        self._calls: dict[int, Call] = {}
        self._errands: dict[Need, Errand] = {}
        self._by_number: dict[int, Errand] = {}
        self._have: dict[Need, tuple[int, set[int]]] = {}  # errand and leases
        self._idle: dict[Need, float] = {}  # directories that no lease has now, and until when they are kept
        self._queue: deque[Need] = deque()
        self._fetching: dict[Need, Errand] = {}
        self._said: dict[Need, None] = {}  # to be asked for in this turn
        self._done: list[int] = []  # leases whose clients shall hear that nothing is missing
        self._flight = 0  # asked for and not written
        self._errands_made = 0
        self._look_at = inf
        self._actions: list[Action] = []

    # ------------------------------------------------------------ leases

    def __bool__(self) -> bool:
        return bool(self._calls or self.failed or self._actions or self._idle or self._done)

    def add(self, lease: int, owner: str, needs: tuple[Need, ...]) -> bool:
        """A lease with needs was granted; True: some of them are missing."""
        call = self._calls[lease] = Call(owner, needs)
        for need in call.needs:
            have = self._have.get(need)
            if have is not None:
                have[1].add(lease)
                self._idle.pop(need, None)
                continue
            call.missing.add(need)
            if need not in self._errands:
                self._seek(self._new(need))
            self._errands[need].waiters[lease] = None
        self.deadline = NOW
        return bool(call.missing)

    def reap(self, leases: Container[int]) -> None:
        """Forget what only leases need that are not held any more."""
        for lease in [lease for lease in self._calls if lease not in leases]:
            self._end(lease)

    def _end(self, lease: int) -> None:
        call = self._calls.pop(lease)
        self.deadline = NOW
        for need in call.needs:
            have = self._have.get(need)
            if have is not None:
                have[1].discard(lease)
                if not have[1]:
                    if need.tree:
                        self._idle[need] = inf
                        continue
                    del self._have[need]
                    self._actions.append(DropBlob(have[0], need))
            else:
                self._leave(need, lease)

    def _leave(self, need: Need, waiter: Waiter) -> None:
        """This waiter does not wait for it any more; who is the last one ends the errand."""
        errand = self._errands.get(need)
        if errand is None:
            return
        errand.waiters.pop(waiter, None)
        if errand.waiters:
            if errand.state == FETCHING and errand.lease not in self._leases_of(errand):
                self._ask_again(errand)
            return
        self._strike(errand)
        self._actions.append(DropBlob(errand.number, need))

    def _strike(self, errand: Errand) -> None:
        need = errand.need
        del self._errands[need]
        del self._by_number[errand.number]
        self._land(errand)
        for part in errand.parts:
            self._leave(part, need)

    def _land(self, errand: Errand) -> None:
        """It is not fetched any more."""
        if self._fetching.pop(errand.need, None) is not None:
            self._flight -= errand.upto - errand.stored
        self._said.pop(errand.need, None)

    def _leases_of(self, errand: Errand) -> Iterator[int]:
        """In whose name it may be asked for."""
        return (lease for lease, _ in self._sources_of(errand))

    def _sources_of(self, errand: Errand) -> Iterator[tuple[int, bool]]:
        """The same, and whether of the archive."""
        for waiter in errand.waiters:
            if isinstance(waiter, int):
                call = self._calls.get(waiter)  # it may be ending
                yield waiter, call is not None and errand.need in call.archived
            elif waiter in self._errands:
                yield from self._sources_of(self._errands[waiter])

    # ------------------------------------------------------------ errands

    def _new(self, need: Need) -> Errand:
        self._errands_made += 1
        errand = self._errands[need] = self._by_number[self._errands_made] = Errand(self._errands_made, need)
        return errand

    def _seek(self, errand: Errand) -> None:
        errand.state = SEEKING
        self._actions.append(SeekBlob(errand.number, errand.need))

    def found(self, number: int, have: int, lacks: Iterable[Need], now: float) -> None:
        """The store's answer: it has so much of it, all if that is its size; -1: another worker of this host
        is fetching it. Of a directory that is not there, ``lacks`` are the blobs which are missing."""
        errand = self._by_number.get(number)
        if errand is None or errand.state != SEEKING:
            return
        self.deadline = NOW
        if have == errand.need.size:
            self._complete(errand)
        elif have < 0:
            errand.state = BUSY
            errand.moved_at = now
            self._look_at = min(self._look_at, now + LOOK_AGAIN_S)
        elif errand.need.tree:
            errand.parts = dict.fromkeys(lacks)
            for need in errand.parts:
                if need not in self._errands:
                    self._new(need).state = QUEUED
                    self._queue.append(need)
                self._errands[need].waiters[errand.need] = None
            errand.state = PARTS
            if not errand.parts:
                self._build(errand)
        else:
            errand.stored = errand.at = errand.upto = have
            errand.sought = True
            errand.state = QUEUED
            self._queue.appendleft(errand.need)

    def _build(self, errand: Errand) -> None:
        errand.state = BUILDING
        self._actions.append(BuildTree(errand.number, errand.need))

    def stored(self, number: int, at: int, now: float) -> None:
        """The store has written it up to here; if that is all of it, it is verified and in its place."""
        errand = self._by_number.get(number)
        if errand is None or errand.state not in (FETCHING, BUILDING):
            return
        self.deadline = NOW
        if at == errand.need.size:
            self._complete(errand)
            return
        self._flight -= at - errand.stored
        errand.stored = at
        errand.moved_at = now
        self._extend(errand)

    def _complete(self, errand: Errand) -> None:
        need = errand.need
        errand.parts = {}
        waiters = errand.waiters
        self._strike(errand)
        leases = {waiter for waiter in waiters if isinstance(waiter, int)}
        if leases:
            self._have[need] = errand.number, leases
        else:
            self._actions.append(DropBlob(errand.number, need))
        for waiter in waiters:
            if isinstance(waiter, int):
                call = self._calls[waiter]
                call.missing.discard(need)
                if not call.missing:
                    self.ready.append(waiter)
                    if call.told:
                        self._done.append(waiter)
                continue
            tree = self._errands[waiter]
            tree.parts.pop(need, None)
            if not tree.parts:
                self._seek(tree)

    def went_wrong(self, number: int, text: str, kind: int, now: float) -> None:
        """The store could not do what it was asked to."""
        errand = self._by_number.get(number)
        if errand is None:
            return
        self.deadline = NOW
        if kind == FAR and errand.state == FETCHING:
            errand.far, errand.near = True, False
            errand.at = errand.stored
            self._ask_again(errand)
        elif kind == DAMAGED and errand.state == FETCHING and not errand.tried:
            self._land(errand)
            errand.tried = errand.far = errand.sought = True
            errand.near = False
            errand.stored = errand.at = errand.upto = 0
            errand.state = QUEUED
            self._queue.append(errand.need)
        else:
            self._fail(list(dict.fromkeys(self._leases_of(errand))), text)

    def _fail(self, leases: list[int], text: str) -> None:
        for lease in leases:
            self.failed.append((lease, text))
            self._end(lease)

    # ------------------------------------------------------------ asking

    def _fill(self, now: float) -> None:
        """Ask for more while there is room in the window."""
        while self._queue and self._flight < self._limits.wants_window_bytes:
            errand = self._errands.get(self._queue.popleft())
            if errand is None or errand.state != QUEUED:
                continue
            need = errand.need
            if not 0 < need.size <= self.chunk_bytes and not errand.sought:  # some of it may be there
                self._seek(errand)
                continue
            errand.state = FETCHING
            errand.again = True
            errand.moved_at = now
            errand.patience = 1
            self._fetching[need] = errand
            self._look_at = min(self._look_at, now + self._limits.beat_interval_s)
            self._extend(errand)

    def _extend(self, errand: Errand) -> None:
        """Let more of it come, if half of what was asked for has been written. One file leaves some room for
        others."""
        window, chunk = self._limits.wants_window_bytes, self.chunk_bytes
        most, asked = max(chunk, window * 3 // 4), errand.upto - errand.stored
        if asked > most // 2:
            return
        room = max(chunk, min(most, window - self._flight + asked) // chunk * chunk)
        upto = min(errand.need.size, errand.stored + room)
        if upto > errand.upto:
            self._flight += upto - errand.upto
            errand.upto = upto
            self._said[errand.need] = None

    def _ask_again(self, errand: Errand) -> None:
        errand.again = True
        self._said[errand.need] = None

    def _ask_another(self, errand: Errand) -> None:
        """Its client may be gone: the next one whose lease waits for it has its turn. Another lease of the
        same one would only wait behind what was asked for already."""
        before = self._source(errand)
        for waiter in list(errand.waiters):
            errand.waiters[waiter] = errand.waiters.pop(waiter)
            if isinstance(waiter, Need):
                self._ask_another(self._errands[waiter])
            if self._source(errand) != before:
                break

    def _source(self, errand: Errand) -> str:
        """Who is asked for it: a client, or the archive."""
        lease, archived = next(self._sources_of(errand))
        return "" if archived or lease not in self._calls else self._calls[lease].owner

    def welcome(self) -> None:
        """What was asked for and sent over the old link may be lost."""
        for errand in self._fetching.values():
            if not errand.near:
                self._ask_again(errand)
                self.deadline = NOW

    def _look(self, now: float) -> None:
        """Repeat what nobody has answered."""
        self._look_at = inf
        for errand in list(self._errands.values()):
            if errand.state == BUSY:
                due = errand.moved_at + LOOK_AGAIN_S
                if now >= due:
                    self._seek(errand)
                    continue
            elif errand.state == FETCHING and not errand.near and errand.at < errand.upto:
                due = errand.moved_at + errand.patience * self._limits.beat_interval_s
                if now >= due:
                    errand.patience = min(2 * errand.patience, PATIENCE_MAX)
                    errand.moved_at = now
                    due = now + errand.patience * self._limits.beat_interval_s
                    self._ask_another(errand)
                    self._ask_again(errand)
            elif errand.state == FETCHING:
                due = now + self._limits.beat_interval_s
            else:
                continue
            self._look_at = min(self._look_at, due)

    # ------------------------------------------------------------ what comes

    def chunks(self, message: Chunks, payload: Payload, now: float) -> None:
        """The client of that lease answers."""
        call = self._calls.get(message.lease)
        if call is None:
            return
        self.deadline = NOW
        for chunk, blob in zip(message.chunks, payload, strict=True):
            errand = self._fetching.get(Need(chunk.digest, chunk.size))
            if errand is None or errand.lease != message.lease or errand.near:
                continue
            if chunk.text:
                self._refused(errand, call.owner, chunk.text)
            elif chunk.path:
                if not errand.far:
                    errand.near = True
                    self._store(errand, 0, chunk, b"")
            elif self._fits(errand, chunk.at, len(blob)):
                errand.at += len(blob)
                errand.patience = 1
                call.taken += len(blob)
                errand.moved_at = now
                self._store(errand, chunk.at, chunk, blob)

    def _fits(self, errand: Errand, at: int, size: int) -> bool:
        """It is the next chunk, and was asked for."""
        expected = min(self.chunk_bytes, errand.need.size - at)
        return at == errand.at and size == expected and at + size <= errand.upto

    def _store(self, errand: Errand, at: int, chunk: Chunk, blob: Blob) -> None:
        self._actions.append(StoreChunk(errand.number, errand.need, at, chunk.check, blob, chunk.path))

    def _refused(self, errand: Errand, owner: str, text: str) -> None:
        """This client cannot give it; another one may."""
        leases = dict.fromkeys(self._leases_of(errand))
        self._fail([lease for lease in leases if self._calls[lease].owner == owner], text)

    # ------------------------------------------------------------ the turn

    def advance(self, now: float, joined: bool, actions: list[Action]) -> None:
        """Look at the clock, and add what this turn has for the store and for the broker."""
        if now >= self._look_at:
            self._look(now)
        if self._idle:
            self._drop_idle(now)
        self._fill(now)
        if joined:
            self._say(actions)
        actions.extend(self._actions)
        self._actions = []
        if not self._calls:
            self._look_at = inf
            self._done = []  # of those that ended while there was no link
        self.deadline = min(self._look_at, min(self._idle.values(), default=inf))

    def _drop_idle(self, now: float) -> None:
        """Keep a directory for a while after its last call: the next one often has the same."""
        kept_s = KEPT_BEATS * self._limits.beat_interval_s
        for n, (need, until) in enumerate(list(self._idle.items())):
            if until == inf:
                self._idle[need] = now + kept_s
            elif until <= now or n + IDLE_MAX < len(self._idle):
                del self._idle[need]
                self._actions.append(DropBlob(self._have.pop(need)[0], need))

    def _say(self, actions: list[Action]) -> None:
        wants: dict[int, list[Wanted]] = {}
        for need in self._said:
            errand = self._fetching[need]
            lease, archived = next(self._sources_of(errand))
            if (lease, archived) != (errand.lease, errand.archived):
                errand.lease, errand.archived, errand.again = lease, archived, True
            again, far = errand.again, errand.far
            wanted = Wanted(need.digest, need.size, errand.at, errand.upto, again, far, archived)
            wants.setdefault(lease, []).append(wanted)
            errand.again = False
        self._said = {}
        most = self._limits.batch_calls_max
        for lease, wanted_of in wants.items():
            call = self._calls[lease]
            call.told = True
            for start in range(0, len(wanted_of), most):
                actions.append(Send(BROKER, Want(lease, wanted_of[start : start + most], call.taken)))
        for lease in self._done:
            if lease in self._calls:
                actions.append(Send(BROKER, Want(lease, [], self._calls[lease].taken)))
        self._done = []

    def check(self) -> None:
        """What is in flight is bounded and counted; every errand has somebody who waits."""
        flight = sum(errand.upto - errand.stored for errand in self._fetching.values())
        assert flight == self._flight <= self._limits.wants_window_bytes + self.chunk_bytes
        for need, errand in self._errands.items():
            assert errand.need == need and self._by_number[errand.number] is errand
            assert errand.waiters, f"an errand for nobody: {need}"
            assert errand.stored <= errand.at <= max(errand.upto, errand.at) <= need.size or errand.near
            assert (need in self._fetching) == (errand.state == FETCHING)
        for lease, call in self._calls.items():
            for need in call.needs:
                missing = need in call.missing
                assert missing == (need in self._errands) != (need in self._have), f"{lease}: {need}"
