"""Why a call waits, as its client can tell: what it knows itself, and else what the broker says when asked.

Asking never takes longer than WHY_WAIT_S: a broker that does not answer is a reason, too.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from zfarm.errors import BrokerUnreachable
from zfarm.messages import Look
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.core.client import Client
    from zfarm.link import Link
    from zfarm.messages import Picture, WorkerPicture
    from zfarm.messages import Reason as Said
    from zfarm.parties import Road

__all__ = ["WHY_WAIT_S", "Questions", "Reason"]

log = logging.getLogger("zfarm")

WHY_WAIT_S: Final = 3.0
"""How long a question waits for the broker's answer."""
SILENT_BEATS: Final = 2.5
"""A broker that has missed so many beats is said to be silent."""
WATCHED_MAX: Final = 1000
WARNINGS_MAX: Final = 1000
"""Sentences of the broker that are logged once only."""


class Reason(str):
    """Why a call is where it is: a sentence, with a ``code`` for programs that stays the same.

    Codes: ``ended``, ``cancelled``; ``argument`` (it waits for a future); ``unsent``, ``unreached``,
    ``silent``, ``broken``, ``unknown`` (about the way to the broker); ``running``, ``nested``, ``starting``,
    ``behind`` (a worker has it); ``next``, ``slots``, ``resources``, ``unmet``, ``no-workers``, ``closed``,
    ``backoff``, ``restart``, ``in-doubt``, ``journal`` (it waits at the broker); ``unwritten`` (it has
    ended, and the disk of the journal is full).
    """

    __slots__ = ("code",)
    code: str

    def __new__(cls, code: str, text: str) -> Reason:
        reason = super().__new__(cls, text)
        reason.code = code
        return reason

    def __reduce__(self) -> Any:
        return Reason, (self.code, str(self))

    def __repr__(self) -> str:
        return f"<{self.code}: {self}>"


class _Question:
    """One question on its way."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.reason: Reason | None = None
        self.workers: list[WorkerPicture] = []


class Questions:
    """What is asked over one link, by any thread, and answered in the link's own."""

    def __init__(self, machine: Client, road: Road) -> None:
        self._machine = machine
        self._road = road
        self._open: dict[int, _Question] = {}
        self._watched: dict[int, Callable[[str], None]] = {}
        self._looks: list[_Question] = []
        self._numbers = itertools.count(1)
        self._warned: set[str] = set()

    def ask(self, task: int, call: Callable[[Callable[[], None]], None], now: Callable[[], float]) -> Reason:
        """Why ``task`` is where it is; ``call`` calls something in the link's thread, unless it has ended."""
        local = self._way(now())
        if local is not None:
            return local
        number, question = next(self._numbers), _Question()
        self._open[number] = question

        def send() -> None:
            self._machine.why(number, task)
            if not self._machine.heard(now())[0]:
                question.over.set()

        call(send)
        question.over.wait(WHY_WAIT_S)
        self._open.pop(number, None)
        if question.reason is not None:
            return question.reason
        return self._way(now()) or Reason(
            "silent", f"the broker at {self._road.address} has not said why within {WHY_WAIT_S:g} s"
        )

    def workers(self, link: Link) -> list[WorkerPicture]:
        """The workers that the farm has now.

        Raises:
            BrokerUnreachable: the broker has not said it in time.
        """
        question = _Question()
        self._looks.append(question)
        link.reached.wait(settings.reach_timeout_s)
        link.call(lambda: self._road.send(Look(tasks_max=0), ()))
        if not question.over.wait(settings.reach_timeout_s) or link.ended:
            link.check_open()
            where = self._road.address or "the embedded farm"
            raise BrokerUnreachable(f"the broker at {where} has not said which workers it has")
        return question.workers

    def pictured(self, picture: Picture) -> None:
        """The broker shows the farm; in the link's thread."""
        looks, self._looks = self._looks, []
        for question in looks:
            question.workers = picture.workers
            question.over.set()

    def watch(self, task: int, heard: Callable[[str], None]) -> None:
        """Have ``heard`` called with the code of why ``task`` is where it is, if the broker says so; in
        the link's thread."""
        if len(self._watched) > WATCHED_MAX:  # answers that never came
            self._watched.clear()
        number = next(self._numbers)
        self._watched[number] = heard
        self._machine.why(number, task)

    def _way(self, now: float) -> Reason | None:
        """What is wrong with the way to the broker; None: nothing that is known."""
        connected, silent = self._machine.heard(now)
        where = self._road.address or "the embedded farm"
        left = f"its calls fail after {settings.broker_away_max_s:g} s of silence"
        if not connected:
            text = f"there is no link to the broker at {where}, for {silent:.1f} s; {left}"
            return Reason("unreached", text)
        if silent > SILENT_BEATS * settings.beat_interval_s:
            return Reason("silent", f"the broker at {where} is silent for {silent:.1f} s; {left}")
        return None

    def answered(self, said: Said) -> None:
        """The broker says why; in the link's thread."""
        question = self._open.pop(said.number, None)
        watched = self._watched.pop(said.number, None)
        if watched is not None:
            watched(said.code)
        elif question is not None:
            question.reason = Reason(said.code, said.text)
            question.over.set()
        elif not said.number and said.text not in self._warned and len(self._warned) < WARNINGS_MAX:
            self._warned.add(said.text)
            log.warning("%s", said.text)

    def end(self) -> None:
        """The link has ended: nobody will answer."""
        for question in (*self._open.values(), *self._looks):
            question.over.set()
