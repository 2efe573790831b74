"""The log of a command, on stderr: coloured at a terminal, plain in a file, or JSON lines for programs."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

__all__ = ["JsonLines", "set_up"]

PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up(level: str, form: str) -> None:
    """Write to stderr what ``zfarm`` logs at ``level`` (a name of logging) and above, as text or json."""
    log = logging.getLogger("zfarm")
    log.setLevel(level.upper())
    log.propagate = False
    for old in list(log.handlers):
        log.removeHandler(old)
    log.addHandler(_handler(form))


def _handler(form: str) -> logging.Handler:
    if form == "text" and sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        return RichHandler(
            console=Console(stderr=True),
            show_path=False,
            markup=False,
            log_time_format="%H:%M:%S",
            highlighter=None,
        )
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(PLAIN))
    return handler


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, text, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line for ``record``."""
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts: dict[str, Any] = {
            "time": f"{whole}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=False)
