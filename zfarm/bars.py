"""Progress bars over loops: how many have ended and failed, how fast, what the tasks themselves say; it only
looks, and shows nothing where nobody sees it."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future as StandardFuture
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["stderr_console", "track"]

T = TypeVar("T")


def track(
    iterable: Iterable[T],
    total: int | None = None,
    description: str = "",
    *,
    console: Console | None = None,
) -> Iterator[T]:
    """Yield what ``iterable`` yields, and show a progress bar meanwhile: count, rate, time left, failures.

    ``total`` is how many will come, if ``len`` cannot tell. Of futures, as from ``farm.as_completed``, those
    that failed or were cancelled are counted, and what running tasks say with ``zfarm.progress`` has bars of
    its own. It is shown on standard error of a terminal, or in a notebook; elsewhere nothing is. ``console``
    is a rich console to show it on. Ending the loop early closes ``iterable``, if it can be closed.
    """
    if console is None:
        console = stderr_console()
    if not (console.is_terminal or console.is_jupyter):
        return _closing(iterable)
    if total is None:
        total = operator.length_hint(iterable, -1)
    return _tracked(iterable, None if total < 0 else total, description, console)


def stderr_console() -> Console:
    """Standard error as a rich console, and a terminal only if it is one: rich takes a pipe for one, too,
    where FORCE_COLOR is set, as on many a CI."""
    from rich.console import Console

    try:
        terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, it is closed, or an object of the program's own
        terminal = False
    return Console(stderr=True, force_terminal=None if terminal else False)


def _closing(iterable: Iterable[T]) -> Iterator[T]:
    iterator = iter(iterable)
    try:
        yield from iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _tracked(iterable: Iterable[T], total: int | None, description: str, console: Console) -> Iterator[T]:
    from zfarm.drawing import Bars, Pace

    futures = getattr(iterable, "futures", None)
    bars = Bars(list(futures) if futures is not None else [], console)
    failed = done = 0
    with bars:
        bar = bars.add_task(description or "tasks", total=total, failed=0, pace=(pace := Pace()))
        try:
            for item in _closing(iterable):
                if isinstance(item, StandardFuture) and item.done():
                    failed += item.cancelled() or item.exception() is not None
                done += 1
                bars.update(bar, completed=done, failed=failed)
                if done == total:  # nobody looks any more
                    pace.see(bars.get_time(), done)
                yield item
        except (GeneratorExit, KeyboardInterrupt):  # whoever loops has had enough: no call has failed
            raise
        except BaseException:
            if futures is None:  # else it is no call that has failed, but the wait for them
                bars.update(bar, failed=failed + 1)
            raise
