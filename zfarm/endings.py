"""What a client raises for a task that ended without a value or an exception of its own."""

from __future__ import annotations

from collections import Counter
from textwrap import indent

from zfarm.errors import (
    Death,
    FarmBusy,
    FarmError,
    MemoryLimit,
    TaskLost,
    TaskTimeout,
    TooLarge,
    TransferError,
)
from zfarm.messages import LOST, MEMORY, MISSING, OVERSIZED, TIMEOUT, Fate, Outcome

__all__ = ["ending", "tries"]


def ending(name: str, outcome: Outcome) -> FarmError:
    """The error of a task that was lost, timed out or refused: why, and how each of its attempts ended."""
    deaths = tuple(map(_death, outcome.deaths))
    if outcome.kind == TIMEOUT:
        return TaskTimeout(f"{name}: {deaths[-1]}", deaths)
    if outcome.kind == MEMORY:
        used = deaths[-1].peak_bytes
        return MemoryLimit(f"{name}: {deaths[-1]}{_last_words(deaths[-1].stderr)}", used, deaths)
    if outcome.kind == MISSING:
        return TransferError(f"{name} did not run, a file that it needs cannot be had: {deaths[-1].text}")
    if outcome.kind == OVERSIZED:
        return TooLarge(f"{name}: {deaths[-1].text}")
    if outcome.kind != LOST:
        return FarmBusy(outcome.deaths[0].text)
    counted = Counter(map(str, deaths))
    ways = ", ".join(f"{way} ({count} times)" if count > 1 else way for way, count in counted.items())
    if deaths and not deaths[-1].worker:  # no word of any worker that had it
        return TaskLost(f"{name} is lost, and may have run or not: {ways}{_traces(deaths)}", deaths)
    times = "once" if len(deaths) == 1 else f"{len(deaths)} times"
    return TaskLost(f"{name}: what ran it died {times}: {ways or 'no word how'}{_traces(deaths)}", deaths)


def _traces(deaths: tuple[Death, ...]) -> str:
    """What the last child left behind that is worth reading."""
    peak = max((death.peak_bytes for death in deaths), default=0)
    said = next((death.stderr for death in reversed(deaths) if death.stderr), "")
    text = f"; its child had at most {peak / 1e6:.1f} MB in use" if peak else ""
    return text + _last_words(said)


def _last_words(said: str) -> str:
    return "\nThe last lines of its stderr:\n" + indent(said, "  ") if said else ""


def tries(outcome: Outcome) -> str:
    """A note for the error of a call that was run again after others."""
    runs = outcome.tries + len(outcome.deaths) + 1
    again = "once" if outcome.tries == 1 else f"{outcome.tries} times"
    return (
        f"zfarm: this is how run {runs} of the call ended; it was retried {again} for what its retry_on names"
    )


def _death(fate: Fate) -> Death:
    return Death(
        fate.host, fate.worker, fate.signal, fate.exit_code, fate.text, fate.stderr, fate.peak_bytes, fate.oom
    )
