"""The files of the call that runs in this child, on their way to its client; it opens no socket.

A client on this host is handed a copy of a large file, and no byte travels; to others it goes in chunks.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
import threading
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from zfarm.edge.handover import HANDED_FROM_BYTES, snapshot, take_back
from zfarm.edge.leases import is_at_rest
from zfarm.edge.names import Names
from zfarm.edge.parcels import (
    Head,
    digest_of_file,
    directory_item,
    file_items,
    handed_item,
    head_of,
    open_regular,
    refusal_item,
    tail_item,
)
from zfarm.edge.scratch import Scratch
from zfarm.errors import TransferError

if TYPE_CHECKING:
    from zfarm.edge.inside import Inside

__all__ = ["Outbox", "outbox_of"]

HANDED_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Bytes that lie ready for a client on this host, before the next file waits for it."""
HANDED_WAIT_S: Final = 2.0
"""How long they lie without any being taken, before they are sent instead."""
HANDED_SLOW_S: Final = 20.0
"""The same once some were taken: the client is here, and its disk is slow."""
HANDED_MAX: Final = 8192
"""Files that lie ready, before the next one waits for its client."""
FEW: Final = 64
"""Small files of one directory that are sent, before the others are handed over."""


class Outbox:
    """The files of the call that runs in this child."""

    def __init__(self, inside: Inside, seq: int) -> None:
        self.seq = seq
        self.lock = threading.Lock()
        self.names = Names()
        self.directory: Scratch | None = None
        self._inside = inside
        self._ready: Scratch | None = None
        self._laid = 0
        self._waiting: dict[int, Head] = {}  # laid ready and not taken, by number
        self._waiting_bytes = 0
        self._small = 0  # files of the output directory
        inside.endings.append(self.finish)

    def send(self, path: str | os.PathLike[str], name: str, dir_fd: int | None = None) -> None:
        """Send one file; an error of the file system's is told to the client, and raised."""
        with self.lock:
            fd = open_regular(path, follow=dir_fd is None, dir_fd=dir_fd)
            try:
                self.names.add(name)
                self._send(fd, name)
            finally:
                os.close(fd)

    def _send(self, fd: int, name: str, move: Callable[[int, Head], bool] | None = None) -> None:
        """Send what is in an open file. ``move`` hands over the file itself, or cannot."""
        try:
            head = head_of(fd, name)
            if move is not None and move(fd, head):
                return
            if head.size < HANDED_FROM_BYTES or not self._is_near():
                self._send_items(fd, head)
            else:
                self._hand_over(fd, head)
        except BaseException as error:  # KeyboardInterrupt too: what was begun must not stay open
            refused = isinstance(error, TransferError)
            if move is None or not refused:  # else who calls this tells it
                why = str(error) if refused else f"{name!r} was not sent to its end: {error!r}"
                self.emit(refusal_item(name, why))
            raise

    def emit(self, item: Any) -> None:
        self._inside.filer.emit(self.seq, item)

    def finish(self) -> None:
        """At the end of the call: send what is in its output directory, wait until all was taken, and
        clean up."""
        try:
            if self.directory is not None:
                self._send_tree(self.directory.path)
            self._wait_taken(0)
        finally:
            for scratch in (self.directory, self._ready):
                if scratch is not None:  # a large tree takes its time, and nobody has to wait for that
                    threading.Thread(target=scratch.remove, name="zfarm-remove", daemon=True).start()

    # ------------------------------------------------------------ to a client on this host

    def _is_near(self) -> bool:
        """Whether the client may be on this host: its name says so, and no file has been left lying."""
        setup = self._inside.setup
        return setup is not None and setup.host == platform.node() and setup.realm not in _far

    def _hand_over(self, fd: int, head: Head) -> None:
        """Lay a copy of this file ready, and tell its client."""
        self._wait_taken(HANDED_BYTES_MAX)
        number, scratch = self._next()
        failed: list[OSError] = []

        def lay() -> None:
            try:
                snapshot(fd, str(scratch.path / str(number)), head.size)
            except OSError as error:
                failed.append(error)
            else:
                self._lay(number, scratch, head)

        copying = threading.Thread(target=lay, name="zfarm-snapshot")
        copying.start()  # while it is read for its digest
        try:
            digest = digest_of_file(fd, head.size, head.name)
        finally:
            copying.join()
        if not failed:
            self.emit(tail_item(digest))
            return
        self._send_items(fd, head)  # there may be no room for a copy

    def _next(self) -> tuple[int, Scratch]:
        """The number of the next file that is laid ready, and where."""
        if self._ready is None:
            self._ready = Scratch()
        self._laid += 1
        return self._laid, self._ready

    def _lay(self, number: int, scratch: Scratch, head: Head) -> None:
        self._waiting[number] = head
        self._waiting_bytes += head.size
        self.emit(handed_item(head, scratch.path.name, number))

    def _wait_taken(self, most_bytes: int, most: int = 1 << 62) -> None:
        """Wait until no more than this lies ready. What nobody comes for is sent in chunks."""
        if self._ready is None:
            return
        realm = self._inside.setup.realm if self._inside.setup is not None else ""
        pause, since = 0.0002, monotonic()
        while self._waiting and (self._waiting_bytes > most_bytes or len(self._waiting) > most):
            if self._see_taken(self._ready):
                _near.add(realm)
                pause, since = 0.0002, monotonic()
            elif monotonic() < since + (HANDED_SLOW_S if realm in _near else HANDED_WAIT_S):
                sleep(pause)
                pause = min(pause * 2, 0.01)
            else:
                self._take_back(self._ready)

    def _see_taken(self, scratch: Scratch) -> bool:
        """Forget what was taken, which goes in turn; whether there was some."""
        taken = 0
        for number in self._waiting:
            if os.path.lexists(scratch.path / str(number)):
                break
            taken += 1
        for number in list(islice(self._waiting, taken)):
            self._waiting_bytes -= self._waiting.pop(number).size
        return taken > 0

    def _take_back(self, scratch: Scratch) -> None:
        """The client is too far after all, or too slow."""
        setup = self._inside.setup
        if setup is not None:
            _far.add(setup.realm)
        directory = os.open(scratch.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for number, head in self._waiting.items():
                fd = take_back(directory, number)
                if fd is not None:
                    try:
                        self._try(head.name, partial(self._send_items, fd, head))
                    finally:
                        os.close(fd)
        finally:
            os.close(directory)
        self._waiting.clear()
        self._waiting_bytes = 0

    def _send_items(self, fd: int, head: Head) -> None:
        for item in file_items(fd, head):
            self.emit(item)

    # ------------------------------------------------------------ the output directory

    def _send_tree(self, top: Path) -> None:
        try:
            self._walk(top)
        except FileNotFoundError:  # the call has removed it: it does not want anything to be sent
            return
        except OSError as error:
            self._unreadable(error)

    def _walk(self, top: Path) -> None:
        if os.path.islink(top):
            raise NotADirectoryError(errno.ENOTDIR, "it was replaced by a symbolic link", os.fspath(top))
        for at, directories, files, fd in os.fwalk(top, onerror=self._unreadable):
            folder = os.path.relpath(at, top)
            directories.sort()
            send = partial(self._send_folder, folder, os.fstat(fd).st_mode)
            if folder != os.curdir and not self._try(folder, send, "; what is in it is not sent either"):
                directories.clear()  # no name in it can be better
                continue
            for base in sorted(files):
                name = base if folder == os.curdir else f"{folder}/{base}"
                self._try(name, partial(self._give, base, name, fd))
            for base in directories:
                if os.path.islink(os.path.join(at, base)):
                    name = base if folder == os.curdir else f"{folder}/{base}"
                    self.emit(refusal_item(name, f"cannot send {name!r}: it is a symbolic link"))

    def _give(self, base: str, name: str, folder: int) -> None:
        """Send a file that nobody here needs any more."""
        with self.lock:
            fd = open_regular(base, follow=False, dir_fd=folder)
            try:
                self.names.add(name)
                self._send(fd, name, partial(self._move, base, folder))
            finally:
                os.close(fd)

    def _move(self, base: str, folder: int, fd: int, head: Head) -> bool:
        """Hand over this very file, for its client to take; False: it has to be sent, or copied."""
        if head.size < HANDED_FROM_BYTES:
            self._small += 1
            if self._small <= FEW:
                return False
        if not self._is_near():
            return False
        self._wait_taken(HANDED_BYTES_MAX, HANDED_MAX)
        number, scratch = self._next()
        path = f"{scratch.path}/{number}"
        try:
            os.rename(base, path, src_dir_fd=folder)
        except OSError:
            return False
        status = os.fstat(fd)
        if not os.path.samestat(status, os.lstat(path)):
            raise TransferError(f"{head.name!r} was replaced while it was sent")
        if status.st_nlink > 1 or status.st_uid != os.geteuid() or not is_at_rest(fd):
            return False  # others may still write to it
        if ~head.mode & _OURS:  # who takes it opens it, and knows its mode
            os.fchmod(fd, _OURS)
        self._lay(number, scratch, head)
        self.emit(tail_item(digest_of_file(fd, head.size, head.name)))
        return True

    def _send_folder(self, name: str, mode: int) -> None:
        self.names.add(name, directory=True)
        self.emit(directory_item(name, mode))

    def _try(self, name: str, send: Callable[[], None], more: str = "") -> bool:
        """The others come home even if this one cannot; whether it could."""
        try:
            send()
        except TransferError as error:
            self.emit(refusal_item(name, f"{error}{more}"))
            return False
        return True

    def _unreadable(self, error: OSError) -> None:
        name = os.fsdecode(error.filename or "")
        self.emit(refusal_item(name, f"cannot send the directory {name!r}: {error.strerror}"))


_OURS: Final = stat.S_IRUSR | stat.S_IWUSR
_outbox: Outbox | None = None
_far: set[str] = set()
"""Realms whose client does not find what is laid ready for it."""
_near: set[str] = set()
"""Realms whose client has taken some of that."""


def outbox_of(inside: Inside, what: str) -> Outbox:
    """The files of the running call, for ``what`` was called. Raises RuntimeError: it is one of a map."""
    global _outbox
    if inside.batch:
        raise RuntimeError(f"{what} speaks to a future, and the calls of a map have none: submit() the call")
    seq = inside.seq
    if _outbox is None or _outbox.seq != seq or _outbox._inside is not inside:
        _outbox = Outbox(inside, seq)
    return _outbox
