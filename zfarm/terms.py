"""The terms of a call: what ``Executor.options`` was told, checked once and carried by what it submits."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Final

from zfarm.settings import settings

__all__ = ["PLAIN", "Terms"]

TIMEOUT_MAX_S: Final = 10.0 * 366 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for the calls of one view of a farm."""

    timeout_us: int = 0
    max_attempts: int = settings.max_attempts

    @property
    def alone(self) -> bool:
        """Each item of a map travels alone: what holds for a call must hold for each of them."""
        return bool(self.timeout_us)

    def but(self, **given: Any) -> Terms:
        """These terms with what is ``given`` in place of what was.

        Raises:
            TypeError, ValueError: an option that cannot be; the text says which and what could.
        """
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in given.items():
            chosen.update(_READ[name](value))
        return Terms(**chosen)


def _timeout(value: Any) -> dict[str, Any]:
    if value is None:
        return {"timeout_us": 0}
    seconds = _seconds("timeout", value)
    if not 0 < seconds <= TIMEOUT_MAX_S:
        raise ValueError(f"timeout must be greater than 0 seconds and at most ten years, not {value!r}")
    return {"timeout_us": max(1, int(seconds * 1e6))}


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    seconds = float(value)
    if not isfinite(seconds):
        raise ValueError(f"{name} must be a finite number of seconds, not {value!r}")
    return seconds


_READ: Final = {"timeout": _timeout}

PLAIN: Final = Terms()
