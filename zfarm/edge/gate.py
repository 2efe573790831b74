"""Who gets in at a running broker: its keys file as it is now, the doorkeeper, and the canary; no message.

The file is looked at twice a second, and whenever a key comes that is not known: whoever was let in may dial
at once. It is taken over as a whole; one that cannot be read changes nothing. The canary knocks each minute
with a random key at every port, and with every role's at ports of its own, in a thread of its own.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from zfarm.edge.loop import Loop
from zfarm.edge.places import lock_of
from zfarm.edge.security import ServerKeys
from zfarm.edge.sockets import Context
from zfarm.edge.zap import Doorkeeper, NoAnswer, table_of
from zfarm.errors import ConfigurationError
from zfarm.settings import settings

__all__ = ["Gate", "Unsafe"]

LOOK_S: Final = 0.5
"""How often the keys file is looked at: what was revoked is out within a second."""
ALIVE_S: Final = 1.0
STUCK_LOOKS: Final = 5
"""Looks in a row that find the doorkeeper where it was. It is not a time: a process that was stopped, or its
whole host, goes on with all threads at once, and some are sooner."""
UNANSWERED_MAX: Final = 4
"""Canaries in a row without an answer: with fewer the host was busy, or was stopped meanwhile."""

log: Final = logging.getLogger("zfarm.security")


class Unsafe(RuntimeError):
    """Nobody can tell any more who gets in: a broker must not go on."""


class Gate:
    """The doorkeeper of one broker, and its keys file."""

    def __init__(self, context: Context, path: Path) -> None:
        """Read the keys in ``path``, or make them, and start to answer for the sockets of ``context``.

        Raises:
            ConfigurationError: the file or its directory is not private, not ours, or not readable.
            Unsafe: the doorkeeper does not do what it must.
        """
        self.path = path
        with lock_of(path):
            self.keys = ServerKeys.load_or_create(path)
        self._told = self.keys
        self._reading = threading.Lock()  # the loop and the door both read
        self._follow_soon: Callable[[], None] = lambda: None
        self._stamp = self._look()
        self._canary: threading.Thread | None = None
        self._closed = False
        self._ports: Mapping[str, int] = {}
        self._unanswered = 0
        self._round = self._same = 0  # what the doorkeeper was at, and for how many looks
        table = table_of(self.keys.roles, self.keys.principals)
        self.door = Doorkeeper(context, table, on_unknown=self._read)
        try:
            self.door.start()
            self.door.self_test(self.keys)
        except RuntimeError as error:
            self.door.stop()
            raise Unsafe(str(error)) from error

    def guard(self, ports: Mapping[str, int]) -> None:
        """See that no stranger gets in at these ports of the broker, now and whenever the canary knocks; they
        are addresses with the kind of socket that comes there.

        Raises:
            Unsafe: one does.
        """
        self._ports = ports
        try:
            self.door.check_ports(ports, self.keys.server.public)
        except RuntimeError as error:
            raise Unsafe(str(error)) from error

    def watch(self, loop: Loop, on_keys: Callable[[ServerKeys], None]) -> None:
        """Follow the keys file in the turns of ``loop``; ``on_keys`` hears of each change, after the door.

        The loop's ``run`` raises Unsafe when the doorkeeper has stopped or a canary got in.
        """
        self._follow_soon = lambda: loop.call_soon(lambda: self._follow(on_keys))
        loop.add_timer(lambda: self._follow(on_keys), LOOK_S)
        loop.add_timer(self._check_alive, ALIVE_S)
        loop.add_timer(lambda: self._send_canary(loop), settings.canary_interval_s)

    def close(self) -> None:
        """Stop the doorkeeper: after this nobody gets in. Harmless when done before."""
        self._closed = True
        if self._canary is not None:
            self._canary.join()
        self.door.stop()

    # ------------------------------------------------------------ the keys file

    def _look(self) -> tuple[int, int, int]:
        try:
            status = os.lstat(self.path)
        except OSError:
            return (0, 0, 0)
        return (status.st_ino, status.st_ctime_ns, status.st_size)

    def _follow(self, on_keys: Callable[[ServerKeys], None]) -> None:
        self._read()
        if self.keys is not self._told:
            self._told = self.keys
            on_keys(self._told)

    def _read(self) -> None:
        """Let the door answer from the file as it is now, if it has changed."""
        with self._reading:
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                keys = ServerKeys.load(self.path)
            except ConfigurationError as error:
                log.error("the keys stay as they were: %s", error)
                return
            if keys.server != self.keys.server:
                log.error("the keys stay as they were: %s has another broker's keys", self.path)
                return
            self.keys = keys
            self.door.replace(table_of(keys.roles, keys.principals))
            self._follow_soon()  # before the door lets a new key in, so before the loop hears of it

    # ------------------------------------------------------------ the door itself

    def _check_alive(self) -> None:
        self._same = self._same + 1 if self.door.rounds == self._round else 0
        self._round = self.door.rounds
        if not self.door.alive or self._same >= STUCK_LOOKS:
            raise Unsafe("the handler that checks keys has stopped: a broker must not go on without it")

    def _send_canary(self, loop: Loop) -> None:
        if self._canary is not None and self._canary.is_alive():
            return
        self._canary = threading.Thread(target=self._knock, args=(loop,), name="zfarm-canary", daemon=True)
        self._canary.start()

    def _knock(self, loop: Loop) -> None:
        """Knock, and once more if that fails: keys may have changed meanwhile, or the host been busy."""
        text = self._fails() and self._fails()
        if text and not self._closed:
            loop.call_soon(lambda: self._die(text))

    def _fails(self) -> str:
        try:
            self.door.self_test(self.keys)
            self.door.check_ports(self._ports, self.keys.server.public)
        except NoAnswer as error:  # nobody gets in by that
            self._unanswered += 1
            log.warning("%s", error)
            return str(error) if self._unanswered >= UNANSWERED_MAX else ""
        except RuntimeError as error:
            return str(error)
        self._unanswered = 0
        return ""

    @staticmethod
    def _die(text: str) -> None:
        raise Unsafe(f"{text}: a broker must not go on")
