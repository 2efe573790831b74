"""What a client wants to hear of its tasks: the levels of its loggers and its filters of warnings.

They are taken at the client with each call, and obeyed in the child that runs it: what the client would drop
need not travel. What the client shows it decides itself, once more, when it has come.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from typing import Any, Final

from zfarm.messages import Attention

__all__ = ["Obedience", "Watcher", "category_named", "name_of_category"]

LEVELS_MAX: Final = 1000
FILTERS_MAX: Final = 200
NAME_MAX: Final = 500
_UNCHANGED: Any = object()
"""Stands in the cache of a logger, which logging empties whenever a level changes anywhere."""


class Watcher:
    """What this process wants to hear: the same object while that has not changed. Any thread may use it."""

    def __init__(self) -> None:
        self._cache: dict[Any, Any] = getattr(logging.getLogger("zfarm"), "_cache", {})
        self._filters: list[Any] = []
        self._attention = Attention()

    def current(self) -> Attention:
        """As it is now. It is asked with each call: nothing is looked through while nothing has changed."""
        if _UNCHANGED in self._cache and warnings.filters == self._filters:
            return self._attention
        self._cache[_UNCHANGED] = True  # before we look: what changes meanwhile is seen the next time
        self._filters = list(warnings.filters)
        filters = [_portable_filter(*entry) for entry in self._filters[:FILTERS_MAX]]
        attention = Attention(logging.root.manager.disable, _levels(), filters)
        if attention != self._attention:
            self._attention = attention
        return self._attention


def _levels() -> dict[str, int]:
    """The loggers whose levels were set, the root's under no name; the most general ones."""
    known = list(logging.root.manager.loggerDict.items())
    found = [(name, one.level) for name, one in known if isinstance(one, logging.Logger) and one.level]
    found = [(name, level) for name, level in found if len(name) <= NAME_MAX and name.isprintable()]
    found.sort(key=lambda pair: (pair[0].count("."), pair[0]))
    return {"": logging.root.level, **dict(found[:LEVELS_MAX])}


def _portable_filter(
    action: str, message: Any, category: type[Warning], module: Any, lineno: int
) -> tuple[str, str, str, str, int]:
    return action, _pattern(message), name_of_category(category), _pattern(module), lineno


def _pattern(wanted: Any) -> str:
    """A regular expression; Python's own first filters have texts in place of them."""
    if wanted is None:
        return ""
    return f"{re.escape(wanted)}\\Z" if isinstance(wanted, str) else str(wanted.pattern)


def name_of_category(category: type[Warning]) -> str:
    """Under which a category is found elsewhere."""
    return f"{category.__module__}:{category.__qualname__}"


def category_named(name: str) -> type[Warning] | None:
    """The category of this name, if this process has it already: nothing is imported for a name that came
    from elsewhere."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None) if part.isidentifier() else None
    return found if isinstance(found, type) and issubclass(found, Warning) else None


class Obedience:
    """How this child has made its loggers and filters those of its client."""

    def __init__(self) -> None:
        self._levels: dict[str, tuple[int, int]] = {}  # of loggers that were changed: what it was and is
        self._filters: list[Any] | None = None  # as they were
        self._attention = Attention()
        self._known: dict[str, int] = {}

    def obey(self, attention: Attention | None) -> None:
        """Listen for what the client wants to hear; None: be as if there had been no client."""
        if attention == self._attention:
            return
        wanted = attention or Attention()
        self._attention = wanted
        self._known = {}
        self._set_levels(wanted.levels)
        if self._filters is None:
            self._filters = list(warnings.filters)
        if attention is None:
            _reset_filters(self._filters)
        else:
            _reset_filters([])
            for one in attention.filters:
                _add_filter(*one)

    def wants(self, name: str, level: int) -> bool:
        """Whether the client would take a record of this logger and level."""
        if level <= self._attention.disable:
            return False
        least = self._known.get(name)
        if least is None:
            if len(self._known) >= LEVELS_MAX:
                self._known.clear()
            least = self._known[name] = self._effective(name)
        return level >= least

    def _effective(self, name: str) -> int:
        levels = self._attention.levels
        while name:
            if levels.get(name):
                return levels[name]
            name = name.rpartition(".")[0]
        return levels.get("", logging.WARNING)

    def _set_levels(self, levels: dict[str, int]) -> None:
        for name in [name for name in self._levels if name not in levels]:
            before, ours = self._levels.pop(name)
            logger = logging.getLogger(name)
            if logger.level == ours:  # else the task has set another one since
                logger.setLevel(before)
        for name, level in levels.items():
            logger = logging.getLogger(name)
            before = self._levels[name][0] if name in self._levels else logger.level
            if before != level or name in self._levels:
                self._levels[name] = before, level
                logger.setLevel(level)


def _reset_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # type: ignore[attr-defined]


def _add_filter(action: str, message: str, category: str, module: str, lineno: int) -> None:
    """What is an error at the client is said here: where output goes must not change what a call does."""
    found = category_named(category)
    if found is None:
        return  # nobody here can warn of what is not there
    action = "default" if action == "error" else action
    try:
        warnings.filterwarnings(action, message, found, module, lineno, append=True)  # type: ignore[arg-type]
    except (AssertionError, ValueError, TypeError, re.error):
        return  # of another version of Python
