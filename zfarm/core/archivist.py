"""The archive of one owner: which uploads it takes and lacks what of, and what it gives to whom; it reads no
file.

An upload is a lease with one need, and a reader a task which needs something: so what holds between workers
and clients holds here. Whoever uploads says so again each beat, and is forgotten when silent; what has come
of it stays in the store.

A worker may be told where a file lies on its host, since a client may run there what it likes. A broker is
not: a client could have it read what is another's, or what nobody was to read. Only bytes are taken.
"""

from __future__ import annotations

from math import inf
from typing import Any, Final, NamedTuple

from msgspec import structs

from zfarm.core.errands import plain
from zfarm.core.giving import Giving
from zfarm.core.lacking import Lacking
from zfarm.core.machine import NOW
from zfarm.messages import (
    Action,
    Archive,
    Archived,
    Chunks,
    NameBlob,
    Need,
    Payload,
    Peer,
    Send,
    SpoilBlob,
    Want,
)
from zfarm.settings import Settings

__all__ = ["Archivist", "Reader"]

READERS_MAX: Final = 64
"""Downloads that one client has at a time."""
NO_PATHS: Final = "the broker opens no file of its host for a client: send what is in it"
SOME_NEED: Final = (Need(b"", 0),)
"""A reader needs something: what, its shell finds in its owner's store, or not."""


class Reader(NamedTuple):
    """Somebody who is given blobs: a client (``owner`` is empty), or the worker which has that task."""

    peer: Peer
    owner: str
    lease: int
    number: int


class Taker(NamedTuple):
    """A reader as a task that needs something."""

    token: Any
    needs: tuple[Need, ...] = SOME_NEED


class Upload:
    """Something on its way to a name."""

    __slots__ = ("heard_at", "message", "naming", "peer")

    def __init__(self, peer: Peer, message: Archive, now: float) -> None:
        self.peer = peer
        self.message = message
        self.heard_at = now
        self.naming = False


class Archivist:
    """Uploads to one owner's archive, and readers of it."""

    def __init__(self, limits: Settings) -> None:
        self.deadline = inf
        self.lacking = Lacking(limits)
        self.giving = Giving(limits)
        self._limits = limits
        self._uploads: dict[int, Upload] = {}
        self._numbers: dict[tuple[Peer, int], int] = {}
        self._readers: dict[int, Taker] = {}
        self._tasks: dict[Reader, int] = {}
        self._made = 0
        self._actions: list[Action] = []
        self._spoilt: list[Need] = []

    @property
    def needs(self) -> tuple[Need, ...]:
        """What is on its way."""
        return tuple(upload.message.need for upload in self._uploads.values())

    # ------------------------------------------------------------ what comes

    def archive(self, peer: Peer, message: Archive, now: float) -> None:
        """A client wants this kept; it says so again until it has the answer."""
        self.deadline = NOW
        number = self._numbers.get((peer, message.number))
        if number is not None:
            self._uploads[number].heard_at = now
            return
        message = structs.replace(message, need=plain(message.need))
        self._made += 1
        self._numbers[peer, message.number] = self._made
        self._uploads[self._made] = Upload(peer, message, now)
        if not self.lacking.add(self._made, f"{self._made}", (message.need,)):
            self._name(self._made)

    def want(self, reader: Reader, message: Want, now: float) -> None:
        """A worker or a client asks for blobs."""
        self.deadline = NOW
        if reader not in self._tasks:
            mine = sum(other.peer == reader.peer and not other.owner for other in self._tasks)
            if not reader.owner and mine >= READERS_MAX:
                return  # it is said again, and one of its others may have ended by then
            self._made += 1
            self._tasks[reader] = self._made
            self._readers[self._made] = Taker(reader)
        task = self._tasks[reader]
        asked = structs.replace(message, lease=task, task=task)
        self.giving.want(asked, self._readers, now)

    def chunks(self, peer: Peer, message: Chunks, payload: Payload, now: float) -> None:
        """What was asked of a client for its upload."""
        upload = self._uploads.get(message.lease)
        if upload is not None and upload.peer == peer:
            self.deadline = NOW
            upload.heard_at = now
            if any(chunk.path for chunk in message.chunks):
                without = [
                    structs.replace(one, path="", text=NO_PATHS) if one.path else one
                    for one in message.chunks
                ]
                message = structs.replace(message, chunks=without)
            self.lacking.chunks(message, payload, now)

    def gone(self, peer: Peer) -> None:
        """The link of a client is gone; it comes back with another one."""
        for number in [number for number, upload in self._uploads.items() if upload.peer == peer]:
            self._end(number)
        for reader in [reader for reader in self._tasks if reader.peer == peer and not reader.owner]:
            task = self._tasks.pop(reader)
            del self._readers[task]
            self.giving.ended(task)
        self.deadline = NOW

    # ------------------------------------------------------------ what the store says

    def blob_found(self, errand: int, have: int, lacks: tuple[Need, ...], now: float) -> None:
        """Answer to SeekBlob: see Lacking.found."""
        self.lacking.found(errand, have, lacks, now)
        self.deadline = NOW

    def blob_stored(self, errand: int, at: int, now: float) -> None:
        """Answer to StoreChunk and BuildTree: it is written up to here, or complete."""
        self.lacking.stored(errand, at, now)
        self.deadline = NOW

    def blob_failed(self, errand: int, text: str, kind: int, now: float) -> None:
        """Answer to SeekBlob, StoreChunk and BuildTree: why not; ``kind`` as in zfarm.core.lacking."""
        self.lacking.went_wrong(errand, text, kind, now)
        self.deadline = NOW

    def named(self, number: int, text: str) -> None:
        """Answer to NameBlob: it has its name, or why it has not."""
        upload = self._uploads.get(number)
        if upload is not None:
            self._answer(number, upload, text)

    # ------------------------------------------------------------ the turn

    def advance(self, now: float) -> list[Action]:
        """What is to be done now."""
        silent = now - self._limits.client_lost_after_s
        for number in [n for n, upload in self._uploads.items() if upload.heard_at < silent]:
            self._end(number)
        said: list[Action] = []
        self.lacking.reap(self._uploads)
        self.lacking.advance(now, True, said)
        ready, self.lacking.ready = self.lacking.ready, []
        for number in ready:
            if number in self._uploads:
                self._name(number)
        failed, self.lacking.failed = self.lacking.failed, []
        for number, text in failed:
            if number in self._uploads:
                self._answer(number, self._uploads[number], text)
        self.giving.advance(now, self._readers, said)
        self._forget_readers()
        for action in said:
            if isinstance(action, Send):
                want = action.message
                upload = self._uploads.get(want.lease)
                if upload is not None:
                    self._actions.append(Send(upload.peer, want))
            else:
                self._actions.append(action)
        self._actions += map(SpoilBlob, self._spoilt)  # nobody holds it any more
        actions, self._actions, self._spoilt = self._actions, [], []
        heard = min((upload.heard_at for upload in self._uploads.values()), default=inf)
        silence = heard + self._limits.client_lost_after_s
        self.deadline = min(self.lacking.deadline, self.giving.deadline, silence)
        return actions

    def _name(self, number: int) -> None:
        upload = self._uploads[number]
        if not upload.naming:
            upload.naming = True
            self._actions.append(NameBlob(number, upload.message))

    def _answer(self, number: int, upload: Upload, text: str) -> None:
        code = "TransferError" if text else ""
        self._actions.append(Send(upload.peer, Archived(upload.message.number, code=code, text=text)))
        self._end(number)
        if text:
            self._spoilt.append(upload.message.need)

    def _end(self, number: int) -> None:
        upload = self._uploads.pop(number)
        del self._numbers[upload.peer, upload.message.number]
        self.deadline = NOW

    def _forget_readers(self) -> None:
        """Those who have all, or are silent."""
        given = self.giving.tasks
        if len(given) < len(self._tasks):
            for reader in [reader for reader, task in self._tasks.items() if task not in given]:
                del self._readers[self._tasks.pop(reader)]

    def check(self) -> None:
        """Every upload is under way, and every reader is given something."""
        self.lacking.check()
        self.giving.check()
        assert sorted(self._numbers.values()) == sorted(self._uploads)
        assert set(self._tasks.values()) == set(self._readers)
