"""What logging and warnings say in a child, as lines of JSON that travel to its client; no object does.

A record is on its way before any handler in the child sees it, and what those then write to the standard
streams is dropped: it has been said. What cannot be text becomes its repr.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Final

from zfarm.edge.attention import Obedience, name_of_category
from zfarm.edge.capture import MARK, Capture
from zfarm.edge.outcomes import cut
from zfarm.edge.told import Logged, Warned, encode
from zfarm.messages import Attention

__all__ = ["Records"]

TEXT_MAX: Final = 4000
"""Characters of a message, of a traceback and of a stack."""
EXTRAS_MAX: Final = 20
EXTRA_MAX: Final = 100
LINE_MAX: Final = 15 * 1024
"""Bytes of a line; longer ones would be cut on their way."""
FRAMES_MAX: Final = 20
INT_MAX: Final = 2**63


_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Records:
    """What this child says by logging and warnings."""

    installed: ClassVar[Records | None] = None

    def __init__(self, fd: int, capture: Capture) -> None:
        """``fd`` is a pipe to the worker."""
        self._fd = fd
        self._capture = capture
        self._obedience: Obedience | None = None
        self._lock = threading.Lock()
        self._handle: Callable[[logging.Logger, logging.LogRecord], None] = logging.Logger.callHandlers
        self._show: Callable[..., None] = warnings.showwarning

    def obey(self, attention: Attention | None) -> None:
        """The client of the calls that come wants to hear this; None: nothing."""
        if self._obedience is None and attention is None:
            return
        if self._obedience is None:
            self._obedience = Obedience()
        self._obedience.obey(attention)

    def install(self) -> None:
        """Listen from now on. Handlers that write to the standard streams of before get those of now."""
        if Records.installed is not None:
            return
        Records.installed = self

        def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
            self._logged(logger, record)

        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign, assignment]
        warnings.showwarning = self._warned
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()

    def _logged(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        obedience = self._obedience
        wanted = obedience is None or obedience.wants(record.name, record.levelno)
        if not (self._capture.marked and wanted and self._say(_line_of(record))):
            self._handle(logger, record)
        else:
            self._capture.muted.call(self._handle, logger, record)

    def _warned(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if file is None and self._capture.marked:
            said = Warned(
                _plain(message),
                name_of_category(category),
                _plain(filename),
                lineno,
                _module(filename, lineno),
            )
            if self._say(encode(said)):
                return
        self._show(message, category, filename, lineno, file, line)

    def _say(self, line: bytes) -> bool:
        """False: it cannot travel."""
        if len(line) > LINE_MAX:
            return False
        data = memoryview(MARK % self._capture.running() + line + b"\n")
        self._capture.printed = True
        try:
            with self._lock:
                while data:
                    data = data[os.write(self._fd, data) :]
        except OSError:
            return False  # the worker is gone: who is left to hear it reads standard error
        return True


def _line_of(record: logging.LogRecord) -> bytes:
    said = Logged(
        _plain(record.name)[:500],
        record.levelno,
        _plain(record.levelname)[:100],
        _message(record),
        record.created,
        _plain(record.pathname)[:1000],
        record.lineno,
        _plain(record.funcName or "")[:200],
        record.process or 0,
        _plain(record.processName or "")[:100],
        _plain(record.threadName or "")[:100],
        _traceback(record),
        _plain(record.stack_info or ""),
        _extra(record),
    )
    line = encode(said)
    if len(line) > LINE_MAX:  # of characters that take many bytes
        said.extra, said.stack = {}, ""
        said.message, said.traceback = cut(said.message, TEXT_MAX // 4), cut(said.traceback, TEXT_MAX // 4)
        line = encode(said)
    return line


def _message(record: logging.LogRecord) -> str:
    try:
        return _plain(record.getMessage())
    except Exception as error:  # arguments that do not fit, or whose __str__ raises
        return f"{_plain(record.msg)} (its arguments cannot be shown: {type(error).__name__})"


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_text:
        return _plain(record.exc_text)
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    try:
        return _plain("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
    except Exception as error:  # its __str__ may raise anything
        return f"{record.exc_info[0].__name__} (its traceback cannot be shown: {type(error).__name__})"


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What the program has added, as far as it is plain."""
    names = [name for name in vars(record) if name not in _OWN and isinstance(name, str)]
    found: dict[str, Any] = {}
    for name in names[:EXTRAS_MAX]:
        value = vars(record)[name]
        plain = type(value) in (float, bool, type(None)) or (type(value) is int and abs(value) < INT_MAX)
        found[_plain(name)[:EXTRA_MAX]] = value if plain else _plain(value)[:EXTRA_MAX]
    return found


def _plain(value: object) -> str:
    """Text that can travel."""
    try:
        text = str(value)
    except Exception as error:  # whatever it is
        text = f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
    return cut(text, TEXT_MAX).encode("utf-8", "backslashreplace").decode()


def _module(filename: str, lineno: int) -> str:
    """The name of the module that has warned, which filters may ask for."""
    frame = sys._getframe(2)
    for _ in range(FRAMES_MAX):
        if frame.f_code.co_filename == filename and frame.f_lineno == lineno:
            return _plain(frame.f_globals.get("__name__", ""))
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""
