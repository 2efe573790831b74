"""Log records and warnings of tasks, said again in the client, through its own handlers and filters.

They came as text: nothing is unpickled, nothing is imported for them, and a category that is not here is a
UserWarning.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, Final

from zfarm.edge.attention import category_named
from zfarm.edge.told import Logged, Warned, decode

__all__ = ["Retelling"]

log = logging.getLogger("zfarm")
LOGGERS_MAX: Final = 1000
"""Loggers that are made here because tasks have used their names; more are said by the one above them."""
PLACES_MAX: Final = 1000
"""Files of which we remember what they have warned of."""


class Retelling:
    """What the tasks of one client log and warn of."""

    def __init__(self) -> None:
        self._made: set[str] = set()
        self._registries: dict[tuple[str, str], dict[Any, Any]] = {}

    def tell(self, lines: bytes, call: str, task: int, host: str) -> None:
        """Say them. ``call`` is the name of the function, and ``task`` ran on ``host``."""
        about = {"zfarm_call": call, "zfarm_task": task, "zfarm_host": host}
        for line in lines.split(b"\n"):
            said = decode(line) if line else None
            if isinstance(said, Logged):
                self._log(said, about)
            elif isinstance(said, Warned):
                self._warn(said)
            elif line:
                text = line.decode("utf-8", "backslashreplace")
                log.warning("%s #%d on %s said: %s", call, task, host, text, extra=about)

    def dropped(self, count: int, call: str, task: int, host: str) -> None:
        """So many bytes of them were dropped on their way."""
        log.warning(
            "%d bytes of log records of %s #%d on %s dropped: too much at once", count, call, task, host
        )

    def _logger(self, name: str) -> logging.Logger:
        known = logging.root.manager.loggerDict
        if name in known or name == "root" or len(self._made) < LOGGERS_MAX:
            if name not in known:
                self._made.add(name)
            return logging.getLogger(name)
        above = name.rpartition(".")[0]
        return self._logger(above) if above else logging.root

    def _log(self, said: Logged, about: dict[str, Any]) -> None:
        logger = self._logger(said.name)
        if not logger.isEnabledFor(said.level):
            return
        record = logging.makeLogRecord({
            **said.extra,
            "name": said.name, "levelno": said.level, "levelname": said.level_name, "msg": said.message,
            "args": None, "created": said.created, "msecs": said.created % 1 * 1000,
            "pathname": said.path, "filename": said.path.rpartition("/")[2], "lineno": said.line,
            "module": said.path.rpartition("/")[2].partition(".")[0], "funcName": said.function,
            "process": said.pid, "processName": said.process, "threadName": said.thread,
            "exc_info": None, "exc_text": said.traceback or None, "stack_info": said.stack or None,
            **about,
        })  # fmt: skip
        logger.handle(record)

    def _warn(self, said: Warned) -> None:
        category = category_named(said.category)
        text = said.message
        if category is None:
            category, text = UserWarning, f"{said.category.replace(':', '.')}: {text}"
        key = (said.path, said.module)
        if len(self._registries) >= PLACES_MAX and key not in self._registries:
            self._registries.clear()
        registry = self._registries.setdefault(key, {})
        try:
            _show(text, category, said, registry)
        except Exception:  # a category that wants other arguments
            _show(f"{category.__name__}: {text}", UserWarning, said, registry)


def _show(text: str, category: type[Warning], said: Warned, registry: dict[Any, Any]) -> None:
    try:
        warnings.warn_explicit(text, category, said.path, said.line, said.module or None, registry)
    except Warning as error:  # a filter makes it an error: but there is nobody here to catch it
        warnings.showwarning(error, category, said.path, said.line)
