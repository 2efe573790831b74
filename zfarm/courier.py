"""A link to the archive of a broker, for one transfer or question at a time, in the thread that wants it.

It waits for a broker that is away and goes on from where it was. It knows messages and stores, and no task.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from zfarm.core.giving import Giving
from zfarm.core.lacking import Lacking
from zfarm.dialogue import Dialogue
from zfarm.edge import wire
from zfarm.edge.security import Access
from zfarm.edge.shelf import Gathering
from zfarm.errors import BrokerUnreachable, FarmError, TransferError
from zfarm.givers import Giver
from zfarm.messages import (
    Archive,
    Archived,
    ArchivedFile,
    Chunks,
    Discard,
    Give,
    Lookup,
    Message,
    Need,
    Payload,
    Refused,
    Send,
    Want,
)
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.handles import FileHandle

__all__ = ["Courier", "Moved"]

Moved: TypeAlias = "Callable[[int], None]"
"""Is told how many bytes have been moved so far."""
NUMBER: Final = 1
"""Of what is asked: one thing at a time."""
TURN_S: Final = 0.2
"""How long a turn may take, so that Ctrl-C is heeded."""


class _Given(NamedTuple):
    """The handle that is uploaded, as a task that needs it."""

    token: FileHandle
    needs: tuple[Need, ...]


class Courier(Dialogue):
    """To be closed, or used by ``with``."""

    def __init__(self, find: Callable[[], Access]) -> None:
        """Connect to the broker that ``find`` names; it is asked again when that is away.

        Raises:
            ConfigurationError: there is no such broker, or its keys cannot be used.
        """
        self._reached = False
        self._linked = False  # just now
        self._heard_at = time.monotonic()
        self._on: Callable[[Any, Payload], None] = lambda message, payload: None
        self.moved_bytes = 0
        """Bytes of files that were sent, or received; those of files that both ends of one host have in
        their place count as well."""
        super().__init__(find)

    # ------------------------------------------------------------ questions

    def names(self, name: str = "", everybody: bool = False) -> list[ArchivedFile]:
        """What is kept under this name, or under all.

        Raises:
            BrokerUnreachable: there was no answer.
            AccessDenied: the broker does not know our key, or it is no admin's and asked for ``everybody``.
            ConfigurationError: this broker keeps no files.
        """
        parts: dict[int, Archived] = {}

        def hear(message: Any, payload: Payload) -> None:
            if isinstance(message, Archived) and not message.open:
                parts[message.first] = message

        def done() -> bool:
            _check(parts.values())
            return bool(parts) and all(
                sum(len(part.files) for part in parts.values()) >= part.total for part in parts.values()
            )

        self._ask(Lookup(NUMBER, name, everybody), hear, done, settings.reach_timeout_s)
        return [file for _, part in sorted(parts.items()) for file in part.files]

    def discard(self, name: str, owner: str = "") -> None:
        """Have a name forgotten, and what only it was for.

        Raises: as ``names``; FileUnknown: nothing has this name.
        """
        self._request(Discard(NUMBER, name, owner), settings.reach_timeout_s)

    def _request(self, message: Message, away_s: float) -> None:
        got: list[Archived] = []

        def hear(answer: Any, payload: Payload) -> None:
            if isinstance(answer, Archived) and not answer.open:
                got.append(answer)

        self._ask(message, hear, lambda: bool(got), away_s)
        _check(got)

    # ------------------------------------------------------------ transfers

    def put(self, handle: FileHandle, name: str, moved: Moved) -> None:
        """Have what this handle stands for kept under that name.

        Raises: as ``names``; TransferError: it cannot be read or kept; the text says why.
        """
        need = handle._need
        giving = Giving(settings)
        tasks = {0: _Given(handle, (need,))}
        got: list[Archived] = []
        giver = Giver(lambda chunks, payload: self.loop.call_soon(lambda: self._give(chunks, payload, moved)))

        def hear(message: Any, payload: Payload) -> None:
            if isinstance(message, Archived) and not message.open:
                got.append(message)
            elif isinstance(message, Want):
                told = Want(message.lease, message.wants, message.taken, 0, message.host)
                giving.want(told, tasks, time.monotonic())

        def turn(now: float) -> float:
            actions: list[Any] = []
            giving.advance(now, tasks, actions)
            for action in actions:
                assert isinstance(action, Give)
                giver.give(action, (handle,))
            return giving.deadline

        try:
            question = Archive(NUMBER, name, Need(need.digest, need.size, need.tree), handle.mode)
            self._ask(question, hear, lambda: bool(got), settings.broker_away_max_s, turn)
        finally:
            giver.close()
        _check(got)

    def _give(self, chunks: Chunks, payload: Payload, moved: Moved) -> None:
        self._send(chunks, payload)
        size = sum(map(len, payload)) + sum(chunk.size for chunk in chunks.chunks if chunk.path)
        if size:
            self.moved_bytes += size
            moved(self.moved_bytes)

    def fetch(self, name: str, need: Need, folder: Path, moved: Moved) -> Gathering:
        """Gather what is kept of this in ``folder``, and go on with what is there: a store, to be closed.
        The ``name`` is what the broker is asked about, to see whether it is there.

        Raises: as ``names``; TransferError: it cannot be had or written.
        """
        lacking = Lacking(settings)
        answers: list[tuple[str, tuple[Any, ...]]] = []
        store = Gathering(folder, 2**62, True, lambda name, *arguments: answers.append((name, arguments)))
        plain = Need(need.digest, need.size, need.tree)
        wants: list[Message] = []
        lacking.add(NUMBER, "", (plain,))

        def hear(message: Any, payload: Payload) -> None:
            if isinstance(message, Chunks):
                lacking.chunks(message, payload, time.monotonic())

        def turn(now: float) -> float:
            actions: list[Any] = []
            lacking.advance(now, True, actions)
            for action in actions:
                self._store(store, action, wants)
            store.settle()
            for name, arguments in answers:
                how = {"blob_found": lacking.found, "blob_stored": lacking.stored}.get(name)
                (how or lacking.went_wrong)(*arguments, now)  # type: ignore[operator]
            answers.clear()
            for want in wants:
                self._send(want)
            wants.clear()
            if store.moved_bytes > self.moved_bytes:
                self.moved_bytes = store.moved_bytes
                moved(self.moved_bytes)
            return lacking.deadline

        def done() -> bool:
            if lacking.failed:
                raise TransferError(lacking.failed[0][1])
            return bool(lacking.ready)

        try:
            self._ask(Lookup(NUMBER, name), hear, done, settings.broker_away_max_s, turn, lacking.welcome)
        except BaseException:
            store.close()
            raise
        return store

    @staticmethod
    def _store(store: Gathering, action: Any, wants: list[Message]) -> None:
        if isinstance(action, Send):
            want = action.message
            wants.append(Want(want.lease, want.wants, want.taken, 0, platform.node()))
            return
        store.do(action)

    # ------------------------------------------------------------ the link

    def _ask(
        self,
        question: Message,
        hear: Callable[[Any, Payload], None],
        done: Callable[[], bool],
        away_s: float,
        turn: Callable[[float], float] = lambda now: inf,
        welcome: Callable[[], None] = lambda: None,
    ) -> None:
        """Say this each beat until what comes of it is ``done``; the broker may be away for so long, once it
        was reached."""
        self._on = hear
        asked_at = -inf
        opened_at = self._heard_at = time.monotonic()
        while not done():
            now = time.monotonic()
            if self.trouble is not None:
                raise self.trouble
            silent_s = now - self._heard_at
            if silent_s > (away_s if self._reached else settings.reach_timeout_s):
                raise BrokerUnreachable(
                    f"no broker has answered at {self._access.address} for {silent_s:.0f} s; is it running, "
                    "and does this address reach it? What was moved is gone on with when this is done again"
                )
            if min(silent_s, now - opened_at) > settings.reach_timeout_s:
                self._reopen()
                opened_at, asked_at = now, -inf
            if self._linked:
                self._linked = False
                asked_at = -inf
                welcome()
            if now >= asked_at + settings.beat_interval_s:
                self._send(question)
                asked_at = now
            deadline = turn(now)
            if not done():
                due = min(deadline, asked_at + settings.beat_interval_s) - time.monotonic()
                self.loop.turn(max(0.0, min(due, TURN_S)))

    def _send(self, message: Message, payload: Payload = ()) -> None:
        """Say this, or drop it while there is no link: it is said again."""
        if self._port.up:
            self._port.send(wire.encode(message, payload))

    def _link(self, up: bool) -> None:
        self._linked = up

    def _reopen(self) -> None:
        """It may be back at another place, or with other keys."""
        try:
            access = self._find()
        except FarmError:
            return  # not back yet: the old place is as good as any
        if access != self._access:
            self._access = access
            self._close_port()
            self._open()

    def _hear(self, message: Any, payload: Payload) -> None:
        self._was_reached()
        self._on(message, payload)

    def _hear_refusal(self, message: Refused) -> None:
        self._was_reached()
        if message.code != "ProtocolError" or not self._port.misunderstood():
            super()._hear_refusal(message)

    def _was_reached(self) -> None:
        self._heard_at = time.monotonic()
        self._reached = True


def _check(answers: Sequence[Archived] | Any) -> None:
    """Raise what the archive says is wrong."""
    for answer in answers:
        if answer.code:
            raise FarmError.named(answer.code, answer.text)
