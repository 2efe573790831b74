"""The way from a task to the farm that it runs on, through its child and worker; it knows no socket of
ZeroMQ."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from zfarm.edge import wire
from zfarm.errors import FarmBroken
from zfarm.messages import Dial, HangUp, Message, Payload, Welcome

if TYPE_CHECKING:
    from zfarm.edge.inside import Inside
    from zfarm.link import Link

__all__ = ["TunnelRoad"]


class TunnelRoad:
    """From a task to the farm that it runs on, through its child and worker."""

    def __init__(self, inside: Inside) -> None:
        self.address = "the farm of this task"
        self.remote = False  # what nested calls print goes where its worker has it go
        self.waits: Callable[[], AbstractContextManager[object]] | None = inside.waits
        self._tunnel = inside.tunnel
        self._release = inside.release
        self._link: Link | None = None

    def open(self, link: Link) -> None:
        """Listen to the tunnel."""
        self._link = link
        link.loop.add_source(self._tunnel, self._receive, self._flush)

    def send(self, message: Message, payload: Payload) -> None:
        """Give this to the broker."""
        if self._link is None:
            return
        try:
            sent = self._tunnel.send(wire.encode(message, payload))
        except OSError as error:
            self._cut(error)
        else:
            self._link.loop.watch(self._tunnel, writable=not sent)

    def subscribe(self, welcome: Welcome) -> None:
        """A child owns no socket of ZeroMQ: items come through the tunnel."""

    def dial(self, action: Dial | HangUp) -> None:
        """A child dials nobody."""

    def tell_notes(self, notes: bytes) -> None:
        """Tell our worker of results that are not needed any more."""
        self._release(notes)

    def outcome_arrived(self) -> None:
        """The farm does its work."""

    def is_settled(self) -> bool:
        """The farm goes on without us."""
        return True

    def close(self) -> None:
        """Leave the tunnel to the child."""
        if self._link is not None:
            self._link.loop.remove_source(self._tunnel)
            self._link = None

    def disown(self) -> None:
        """In a forked process: the child has closed its tunnel there."""

    def _receive(self) -> None:
        link = self._link
        assert link is not None
        try:
            messages = self._tunnel.receive()
            if messages is None:
                raise ConnectionResetError("the worker has closed it")
        except OSError as error:
            self._cut(error)
            return
        for frames in messages:
            link.receive(*wire.to_client.decode(frames))

    def _flush(self) -> None:
        assert self._link is not None
        try:
            if self._tunnel.flush():
                self._link.loop.watch(self._tunnel, writable=False)
        except OSError as error:
            self._cut(error)

    def _cut(self, error: OSError) -> None:
        link = self._link
        if link is not None:
            self.close()
            link.fail(FarmBroken(f"the way from this task to its farm is cut: {error}"))
