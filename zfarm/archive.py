"""The archive of a broker: it keeps files under names, for programs to come; in threads of its own, one per
owner, so that no disk delays a turn of the broker.

What is asked and given is decided in zfarm.core.archivist; the files are in zfarm.edge.shelf and their names
in zfarm.edge.catalogue. Owners are principals, as the keys of peers say, and see nothing of one another.
"""

from __future__ import annotations

import logging
import os
import platform
import queue
import threading
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any, Final, TypeAlias

from zfarm.core.archivist import Archivist, Reader
from zfarm.core.greeting import principal_of
from zfarm.edge.catalogue import Catalogue, check_archived_name, folder_of, lock_archive, owners_in
from zfarm.edge.helpings import helpings
from zfarm.edge.shelf import Quota, Shelf
from zfarm.errors import FarmError
from zfarm.messages import (
    Action,
    Archive,
    Archived,
    ArchivedFile,
    Blob,
    BuildTree,
    Chunk,
    Chunks,
    Discard,
    DropBlob,
    Give,
    Lookup,
    NameBlob,
    Payload,
    Peer,
    SeekBlob,
    Send,
    SpoilBlob,
    StoreChunk,
    Want,
)
from zfarm.settings import Settings, settings

__all__ = ["ARCHIVE", "QUESTIONS", "Keeper"]

log = logging.getLogger("zfarm.archive")

ARCHIVE: Final = "archive"
"""The peer that an archive is to the broker's machine."""
QUESTIONS: Final = frozenset((Archive, Lookup, Discard))
"""What only an archive can answer."""
WAITING_MAX: Final = 10_000
"""Messages of one owner that wait; what is beyond is dropped, and said again by whoever wants something."""
CLOSE_S: Final = 5.0
"""How long the end of the broker waits for threads in the middle of a file."""

ToPeer: TypeAlias = Callable[[Peer, Any, Payload], None]
ToWorker: TypeAlias = Callable[[str, Chunks, Payload], None]


WANT_BYTES: Final = 256
"""What one blob in a Want takes about."""


def _weight(message: Any, payload: Payload) -> int:
    return sum(map(len, payload)) + WANT_BYTES * len(getattr(message, "wants", ()))


class Keeper:
    """All shelves of one broker, for its loop: every method is called there, and returns at once."""

    def __init__(
        self,
        root: Path,
        call_soon: Callable[[Callable[[], None]], None],
        send: ToPeer,
        give: ToWorker,
        limits: Settings = settings,
    ) -> None:
        """Keep files in ``root``. ``send`` tells a client something, and ``give`` gives the worker of a task
        what it has asked for; both are called by ``call_soon``.

        Raises:
            ConfigurationError: it is not ours alone, cannot be made, or another broker uses it.
        """
        self._hold = lock_archive(root)
        self.root = root
        self.limits = limits
        self.quota = Quota(root, limits.archive_bytes_max, limits.archive_floor_bytes)
        self._call_soon = call_soon
        self._send = send
        self._give = give
        self._owners: dict[str, _Owner] = {}
        self._peers: dict[Peer, str] = {}

    def __contains__(self, peer: Peer) -> bool:
        """Whether this peer speaks to us, and not to the broker."""
        return peer in self._peers

    def receive(self, peer: Peer, message: Any, payload: Payload, principal: str) -> None:
        """A client says something."""
        self._peers[peer] = principal
        if type(message) is Archive:  # the thread may be in the middle of a large file
            self._send(peer, Archived(message.number, open=True), ())
        self._pass(principal, ("said", peer, message, payload))

    def hear(self, message: Want, payload: Payload) -> None:
        """The broker's machine passes on what a worker wants for a task of ``message.owner``."""
        self._pass(principal_of(message.owner), ("wanted", message))

    def gone(self, peer: Peer) -> None:
        """The link of a client is gone."""
        principal = self._peers.pop(peer, None)
        if principal is not None:
            self._pass(principal, ("gone", peer))

    def pass_on(self, owner: str, peer: Peer, message: Discard) -> None:
        """An admin says this in the name of another owner; from the thread of another one."""
        self._call_soon(lambda: self._pass(owner, ("said", peer, message, ())))

    def close(self) -> None:
        """End all threads; what is begun stays to be gone on with."""
        for owner in self._owners.values():
            owner.hear(None)
        end = time.monotonic() + CLOSE_S
        for owner in self._owners.values():
            owner.thread.join(max(0.0, end - time.monotonic()))
        os.close(self._hold)

    def _pass(self, principal: str, job: tuple[Any, ...]) -> None:
        """Have the thread of this owner do that; one that has failed is followed by another."""
        owner = self._owners.get(principal)
        if owner is None or not owner.hear(job):
            owner = self._owners[principal] = _Owner(self, principal)
            owner.hear(job)
            owner.thread.start()

    # ------------------------------------------------------------ in the threads of the owners

    def say(self, said: list[tuple[Peer, Any, Payload]], given: list[tuple[str, Chunks, Payload]]) -> None:
        """Send this soon."""

        def tell() -> None:
            for peer, message, payload in said:
                if peer in self._peers:
                    self._send(peer, message, payload)
            for owner, message, payload in given:
                self._give(owner, message, payload)

        self._call_soon(tell)


class _Owner:
    """One owner's archivist, shelf and names, and the thread in which they work."""

    def __init__(self, keeper: Keeper, principal: str) -> None:
        self._dead = False
        self._keeper = keeper
        self._principal = principal
        self._queue: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._machine = Archivist(keeper.limits)
        self._shelf: Shelf | None = None
        self._names: Catalogue | None = None
        self._said: list[tuple[Peer, Any, Payload]] = []
        self._given: list[tuple[str, Chunks, Payload]] = []
        self._asked: dict[Peer, int] = {}  # whom to tell if this fails, and the number of what it asked
        self.thread = threading.Thread(target=self._run, name="zfarm-archive", daemon=True)

    def hear(self, job: tuple[Any, ...] | None) -> bool:
        """Do this soon; False: there is nobody to do it any more. More than was asked for is dropped."""
        with self._lock:
            if self._dead:
                return False
            if job is not None and job[0] == "wanted" and self._queue.qsize() >= WAITING_MAX:
                return True
            if job is not None and job[0] == "said":
                size = _weight(job[2], job[3])
                most = 4 * self._keeper.limits.wants_window_bytes
                if self._queue.qsize() >= WAITING_MAX or (size and self._waiting_bytes + size > most):
                    return True
                self._waiting_bytes += size
            self._queue.put(job)
        return True

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self._open()
            while self._turn():
                pass
        except Exception as error:
            log.critical("the archive of %s has failed", self._principal, exc_info=True)
            text = f"the archive of the broker has failed ({error}): its log says more"
            with self._lock:
                self._dead = True
            while not self._queue.empty():
                job = self._queue.get()
                if job and job[0] == "said" and type(job[2]) in QUESTIONS:
                    self._asked[job[1]] = job[2].number
            self._said = [
                (peer, Archived(number, code="FarmError", text=text), ())
                for peer, number in self._asked.items()
            ]
            self._flush()
        finally:
            if self._shelf is not None:
                self._shelf.close()

    def _open(self) -> None:
        folder = folder_of(self._keeper.root, self._principal)
        self._names = Catalogue(folder, self._principal)
        self._shelf = Shelf(folder, self._keeper.quota, self._answer, self._kept)

    def _turn(self) -> bool:
        patience = self._machine.deadline - time.monotonic()
        if patience > 0:
            assert self._shelf is not None
            if self._queue.empty():
                self._shelf.let_go()
            try:
                job = self._queue.get(timeout=None if patience == inf else patience)
            except queue.Empty:
                job = ()
            if job is None:
                return False
            if job:
                self._do(job)
        while not self._queue.empty():  # whoever waits in there is not silent
            job = self._queue.get()
            if job is None:
                return False
            self._do(job)
        for action in self._machine.advance(time.monotonic()):
            self._perform(action)
        assert self._shelf is not None
        self._shelf.settle()
        self._flush()
        return True

    def _flush(self) -> None:
        if self._said or self._given:
            self._keeper.say(self._said, self._given)
            self._said, self._given = [], []

    def _answer(self, name: str, *arguments: Any) -> None:
        getattr(self._machine, name)(*arguments, time.monotonic())

    def _kept(self) -> set[str]:
        assert self._names is not None
        assert self._shelf is not None
        return self._shelf.blobs_of((*(one.need for one in self._names), *self._machine.needs))

    # ------------------------------------------------------------ what comes

    def _do(self, job: tuple[Any, ...]) -> None:
        kind, now = job[0], time.monotonic()
        if kind == "gone":
            self._machine.gone(job[1])
            self._asked.pop(job[1], None)
        elif kind == "wanted":
            want: Want = job[1]
            self._machine.want(Reader(ARCHIVE, want.owner, want.lease, want.task), want, now)
        else:
            _, peer, message, payload = job
            with self._lock:
                self._waiting_bytes -= _weight(message, payload)
            self._hear(peer, message, payload, now)

    def _hear(self, peer: Peer, message: Any, payload: Payload, now: float) -> None:
        if isinstance(message, Want):
            self._machine.want(Reader(peer, "", message.lease, 0), message, now)
        elif isinstance(message, Chunks):
            self._machine.chunks(peer, message, payload, now)
        elif type(message) in QUESTIONS:
            self._asked[peer] = message.number
            try:
                self._question(peer, message, now)
            except (FarmError, OSError) as error:
                code = type(error).__name__ if isinstance(error, FarmError) else "TransferError"
                self._tell(peer, Archived(message.number, code=code, text=str(error)))

    def _question(self, peer: Peer, message: Any, now: float) -> None:
        assert self._names is not None
        if isinstance(message, Archive):
            check_archived_name(message.name)
            most = self._keeper.limits.archive_names_max
            if len(self._names) >= most and self._names.get(message.name) is None:
                text = f"this key has {most:,} names, its limit (ZFARM_ARCHIVE_NAMES_MAX)"
                self._tell(peer, Archived(message.number, code="TooLarge", text=text))
                return
            self._machine.archive(peer, message, now)
        elif isinstance(message, Lookup):
            self._list(peer, message)
        else:
            self._discard(peer, message)

    def _list(self, peer: Peer, message: Lookup) -> None:
        assert self._names is not None
        found: list[ArchivedFile] = []
        if message.all:
            if not self._is_admin(peer, message.number):
                return
            for owner, folder in owners_in(self._keeper.root):
                names = self._names if owner == self._principal else Catalogue(folder)
                found += [
                    ArchivedFile(one.name, one.need, one.mode, one.bytes, one.files, one.at, owner)
                    for one in names
                ]
        elif message.name:
            one = self._names.get(message.name)
            found = [] if one is None else [one]
        else:
            found = list(self._names)
        most = self._keeper.limits.batch_calls_max
        for first in range(0, max(1, len(found)), most):
            part = found[first : first + most]
            self._tell(peer, Archived(message.number, part, first, len(found)))

    def _is_admin(self, peer: Peer, number: int) -> bool:
        if self._principal.startswith("admin:"):
            return True
        text = "only an admin's key sees and removes what others keep"
        self._tell(peer, Archived(number, code="AccessDenied", text=text))
        return False

    def _discard(self, peer: Peer, message: Discard) -> None:
        assert self._names is not None
        assert self._shelf is not None
        if message.owner and message.owner != self._principal:
            if not self._is_admin(peer, message.number):
                return
            if all(owner != message.owner for owner, _ in owners_in(self._keeper.root)):
                text = f"nobody is called {message.owner[:200]!a}: `zfarm ls --all` tells who keeps files"
                self._tell(peer, Archived(message.number, code="FileUnknown", text=text))
            else:
                self._keeper.pass_on(message.owner, peer, Discard(message.number, message.name))
            return
        before = self._names.get(message.name)
        if before is None or not self._names.remove(message.name):
            text = f"nothing is kept under the name {message.name[:200]!a}: `zfarm ls` tells what is"
            self._tell(peer, Archived(message.number, code="FileUnknown", text=text))
            return
        self._shelf.remove(before.need)
        self._tell(peer, Archived(message.number))

    def _tell(self, peer: Peer, message: Archived) -> None:
        self._said.append((peer, message, ()))

    # ------------------------------------------------------------ what is to be done

    def _perform(self, action: Action) -> None:
        assert self._shelf is not None
        if isinstance(action, SeekBlob | StoreChunk | BuildTree | DropBlob):
            self._shelf.do(action)
        elif isinstance(action, Send):
            self._said.append((action.peer, action.message, action.payload))
        elif isinstance(action, Give):
            self._serve(action)
        elif isinstance(action, SpoilBlob):
            self._shelf.settle()
            self._shelf.remove(action.need)
        else:
            assert isinstance(action, NameBlob), f"an archive cannot do {action}"
            self._shelf.settle()
            self._name(action)

    def _name(self, action: NameBlob) -> None:
        """Keep it under its name, now that all of it is there."""
        assert self._shelf is not None
        assert self._names is not None
        archive = action.archive
        need, text = archive.need, ""
        try:
            size, files = need.size, 1
            if need.tree:
                entries = [entry for entry in self._shelf.manifest(need).entries if entry.digest]
                size, files = sum(entry.size for entry in entries), len(entries)
            entry = ArchivedFile(archive.name, need, archive.mode, size, files, time.time())
            before = self._names.get(archive.name)
            self._names.put(entry)
            if before is not None and before.need != need:
                self._shelf.remove(before.need)
        except (FarmError, OSError) as error:
            text = str(error)
        self._machine.named(action.upload, text)

    def _serve(self, give: Give) -> None:
        """Read what a reader wants, and send it."""
        shelf = self._shelf
        assert shelf is not None
        near = give.host == platform.node()
        limits = self._keeper.limits
        for helping in helpings(
            give.wants, lambda wanted, at: shelf.chunk(wanted, at, near), limits.batch_calls_max
        ):
            self._give(give.token, helping.chunks, helping.payload)

    def _give(self, reader: Reader, chunks: list[Chunk], payload: list[Blob]) -> None:
        message = Chunks(reader.lease, reader.number, chunks)
        if reader.owner:
            self._given.append((reader.owner, message, payload))
        else:
            self._said.append((reader.peer, message, payload))
