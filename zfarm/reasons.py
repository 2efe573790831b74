"""What a client asks its broker: why a call waits, and who the workers are; what it knows itself it tells.

Asking never takes longer than WHY_WAIT_S: a broker that does not answer is a reason, too.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.core.client import Client
    from zfarm.messages import Picture
    from zfarm.messages import Reason as Said
    from zfarm.parties import Road

__all__ = ["LOOK_WAIT_S", "WHY_WAIT_S", "Questions", "Reason"]

log = logging.getLogger("zfarm")

WHY_WAIT_S: Final = 3.0
"""How long a question waits for the broker's answer."""
LOOK_WAIT_S: Final = 10.0
"""How long a look at the farm waits: a program that boots its farm may look at once."""
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
    ``backoff``, ``exclusive``, ``restart``, ``in-doubt``, ``journal`` (it waits at the broker);
    ``unwritten`` (it has ended, and the disk of the journal is full).
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


class _Glance:
    """One who wants to see the farm."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.picture: Picture | None = None


class Questions:
    """What is asked over one link, by any thread, and answered in the link's own."""

    def __init__(self, machine: Client, road: Road) -> None:
        self._machine = machine
        self._road = road
        self._open: dict[int, _Question] = {}
        self._watched: dict[int, Callable[[str], None]] = {}
        self._numbers = itertools.count(1)
        self._warned: set[str] = set()
        self._looks: list[_Glance] = []

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

    def watch(self, task: int, heard: Callable[[str], None]) -> None:
        """Have ``heard`` called with the code of why ``task`` is where it is, if the broker says so; in
        the link's thread."""
        if len(self._watched) > WATCHED_MAX:  # answers that never came
            self._watched.clear()
        number = next(self._numbers)
        self._watched[number] = heard
        self._machine.why(number, task)

    def look(self, call: Callable[[Callable[[], None]], None]) -> Picture | None:
        """The farm as its broker sees it; None: it has not answered within LOOK_WAIT_S."""
        glance, end = _Glance(), monotonic() + LOOK_WAIT_S
        self._looks.append(glance)
        while not glance.over.is_set() and monotonic() < end:  # a question may be lost with its link
            call(self._machine.look)
            glance.over.wait(settings.beat_interval_s)
        if glance in self._looks:
            self._looks.remove(glance)
        return glance.picture

    def looked(self, picture: Picture) -> None:
        """The broker shows the farm; in the link's thread."""
        for glance in list(self._looks):
            glance.picture = picture
            glance.over.set()

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
        for over in [*(one.over for one in self._open.values()), *(one.over for one in self._looks)]:
            over.set()
