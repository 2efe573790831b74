"""What becomes of links when the interpreter ends or the process forks; it knows no message.

At the end of the interpreter, what was submitted still runs to its end, as with the standard library's
executors; after a KeyboardInterrupt it is given up instead. In a forked process links are of no use: they
close what they hold.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Protocol

__all__ = ["alive", "gone", "interrupted"]

ABANDON_WAIT_S = 10.0
"""How long the end of an interrupted program may wait for farms to go."""


class Ending(Protocol):
    """A link, seen from here."""

    def close(self) -> None:
        """Take no more, and end when all is done."""

    def abandon(self) -> None:
        """Give everything up, and end."""

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end."""

    def after_fork(self) -> None:
        """In a forked process: hold nothing."""


_live: set[Ending] = set()


def alive(link: Ending) -> None:
    """This link has a thread and a farm from now on."""
    _live.add(link)


def gone(link: Ending) -> None:
    """This link has given back all that it held."""
    _live.discard(link)


def interrupted() -> bool:
    """Whether the program ends because of a KeyboardInterrupt that nobody caught."""
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return False  # the last exception of a prompt is not what ends it
    last = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return isinstance(last, KeyboardInterrupt)


def _at_exit() -> None:
    """Let every link finish. Runs before the interpreter waits for threads."""
    links = list(_live)
    give_up = interrupted()
    for link in links:
        if give_up:
            link.abandon()
        else:
            link.close()
    try:
        for link in links:
            link.join(ABANDON_WAIT_S if give_up else None)
    except KeyboardInterrupt:
        for link in links:
            link.abandon()
        _say_given_up()
        for link in links:
            link.join(ABANDON_WAIT_S)


def _say_given_up() -> None:
    """The exit code stays that of a program that has ended well: without a word nobody would know."""
    if sys.stderr is not None:
        sys.stderr.write(
            "zfarm: interrupted at the end: the calls still open are given up (those of a job go on)\n"
        )


def _after_fork() -> None:
    global _live
    links, _live = _live, set()
    for link in links:
        link.after_fork()


# Before threads are joined, and so before atexit: as the standard library's executors do.
try:
    threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
except (AttributeError, RuntimeError):  # it is internal and may go; or threads are being joined already
    atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
