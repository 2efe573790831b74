"""What a link deals with, as protocols: tokens that wait for outcomes, feeders that submit more, roads to a
broker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from zfarm.messages import Dial, HangUp, Message, Outcome, Payload, Welcome

if TYPE_CHECKING:
    from zfarm.link import Link

__all__ = ["Feeder", "Road", "Token"]


class Token(Protocol):
    """What waits for the outcome of a task and is no Future."""

    _task: int
    _accepted: bool

    @property
    def _force(self) -> bool:
        """Whether cancelling stops it even if it runs."""

    def _resolve(self, outcome: Outcome, blob: Any) -> None:
        """The task has ended."""

    def _fail(self, error: BaseException) -> None:
        """The task has no outcome and never will."""

    def _abandon(self) -> None:
        """The farm is given up: become cancelled even if the task runs."""


class Feeder(Protocol):
    """What has more to submit as its batches end: a map."""

    def feed(self) -> None:
        """Submit more, if there is more and room for it."""

    def forget(self, error: BaseException | None) -> None:
        """Submit no more: what is left was cancelled (None), or fails with ``error``."""


class Road(Protocol):
    """How messages get to the broker: over a socket, to a farm of our own, or through a child's tunnel."""

    address: str
    waits: Callable[[], AbstractContextManager[object]] | None
    remote: bool
    """The farm is there without us: what its tasks print goes elsewhere."""

    def open(self, link: Link) -> None:
        """Start; messages go to ``link.receive``, what is beyond repair to ``link.fail``."""

    def send(self, message: Message, payload: Payload) -> None:
        """Give this to the broker, or drop it while the way is cut: the machines repair that."""

    def subscribe(self, welcome: Welcome) -> None:
        """Items of streams are wanted: get them as the broker's ``welcome`` says, if that is possible."""

    def dial(self, action: Dial | HangUp) -> None:
        """A stream is to be had straight from its worker, or no more. Asked only where a key was shown."""

    def tell_notes(self, notes: bytes) -> None:
        """Tell whoever lends shared memory for results of those that are not needed any more."""

    def outcome_arrived(self) -> None:
        """The farm at the other end does its work."""

    def is_settled(self) -> bool:
        """Whether nothing keeps us from leaving. If something does: ``link.leave_when_done`` is called
        later."""

    def close(self) -> None:
        """Deliver what was sent, within bounds, and give everything back."""

    def disown(self) -> None:
        """In a forked process: hold nothing open that is the parent's."""
