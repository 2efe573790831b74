"""What children write to stderr: given on as it comes, and the last of it kept for the day they die.

A child's fd 2 is a pipe, so what C code says before it aborts is caught as well. Its worker never waits for
whoever reads its own stderr: a thread does, and a child that writes faster than that is made to wait, as it
would be without us.
"""

from __future__ import annotations

import os
import queue
import re
import threading
from contextlib import suppress
from typing import Final

__all__ = ["Speaker", "Tail", "clean"]

KEPT_BYTES: Final = 16 * 1024
"""Of one child, before they are cleaned: a traceback of a hundred frames fits."""
READ_BYTES: Final = 64 * 1024
READS_AT_END: Final = 16
"""Of what a dead child has left: more than a pipe holds, and an end where something else goes on writing."""
WAITING_MAX: Final = 1024 * 1024
"""Bytes that wait for the reader of our stderr before children are made to wait."""
CLOSE_WAIT_S: Final = 1.0

_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(data: bytes, characters_max: int) -> str:
    """The last lines of what was written, without colours and what progress bars have written over.

    What does not fit into ``characters_max`` is cut off at the front, with a sign.
    """
    lines = _ESCAPES.sub("", data.decode("utf-8", "replace")).split("\n")
    lines = [_CONTROLS.sub("", line.rstrip().rpartition("\r")[2]).rstrip() for line in lines]
    text = "\n".join(lines).strip("\n")
    if len(text) <= characters_max:
        return text
    text = text[len(text) - characters_max + 6 :]
    return "[...]\n" + (text.partition("\n")[2] or text)


class Speaker:
    """Writes to our own stderr, in a thread that begins with the first word."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._words: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._waiting = 0

    @property
    def behind(self) -> bool:
        """So much waits that nobody should say more."""
        return self._waiting > WAITING_MAX

    def say(self, data: bytes) -> None:
        """Write this when those before are written. Never waits."""
        with self._lock:
            self._waiting += len(data)
        self._words.put(data)
        if self._thread is None:
            self._thread = threading.Thread(target=self._speak, name="zfarm-stderr", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait until all is written, for a moment at most."""
        if self._thread is not None:
            self._words.put(b"")
            self._thread.join(CLOSE_WAIT_S)

    def _speak(self) -> None:
        while data := self._words.get():
            rest = memoryview(data)
            with suppress(OSError):  # nobody reads it (any more)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            with self._lock:
                self._waiting -= len(data)


class Tail:
    """The stderr of one child: the pipe's end to read from, and the last bytes that came out of it."""

    __slots__ = ("_kept", "_speaker", "fd")

    def __init__(self, fd: int, speaker: Speaker) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._kept = bytearray()
        self._speaker = speaker

    def read(self) -> bool:
        """Take what is there; False when nothing is, and nothing will be if the child is dead."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except OSError:  # nothing now
            return False
        if not data:
            return False
        self._speaker.say(data)
        self.note(data)
        return True

    def note(self, data: bytes) -> None:
        """It has written this, by whatever way."""
        self._kept += data
        if len(self._kept) > 2 * KEPT_BYTES:
            del self._kept[:-KEPT_BYTES]

    def forget(self) -> None:
        """What comes now is another call's."""
        if self._kept:
            self._kept.clear()

    def last_words(self, characters_max: int) -> str:
        """The last lines of a child that is dead."""
        for _ in range(READS_AT_END):
            if not self.read():
                break
        return clean(bytes(self._kept[-KEPT_BYTES:]), characters_max)

    def close(self) -> None:
        """Give on what is left, and close the pipe: nobody listens any more to what the child left behind."""
        if self.fd < 0:
            return
        self.last_words(0)
        os.close(self.fd)
        self.fd = -1
