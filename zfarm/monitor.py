"""A monitor: the client that only looks. It asks a broker for pictures and follows its notes, in one thread.

What they mean is folded in core/view.py, how they look is the business of the faces.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from zfarm.dialogue import Dialogue
from zfarm.edge import wire
from zfarm.edge.notes import NotesReader
from zfarm.edge.places import list_local_farms
from zfarm.edge.security import MONITOR, Access, Role, connections_directory, load_connection, parse_address
from zfarm.errors import BrokerUnreachable, ConfigurationError
from zfarm.messages import Look, Note, Payload, Picture, Reason, Why
from zfarm.settings import settings

__all__ = ["Heard", "Monitor", "find_farm"]

Heard: TypeAlias = "Callable[[Any], None]"
ASK_AGAIN_S: Final = 1.0


class Monitor(Dialogue):
    """The link of one who watches a farm, driven by its ``loop``; to be closed, or used by ``with``."""

    def __init__(self, find: Callable[[], Access]) -> None:
        """Connect to the farm that ``find`` names; it is asked again by `reopen`.

        Raises:
            ConfigurationError: there is no such farm, or its keys cannot be used.
        """
        self._heard: Heard | None = None
        self._notes: NotesReader | None = None
        super().__init__(find)

    @property
    def title(self) -> str:
        """How to call the farm before people: the program that it is embedded in, else its address."""
        embedded = self._access.keys is None and self._access.name
        return f"{self._access.name} (embedded farm)" if embedded else self.address

    # ------------------------------------------------------------ asking once

    def look(self, timeout_s: float = settings.reach_timeout_s) -> Picture:
        """Ask for a picture and wait for it.

        Raises: as ``why``, with a picture in place of the reason.
        """
        picture = self._question(self.ask, Picture, timeout_s)
        assert isinstance(picture, Picture)
        return picture

    def why(self, task: int, owner: str = "", timeout_s: float = settings.reach_timeout_s) -> Reason:
        """Ask why a task is where it is; ``owner`` names its client, empty: the only one with such a task.

        Raises:
            BrokerUnreachable: there was no answer within ``timeout_s`` seconds.
            AccessDenied: the broker does not know our key, or has another one than we were told.
            ProtocolError: what was answered is nothing that this version understands.
        """
        asked = wire.encode(Why(1, task, owner, True))
        reason = self._question(lambda: self._port.send(asked), Reason, timeout_s)
        assert isinstance(reason, Reason)
        return reason

    def _question(
        self, ask: Callable[[], None], wanted: type[Picture | Reason], timeout_s: float
    ) -> Picture | Reason:
        got: list[Picture | Reason] = []

        def hear(message: Picture | Reason | Note) -> None:
            if isinstance(message, wanted):
                got.append(message)

        before, self._heard = self._heard, hear
        deadline = time.monotonic() + timeout_s
        timer = self.loop.add_timer(ask, ASK_AGAIN_S)
        try:
            ask()
            while not got:
                left = deadline - time.monotonic()
                if self.trouble is not None:
                    raise self.trouble
                if left <= 0:
                    raise BrokerUnreachable(
                        f"no broker answered at {self._access.address} within {timeout_s:g} s; "
                        "is it running, and does this address reach it?"
                    )
                self.loop.turn(left)
        finally:
            timer.cancel()
            self._heard = before
        return got[0]

    # ------------------------------------------------------------ following

    def follow(self, on_heard: Heard) -> None:
        """Call ``on_heard``, in the turns of ``loop``, with each note and with each picture asked for."""
        self._heard = on_heard
        self._subscribe()

    def ask(self) -> None:
        """Ask for a picture; it may never come."""
        self._port.send(wire.encode(Look()))

    def reopen(self) -> None:
        """Look for the farm anew and connect again: it may be back with other keys, or at another place."""
        self.trouble = None
        try:
            self._access = self._find()
        except ConfigurationError as error:
            self.trouble = error  # not back yet: the old place is as good as any
        self._close_port()
        self._open()
        if self._heard is not None:
            self._subscribe()
        self.ask()

    def _subscribe(self) -> None:
        if self._access.notes_address:
            self._notes = NotesReader(self._context, self._access)
            self.loop.add_source(self._notes.socket, self._receive_notes)
            self.loop.add_source(self._notes.link.monitor, self._notes.link.watch_link)
            self.loop.add_flusher(self._notes.link.flush)

    def _hear(self, message: Any, payload: Payload) -> None:
        if isinstance(message, Picture | Reason):
            self.trouble = None
            if self._heard is not None:
                self._heard(message)

    def _receive_notes(self) -> None:
        assert self._notes is not None
        for _, frame in self._notes.receive():
            try:
                note = wire.decode_note(frame)
            except wire.Malformed:
                continue  # a newer broker says more than we know; the gap in the numbers shows
            if self._heard is not None:
                self._heard(note)

    def _close_port(self) -> None:
        super()._close_port()
        if self._notes is not None:
            self.loop.remove_source(self._notes.socket)
            self.loop.remove_source(self._notes.link.monitor)
            self.loop.remove_flusher(self._notes.link.flush)
            self._notes.close()
            self._notes = None


# ---------------------------------------------------------------- which farm is meant


def find_farm(address: str | None = None, connection: Path | None = None, role: Role = MONITOR) -> Access:
    """The farm that a user means, and what a monitor (or another ``role``) needs to reach it.

    Argument, connection file, ZFARM_ADDRESS, ZFARM_CONNECTION_FILE; without any of them the only farm of this
    user on this host, be it embedded in a program or a broker.

    Raises:
        ConfigurationError: there is none or more than one, or its address or keys cannot be used.
    """
    if not address and connection is None:
        address = os.environ.get("ZFARM_ADDRESS", "")
    named = address or connection or os.environ.get("ZFARM_CONNECTION_FILE")
    if named:
        return parse_address(address or "", role, connection or "")
    farms = _farms_here(role)
    if not farms:
        raise ConfigurationError(
            "no farm runs on this host: name one by its address (tcp://HOST:PORT), its connection file "
            "or ZFARM_ADDRESS"
        )
    if len(farms) > 1:
        listed = "\n  ".join(farms)
        raise ConfigurationError(f"several farms run on this host; name one of them:\n  {listed}")
    (access,) = farms.values()
    return access


def _farms_here(role: Role) -> dict[str, Access]:
    """Farms of this user on this host: what to type for them, with a remark -> how to reach them."""
    farms: dict[str, Access] = {}
    for farm in list_local_farms():
        label = f"{farm.address}  (embedded in {farm.program or 'a program'}, process {farm.client_pid})"
        farms[label] = Access(farm.address, farm.notes_address, name=farm.program)
    directory = connections_directory()
    for path in sorted(directory.glob("*.json")) if directory.is_dir() else ():
        broker = load_connection(path)
        if broker.host == socket.gethostname() and _runs(broker.pid):
            farms[f"{path}  (broker, process {broker.pid})"] = broker.access(role)
    return farms


def _runs(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
