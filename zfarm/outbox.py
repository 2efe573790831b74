"""The files of the call that runs in this child, on their way to its client; it opens no socket.

A client on this host is handed a copy of a large file, and no byte travels; to others it goes in chunks.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from zfarm.edge.handover import HANDED_FROM_BYTES, snapshot, take_back
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
        self._waiting: dict[int, tuple[str, int]] = {}  # laid ready and not taken: name and size, by number
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

    def _send(self, fd: int, name: str) -> None:
        try:
            head = head_of(fd, name)
            if head.size < HANDED_FROM_BYTES or not self._is_near():
                for item in file_items(fd, name):
                    self.emit(item)
            else:
                self._hand_over(fd, head)
        except BaseException as error:  # KeyboardInterrupt too: what was begun must not stay open
            self.emit(refusal_item(name, f"{name!r} was not sent to its end: {error!r}"))
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
        if self._ready is None:
            self._ready = Scratch()
        self._laid += 1
        number, scratch = self._laid, self._ready.path
        failed: list[OSError] = []

        def lay() -> None:
            try:
                snapshot(fd, str(scratch / str(number)))
            except OSError as error:
                failed.append(error)
            else:
                self._waiting[number] = (head.name, head.size)
                self.emit(handed_item(head, scratch.name, number))

        copying = threading.Thread(target=lay, name="zfarm-snapshot")
        copying.start()  # while it is read for its digest
        try:
            digest = digest_of_file(fd, head.size, head.name)
        finally:
            copying.join()
        if not failed:
            self.emit(tail_item(digest))
            return
        for item in file_items(fd, head.name):  # there may be no room for a copy
            self.emit(item)

    def _wait_taken(self, most_bytes: int) -> None:
        """Wait until no more than this lies ready. What nobody comes for is sent in chunks."""
        scratch = self._ready
        if scratch is None:
            return
        pause, until = 0.0002, monotonic() + HANDED_WAIT_S
        while sum(size for _, size in self._waiting.values()) > most_bytes:
            taken = [number for number in self._waiting if not os.path.lexists(scratch.path / str(number))]
            for number in taken:
                del self._waiting[number]
            if taken:
                pause, until = 0.0002, monotonic() + HANDED_WAIT_S
            elif monotonic() < until:
                sleep(pause)
                pause = min(pause * 2, 0.01)
            else:
                self._take_back(scratch)

    def _take_back(self, scratch: Scratch) -> None:
        """The client is too far after all, or too slow."""
        setup = self._inside.setup
        if setup is not None:
            _far.add(setup.realm)
        directory = os.open(scratch.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for number, (name, _) in self._waiting.items():
                fd = take_back(directory, number)
                if fd is not None:
                    try:
                        for item in file_items(fd, name):
                            self.emit(item)
                    finally:
                        os.close(fd)
        finally:
            os.close(directory)
        self._waiting.clear()

    # ------------------------------------------------------------ the output directory

    def _send_tree(self, top: Path) -> None:
        for at, directories, files, fd in os.fwalk(top, onerror=self._unreadable):
            folder = os.path.relpath(at, top)
            directories.sort()
            if folder != os.curdir:
                self._try(folder, partial(self._send_folder, folder, os.fstat(fd).st_mode))
            for base in sorted(files):
                name = base if folder == os.curdir else f"{folder}/{base}"
                self._try(name, partial(self.send, base, name, fd))
            for base in directories:
                if os.path.islink(os.path.join(at, base)):
                    name = base if folder == os.curdir else f"{folder}/{base}"
                    self.emit(refusal_item(name, f"cannot send {name!r}: it is a symbolic link"))

    def _send_folder(self, name: str, mode: int) -> None:
        self.names.add(name, directory=True)
        self.emit(directory_item(name, mode))

    def _try(self, name: str, send: Callable[[], None]) -> None:
        """The others come home even if this one cannot."""
        try:
            send()
        except TransferError as error:
            self.emit(refusal_item(name, str(error)))

    def _unreadable(self, error: OSError) -> None:
        name = os.fsdecode(error.filename or "")
        self.emit(refusal_item(name, f"cannot send the directory {name!r}: {error.strerror}"))


_outbox: Outbox | None = None
_far: set[str] = set()
"""Realms whose client does not find what is laid ready for it."""


def outbox_of(inside: Inside, what: str) -> Outbox:
    """The files of the running call, for ``what`` was called. Raises RuntimeError: it is one of a map."""
    global _outbox
    if inside.batch:
        raise RuntimeError(f"{what} speaks to a future, and the calls of a map have none: submit() the call")
    seq = inside.seq
    if _outbox is None or _outbox.seq != seq or _outbox._inside is not inside:
        _outbox = Outbox(inside, seq)
    return _outbox
