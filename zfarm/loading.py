"""Bars that show how far a file is: bytes, rate, time left; nothing where nobody sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["bar"]

NAME_MAX = 40
"""Characters of a name that are shown."""


@contextmanager
def bar(
    name: str, total: int | None, shown: bool = True, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """What to tell how many bytes have been moved, of a ``total`` if that is known.

    A bar is shown on standard error of a terminal, or in a notebook, unless it is not to be ``shown``. When
    the block ends well it is full: what was there already had not to be moved.
    """
    if shown and console is None:
        from zfarm.bars import stderr_console

        console = stderr_console()
    if console is None or not (console.is_terminal or console.is_jupyter):
        yield lambda moved: None
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from zfarm.drawing import Display

    label = name if len(name) <= NAME_MAX else name[: NAME_MAX - 1] + "…"
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Display(*columns, console=console) as progress:
        task = progress.add_task(label, total=total)
        last = 0

        def moved(size: int) -> None:
            nonlocal last
            last = size
            progress.update(task, completed=size if total is None else min(size, total))

        yield moved
        whole = last if total is None else total
        progress.update(task, total=whole, completed=whole)
