"""Run a broker as a process on TCP: its keys, its gate, its journal and its connection file."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from zfarm.brokershell import BrokerShell, new_epoch, tune_collector
from zfarm.core.machine import NOW
from zfarm.edge.doors import EMITS_ASIDE, ITEMS_ASIDE, NOTES_ASIDE, beside, dialable, plan
from zfarm.edge.gate import Gate, Unsafe
from zfarm.edge.journal import Journal
from zfarm.edge.loop import Loop
from zfarm.edge.pages import keep_freed_memory
from zfarm.edge.places import hold
from zfarm.edge.principals import keys_path, members
from zfarm.edge.security import (
    Connection,
    Role,
    ServerKeys,
    connection_path,
    load_connection,
    new_connection,
    parse_tcp,
    write_connection,
)
from zfarm.edge.sockets import close_context, new_context
from zfarm.errors import ConfigurationError

__all__ = ["main"]

log = logging.getLogger("zfarm.broker")

DEFAULT_BIND = "tcp://127.0.0.1:5555"
EXIT_UNSAFE = 78
LEAVE_S = 0.05
"""How long a broker that was told to stop goes on: a turn, and the way of its last words."""


class _Process:
    """A broker on TCP: keys, door, sockets, connection file."""

    def __init__(
        self,
        binds: Sequence[str],
        doors: Mapping[Role, Sequence[str]],
        notes_bind: str,
        path: Path,
        name: str,
        journal: Path | None,
        files: Path | None,
    ) -> None:
        self._hold_fd = hold(path)
        self.loop = Loop()
        self.path = path
        self._journal: Journal | None = None
        self._context = new_context()
        try:
            addresses = plan(binds, doors, _before(path))
            self._gate = Gate(self._context, keys_path(path))
        except BaseException:
            os.close(self._hold_fd)
            raise
        keys = self._gate.keys
        self._shell: BrokerShell | None = None
        try:
            if journal is not None:
                self._journal = Journal(journal)
            epoch = new_epoch() if self._journal is None else self._journal.epoch()
            notes_bind = notes_bind or beside(binds[0], NOTES_ASIDE, addresses)
            emits, items = (beside(binds[0], aside, addresses) for aside in (EMITS_ASIDE, ITEMS_ASIDE))
            shell = BrokerShell(
                self.loop, self._context, addresses, notes_bind, epoch, keys.server, self._journal,
                (emits, items), members(keys),
            )  # fmt: skip
            self._shell = shell
            if files is not None:
                shell.keep_files(files)
            self._gate.guard(shell.bound)
            shell.denied = lambda: (self._gate.door.denied, self._gate.door.throttled)
            bound = {role: map(dialable, where) for role, where in shell.doors.addresses.items()}
            _, notes_port = parse_tcp(shell.notes.address)
            self.connection = replace(new_connection(name, bound, notes_port, keys), path=str(path))
            write_connection(path, self.connection)
        except BaseException:
            self.close()
            raise
        self._gate.watch(self.loop, self._keys_changed)

    def _keys_changed(self, keys: ServerKeys) -> None:
        """Disconnect whose key is known no more, and tell the file's readers of new keys of the roles."""
        assert self._shell is not None, "the gate is watched once there is a shell"
        ended = self._shell.expel(members(keys))
        log.info("the keys have changed: %d principals, %d connections ended", len(keys.principals), ended)
        roles = {role: keys.roles[role] for role in self.connection.keys}
        if roles != self.connection.keys:
            self.connection = replace(self.connection, keys=roles)
            write_connection(self.path, self.connection)

    def leave(self) -> None:
        """End soon. Workers are thanked before for what was taken from them: one that is stopped in the same
        moment would wait for that, and for a broker."""
        assert self._shell is not None, "it runs"
        machine = self._shell.machine
        for worker in machine.workers.values():
            if worker.thanks:
                worker.thank_now = True
                machine.touch(worker)
        machine.deadline = NOW
        self.loop.call_later(self.loop.stop, LEAVE_S)

    def close(self) -> None:
        """Close the sockets first and the door last, so that nobody gets in unchecked."""
        if self._shell is not None:
            self._shell.close()
        self._gate.close()
        close_context(self._context)
        if self._journal is not None:
            self._journal.close()
        self.loop.close()
        os.close(self._hold_fd)


def allow_files() -> None:
    """Allow this process as many open files as it may have: each peer needs one."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS says unlimited, and means less
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _before(path: Path) -> Connection | None:
    """What this broker wrote when it was started last; None if nothing that can be read."""
    if not os.path.lexists(path):
        return None
    try:
        return load_connection(path)
    except ConfigurationError as error:
        log.warning("the doors may be elsewhere than before: %s", error)
        return None


def main(
    binds: Sequence[str],
    connection: Path | None = None,
    name: str | None = None,
    notes_bind: str = "",
    announce: Callable[[Connection], None] = lambda connection: None,
    journal: str = "",
    files: str = "",
    doors: Mapping[Role, Sequence[str]] | None = None,
) -> int:
    """Run a broker until SIGTERM or SIGINT, and return the exit code.

    Clients come to the addresses ``binds``, other roles to those of ``doors``, or by default beside them.

    Its connection file is written to ``connection``, or to the default place of the farm called ``name``;
    ``announce`` is called with what is in it once the broker listens. ``journal`` is the path of the journal
    (default: beside the connection file), or "none"; so is ``files``, of the directory of what is kept by
    name.

    Raises:
        ConfigurationError: an address, file or directory cannot be used.
    """
    binds = list(binds) or [DEFAULT_BIND]
    doors = doors or {}
    named = [address for where in doors.values() for address in where]
    for address in [*binds, *named, *([notes_bind] if notes_bind else [])]:
        parse_tcp(address)
    name = name or "default"
    path = connection or connection_path(name)
    archive = None if files == "none" else Path(files) if files else path.with_suffix(".files")
    kept = None if journal == "none" else Path(journal) if journal else path.with_suffix(".journal")
    try:
        process = _Process(binds, doors, notes_bind, path, name, kept, archive)
    except Unsafe as error:
        log.critical("%s", error)
        return EXIT_UNSAFE
    loop = process.loop
    allow_files()
    keep_freed_memory()
    try:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.on_signal(signum, process.leave)
        announce(process.connection)
        tune_collector()
        loop.run()
    except Unsafe as error:
        log.critical("%s", error)
        return EXIT_UNSAFE
    finally:
        process.close()
    return 0
