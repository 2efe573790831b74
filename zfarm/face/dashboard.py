"""``zfarm top``: follows a farm and draws it twice a second, until q or Ctrl-C.

What is drawn stands in panels.py, what is known in core/view.py, and how it is heard in monitor.py. This file
owns the terminal: it is left as it was found, whatever ends the command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from rich.console import Console
from rich.live import Live

import zfarm
from zfarm.core.view import View
from zfarm.face.panels import Scene, screenful
from zfarm.messages import Note, Picture
from zfarm.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfarm.edge.loop import Loop
    from zfarm.errors import FarmError

__all__ = ["Dashboard", "Source", "main"]

REFRESH_S: Final = 0.5
AWAY_AFTER_S: Final = 3 * settings.note_interval_s + 1.0
"""Silence after which the broker counts as away: three notes, and a second for a slow network."""
ASK_AGAIN_S: Final = 1.0
REOPEN_S: Final = 5.0
"""A broker that is away is looked for anew this often: it may be back with other keys or at another port."""
LEAVE_KEYS: Final = frozenset(b"qQ\x03\x04")


class Source(Protocol):
    """What the dashboard needs of a monitor."""

    loop: Loop
    trouble: FarmError | None

    @property
    def title(self) -> str:
        """How the farm is called."""

    def follow(self, on_heard: Callable[[Picture | Note], None]) -> None:
        """Call ``on_heard``, in the turns of ``loop``, with each note and with each picture asked for."""

    def ask(self) -> None:
        """Ask for a picture; it may never come."""

    def reopen(self) -> None:
        """Look for the farm anew and connect again."""


def main(address: str | None, connection: Path | None, once: bool) -> int:
    """Show the farm live on a terminal, or print one picture with ``once`` and where there is no terminal.

    Raises:
        FarmError: no such farm, no answer at the start, or access denied; the text says which.
    """
    from zfarm.face.status import show
    from zfarm.monitor import Monitor, find_farm

    console = Console(highlight=False)
    with Monitor(lambda: find_farm(address, connection)) as monitor:
        picture = monitor.look()
        if once or not sys.stdout.isatty() or console.is_dumb_terminal:
            show(picture, monitor.title, console)
        else:
            Dashboard(monitor, console, picture).run()
    return 0


class Dashboard:
    """The live screen over one monitor."""

    def __init__(self, source: Source, console: Console, first: Picture | None = None) -> None:
        self._loop = source.loop
        self._source = source
        self._view = View()
        self._live = Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._heard_at = self._asked_at = self._opened_at = time.monotonic()
        self._keys = _Keys()
        if first is not None:
            self._view.take(first, self._heard_at)

    def run(self) -> None:
        """Draw until somebody wants to leave."""
        loop = self._loop
        self._source.follow(self._heard)
        self._source.ask()  # the picture from before the first note; what was missed in between shows
        loop.add_timer(self._refresh, REFRESH_S)
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.on_signal(signum, loop.stop)
        loop.on_signal(signal.SIGTSTP, self._suspend)
        loop.on_signal(signal.SIGWINCH, self._refresh)
        with self._screen():
            loop.run()

    @contextlib.contextmanager
    def _screen(self) -> Iterator[None]:
        """The terminal is ours: no line editing, no echo, and the other screen."""
        with self._keys, self._live:
            if self._keys.fd is not None:
                self._loop.add_source(self._keys.fd, self._pressed)
            try:
                self._refresh()
                yield
            finally:
                if self._keys.fd is not None:
                    self._loop.remove_source(self._keys.fd)

    def _heard(self, message: Picture | Note) -> None:
        self._heard_at = time.monotonic()
        if isinstance(message, Picture):
            self._view.take(message, self._heard_at)
        else:
            self._view.fold(message, self._heard_at)
        if self._view.stale:
            self._ask()

    def _ask(self) -> None:
        now = time.monotonic()
        if now - self._asked_at >= ASK_AGAIN_S:
            self._asked_at = now
            self._source.ask()

    def _refresh(self) -> None:
        now = time.monotonic()
        away = now - self._heard_at > AWAY_AFTER_S
        if away or self._view.stale:
            self._ask()
        if away and now - max(self._opened_at, self._heard_at) > REOPEN_S:
            self._opened_at = now
            self._source.reopen()
        scene = Scene(
            self._view,
            self._source.title,
            now=now,
            wall=time.time(),
            versions=f"zfarm {zfarm.__version__}",
            away_since=self._heard_at if away else None,
            trouble=str(self._source.trouble or ""),
            keys="q quit" if self._keys.fd is not None else "Ctrl-C quit",
        )
        self._live.update(screenful(scene), refresh=True)

    def _pressed(self) -> None:
        keys = self._keys.read()
        if LEAVE_KEYS.intersection(keys):
            self._loop.stop()
        elif keys == b"":
            self._loop.remove_source(sys.stdin.fileno())  # the terminal is gone, or at its end

    def _suspend(self) -> None:
        """Ctrl-Z: give the terminal back, sleep, and take it again when we are continued."""
        self._live.stop()
        self._keys.__exit__()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._keys.__enter__()
        self._live.start()
        self._refresh()


class _Keys:
    """Keys from the terminal one by one, while entered; ``fd`` is None where stdin is none."""

    def __init__(self) -> None:
        self.fd: int | None = None
        self._before: list[object] = []

    def __enter__(self) -> None:
        import termios
        import tty

        if not sys.stdin or not sys.stdin.isatty():
            return
        self.fd = sys.stdin.fileno()
        self._before = termios.tcgetattr(self.fd)
        tty.setcbreak(self.fd)

    def __exit__(self, *_: object) -> None:
        import termios

        if self.fd is not None:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]

    def read(self) -> bytes:
        """What was pressed; empty: nothing will ever come again."""
        try:
            return os.read(sys.stdin.fileno(), 64)
        except OSError:
            return b""
