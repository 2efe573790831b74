"""What tasks print and log, at their client: shown with the name of the task, or said again; its tail kept.

Showing happens in a thread of its own: a terminal that is stopped, or a pipe that nobody reads, must not keep
outcomes from coming home. What waits for it is bounded; what is too much is dropped, and said.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from zfarm.edge.taps import RECORDS
from zfarm.edge.told import as_text
from zfarm.futures import Future
from zfarm.retelling import Retelling
from zfarm.settings import settings
from zfarm.terms import FORWARD

if TYPE_CHECKING:
    from zfarm.messages import Heard

__all__ = ["Outputs", "Tail"]

log = logging.getLogger("zfarm")
STDERR: Final = 2
WAITING_MAX: Final = 4 * 1024 * 1024
"""Characters that wait to be shown."""
CLOSE_S: Final = 2.0
"""How long the end of an executor waits for them."""


class Tail:
    """The last of what one call has printed."""

    def __init__(self) -> None:
        self._parts: deque[bytes] = deque()
        self._bytes = 0

    def add(self, blob: bytes) -> None:
        """It has printed this."""
        self._parts.append(blob)
        self._bytes += len(blob)
        while self._bytes - len(self._parts[0]) >= settings.output_tail_bytes:
            self._bytes -= len(self._parts.popleft())

    def text(self) -> str:
        """As text; what is not UTF-8 is escaped."""
        return b"".join(self._parts)[-settings.output_tail_bytes :].decode("utf-8", "backslashreplace")


class Outputs:
    """The output of all tasks of one client."""

    def __init__(self) -> None:
        self._retelling = Retelling()
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._size = 0
        self._dropped = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def heard(self, action: Heard, default: str) -> None:
        """A task has printed something: keep it, and show it if that is wanted."""
        token, said = action.token, action.printed
        blob = bytes(action.blob)
        if said.source == RECORDS:
            self._heard_records(action, blob, default)
            return
        if said.dropped:
            blob = b"[zfarm: %d bytes of output dropped: too much at once]\n" % said.dropped + blob
        _keep(token, said.source == STDERR, blob)
        if _shown(token, default):
            text = tagged(action.name, said.number, said.host, blob)
            self._show(len(text), lambda: _write(sys.stderr if said.source == STDERR else sys.stdout, text))

    def _heard_records(self, action: Heard, blob: bytes, default: str) -> None:
        token, said = action.token, action.printed
        _keep(token, True, as_text(blob))
        if not _shown(token, default):
            return
        about = (action.name, said.number, said.host)
        if said.dropped:
            self._show(0, lambda: self._retelling.dropped(said.dropped, *about))
        self._show(len(blob), lambda: self._retelling.tell(blob, *about))

    def close(self) -> None:
        """Show what waits, within bounds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end = monotonic() + CLOSE_S
        with self._changed:
            while self._waiting and self._thread is not None and monotonic() < end:
                self._changed.wait(end - monotonic())

    def _show(self, size: int, show: Callable[[], None]) -> None:
        """Let the thread do ``show`` with so many characters."""
        with self._changed:
            if self._size + size > WAITING_MAX:
                self._dropped += size
                return
            if self._dropped:
                notice = f"[zfarm: {self._dropped} characters not shown: nobody took them]\n"
                self._waiting.append((0, lambda: _write(sys.stderr, notice)))
                self._dropped = 0
            self._waiting.append((size, show))
            self._size += size
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="zfarm-output", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closing:
                        return
                    self._changed.wait()
                size, show = self._waiting[0]
            try:
                show()
            except Exception:  # a stream, handler or filter of the user's: the others are to be heard
                log.exception("what a task has said could not be shown")
            with self._changed:
                self._waiting.popleft()
                self._size -= size
                self._changed.notify_all()


def _keep(token: Any, error: bool, blob: bytes) -> None:
    if isinstance(token, Future):
        if token._tails is None:
            token._tails = (Tail(), Tail())
        token._tails[error].add(blob)


def _shown(token: Any, default: str) -> bool:
    terms = token._terms if isinstance(token, Future) else token.owner.terms
    return ((terms and terms.output) or default or FORWARD) == FORWARD


def _write(stream: Any, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        _write(stream, text.encode(encoding, "backslashreplace").decode(encoding))
    except (AttributeError, ValueError, OSError):
        return  # there is no such stream, or nobody reads it any more


def tagged(name: str, number: int, host: str, blob: bytes) -> str:
    """Lines with the name of the call, the number of its task, and where it ran."""
    tag = f"[{name} #{number} {host}] " if host else f"[{name} #{number}] "
    text = blob.decode("utf-8", "backslashreplace")
    return "".join(f"{tag}{line}\n" for line in text.removesuffix("\n").split("\n"))
