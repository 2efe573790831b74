"""A client's calls and results whose large parts are in shared memory: when they come, and when they are
settled; it knows the link, and no socket. In the link's thread."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from zfarm import kept
from zfarm.edge.bales import Bale, Bales
from zfarm.edge.cargo import CARGO, Cargo
from zfarm.edge.outcomes import encode_error
from zfarm.edge.stored import Stored
from zfarm.edge.stowage import DROP, UNSHARE, Hold, Stowage
from zfarm.errors import FarmError
from zfarm.messages import ERROR, MIXED, VALUE, Blob, Ended, Outcome, Payload, Stranger
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.link import Link

__all__ = ["Harbour"]

log = logging.getLogger("zfarm")

_TRIES: Final = 6
_TRY_AGAIN_S: Final = 0.5
_NONE: Final = Hold([], lambda segments: None)
_ENDED: Final = frozenset((VALUE, ERROR, MIXED))


class Harbour:
    """Where the cargo of one link comes and goes."""

    def __init__(self, link: Link, stowage: Stowage) -> None:
        self.stowage = stowage
        self.holds: dict[int, Hold] = {}
        """What open tasks have in shared memory."""
        self.keeping: set[int] = set()
        """Tasks whose results stay where they are."""
        self._link = link
        self._misses: dict[int, int] = {}
        self._unnamed: deque[Callable[[], None]] = deque()
        self._retiring: list[tuple[set[int], Callable[[], None]]] = []
        stowage.notify = self._notify
        link.loop.add_timer(stowage.cool, settings.shared_warm_s)

    def loaded(self, task: int, body: Any) -> None:
        """This body was submitted as that task."""
        if isinstance(body, Cargo) and body.hold is not None:
            self.holds[task] = body.hold

    def needs(self, cargo: Cargo) -> tuple[Bale, ...]:
        """The blobs that this cargo refers to."""
        stowage = self.stowage
        return stowage.bales(cargo) if isinstance(stowage, Bales) else ()

    def land(self, message: Ended, payload: Payload) -> tuple[Ended, Payload]:
        """What has ended, with the results that are in shared memory opened.

        One that cannot be opened is left out, as if it had been lost on its way: if its farm has died, it is
        started anew, and the task with it; else the broker is asked again.
        """
        if not self.keeping and not (self.stowage.lends and [1 for blob in payload if blob[:1] == CARGO]):
            return message, payload
        pairs = list(zip(message.outcomes, payload, strict=True))
        landed = [pair for pair in map(self._landed, pairs) if pair is not None]
        return Ended([outcome for outcome, _ in landed]), [blob for _, blob in landed]

    def _landed(self, pair: tuple[Outcome, Blob]) -> tuple[Outcome, Blob] | None:
        outcome, blob = pair
        keep = outcome.task in self.keeping
        if keep and outcome.kind != VALUE:
            self.keeping.discard(outcome.task)
        elif keep and blob[:1] != CARGO:
            self.keeping.discard(outcome.task)
            return outcome, kept.Arrived(self._link, blob)
        if blob[:1] != CARGO or not self._link.is_open(outcome.task):
            return pair  # of a task that has had its outcome: nobody looks at it
        try:
            hold = self.holds.get(outcome.task)
            if keep and outcome.kind == VALUE:
                cargo: Cargo = kept.Arrived(self._link, blob, hold)
            else:
                cargo = self.stowage.land(blob, hold)
            self.keeping.discard(outcome.task)
        except OSError as error:
            missed = self._misses[outcome.task] = self._misses.get(outcome.task, 0) + 1
            if missed < _TRIES:
                log.debug("the result of task %d cannot be mapped: %s", outcome.task, error)
                self._link.loop.call_later(self._ask_again, _TRY_AGAIN_S)
                return None
            text = f"the result is in shared memory, and that cannot be mapped here: {error}"
            return structs.replace(outcome, kind=ERROR), encode_error(FarmError(text))
        return outcome, cargo

    def _ask_again(self) -> None:
        self._link.receive(Stranger(), ())  # who is welcomed anew asks for all that is open

    def resolved(self, outcome: Outcome, blob: Blob) -> None:
        """A task has ended, with this blob."""
        hold = self.holds.pop(outcome.task, None)
        self._misses.pop(outcome.task, None)
        if self._retiring:
            self._retire(outcome.task)
        if hold is not None:
            known = outcome.kind in _ENDED and not (outcome.deaths or outcome.tries)
            tokens: Sequence[bytes] = blob.kept if isinstance(blob, Cargo) else ()
            self.stowage.ended(hold, tokens if known else None)

    def retire(self, gone: Callable[[], None]) -> None:
        """Nobody refers to something any more: call ``gone`` when the tasks have ended that may name it, and
        at the end in any case. From any thread, also out of a finalizer: at the end it may take no lock."""
        self._unnamed.append(gone)
        if self._link.ended:
            self.close()
        else:
            self._link.call(self._take_unnamed)

    def hold(self, stored: Sequence[Stored]) -> None:
        """A handle names this in the stores of workers from now on. The link's thread only."""
        for one in stored:
            self._link.machine.hold(one.at, one.digest, one.size, one.birth)

    def let_go(self, stored: Sequence[Stored]) -> None:
        """That handle is gone. In the link's thread, or when that has ended, and the farm knows it."""
        if not self._link.ended:
            for one in stored:
                self._link.machine.let_go(one.at, one.digest, one.size)

    def dropped(self, tokens: Sequence[bytes]) -> None:
        """What was kept in shared memory under these tokens is not any more. In the link's thread, or when
        that has ended, and the farm with it."""
        if not self._link.ended:
            self._link.road.tell_notes(b"".join(DROP + token for token in tokens))

    def close(self) -> None:
        """No task is open any more, and none comes. From any thread, several at once too."""
        while self._unnamed or self._retiring:
            try:
                gone = self._unnamed.popleft() if self._unnamed else self._retiring.pop()[1]
            except IndexError:  # another thread was faster
                continue
            gone()

    def _take_unnamed(self) -> None:
        self._link.take()
        while self._unnamed:
            self._retiring.append((set(self._link.open_tasks()), self._unnamed.popleft()))
        self._retire(0)

    def unshare(self, hold: Hold | None, key: bytes) -> None:
        """Nobody and no task refers to a shared object any more."""
        if self._link.ended:
            return  # all is given back then, and a finalizer may hold the lock that this would take
        named = [key]
        if hold is not None:
            named += [segment.token for segment in hold.segments]
            self.stowage.discard(hold)
        self._link.road.tell_notes(b"".join(UNSHARE + name for name in named))

    def _retire(self, ended: int) -> None:
        for one in list(self._retiring):
            tasks, gone = one
            tasks.discard(ended)
            if not tasks:
                self._retiring.remove(one)
                gone()
        if self._retiring:
            self.holds[0] = _NONE  # so that we hear of every end
        else:
            self.holds.pop(0, None)

    def _notify(self) -> None:
        self._link.call(self._tell)

    def _tell(self) -> None:
        notes = self.stowage.notes()
        if notes:
            self._link.road.tell_notes(b"".join(notes))
        self.stowage.rest()
