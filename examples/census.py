"""A census of the Python standard library: real files by the thousand, read by every core, then by one.

    python examples/census.py [FOLDER]        `make demo` runs it; FOLDER: other sources to count

An ordinary script: its functions and classes live in __main__ and no main guard is needed.
"""

from __future__ import annotations

import ast
import os
import random
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import zfarm

SHOWN = 10


@dataclass
class Census:
    """What stands in some source files: one file as it comes home from a child, or all of them added up."""

    files: int = 0
    unreadable: int = 0
    size: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    names: Counter[str] = field(default_factory=Counter)
    imports: Counter[str] = field(default_factory=Counter)
    longest: list[tuple[int, str, str]] = field(default_factory=list)
    counted_by: set[int] = field(default_factory=set, compare=False)

    def add(self, other: Census) -> None:
        self.files += other.files
        self.unreadable += other.unreadable
        self.size += other.size
        self.lines += other.lines
        self.functions += other.functions
        self.classes += other.classes
        self.names.update(other.names)
        self.imports.update(other.imports)
        self.longest = sorted(self.longest + other.longest, reverse=True)[:SHOWN]
        self.counted_by |= other.counted_by


def take(path: Path) -> Census:
    """Read one file and count what is in it: this is the call that the farm runs."""
    source = path.read_bytes()
    census = Census(files=1, size=len(source), lines=source.count(b"\n"), counted_by={os.getpid()})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # the library's own tests keep some broken files, on purpose
        census.unreadable = 1
        return census
    for part in ast.walk(tree):
        match part:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                census.names[name] += 1
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                census.functions += 1
                census.names[name] += 1
                census.longest.append(((part.end_lineno or part.lineno) - part.lineno + 1, name, path.name))
            case ast.ClassDef(name=name):
                census.classes += 1
                census.names[name] += 1
            case ast.Import(names=modules):
                census.imports.update({module.name.partition(".")[0] for module in modules})
            case ast.ImportFrom(module=str(module), level=0):
                census.imports[module.partition(".")[0]] += 1
    census.longest = sorted(census.longest, reverse=True)[:SHOWN]
    return census


def sources(folder: Path) -> list[Path]:
    """Every Python file below the folder, shuffled (always alike), so that large and small ones mix."""
    others = {"site-packages", "dist-packages"}
    found = [path for path in folder.rglob("*.py") if path.is_file() and not others & set(path.parts)]
    found.sort()
    random.Random(1).shuffle(found)
    return found


class Rate(ProgressColumn):
    """Files and megabytes per second, since the start."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time or task.elapsed or 0.0
        if not elapsed or not task.completed:
            return Text("")
        files = task.fields["files"] / elapsed
        return Text(f"{files:,.0f} files/s  {task.completed / elapsed / 1e6:.1f} MB/s", style="cyan")


def add_up(counts: Iterable[Census], progress: Progress, row: TaskID) -> Census:
    """Add the counts up as they come, and move the bar."""
    total = Census()
    for census in counts:
        total.add(census)
        progress.update(row, advance=census.size, files=total.files)
    return total


def report(total: Census, folder: Path) -> Group:
    """The answer: what was counted, and three tables of it."""
    parts = {
        "files": total.files,
        "lines": total.lines,
        "functions": total.functions,
        "classes": total.classes,
    }
    facts = f"[bold]{total.size / 1e6:.1f}[/] MB  " + "  ".join(
        f"[bold]{n:,}[/] {what}" for what, n in parts.items()
    )
    if total.unreadable:
        facts += f"\n[dim]{total.unreadable} of the files are not valid Python of this version[/]"
    tables = Table.grid(padding=(0, 2), expand=True)
    tables.add_row(
        ranking("Most used names", "name", total.names.most_common(SHOWN)),
        ranking("Most imported", "module", total.imports.most_common(SHOWN)),
        ranking(
            "Longest functions",
            "function",
            [(f"{n}[dim] {file}[/]", size) for size, n, file in total.longest],
        ),
    )
    return Group(
        Panel(facts, title=f"Python sources in {folder}", border_style="green", box=box.ROUNDED), tables
    )


def ranking(title: str, what: str, rows: list[tuple[str, int]]) -> Table:
    """A table of names and numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold", header_style="dim", expand=True)
    table.add_column(what, no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("lines" if what == "function" else "times", justify="right", style="green")
    for name, number in rows:
        table.add_row(name, f"{number:,}")
    return table


def main() -> int:
    """Do the same work twice, show both, and compare the answers."""
    console = Console()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("stdlib"))
    paths = sources(folder)
    if not paths:
        console.print(f"No Python file below {folder}.")
        return 1
    size = sum(path.stat().st_size for path in paths)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        TextColumn("{task.percentage:>3.0f}%"),
        Rate(),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console, expand=True) as progress:
        on_farm = progress.add_task("on the farm  ", total=size, files=0)
        start = time.perf_counter()
        with zfarm.Executor() as farm:
            total = add_up(farm.map(take, paths), progress, on_farm)
        farm_s = time.perf_counter() - start

        alone = progress.add_task("one by one   ", total=size, files=0)
        start = time.perf_counter()
        expected = add_up(map(take, paths), progress, alone)
        alone_s = time.perf_counter() - start

    console.print(report(total, folder))
    console.print(
        f"[bold]{farm_s:.1f} s[/] on the farm ({len(total.counted_by)} processes, start and stop included), "
        f"[bold]{alone_s:.1f} s[/] one by one: [bold green]{alone_s / farm_s:.2f} × as fast[/]."
    )
    if total != expected:
        console.print("[bold red]The two answers differ: that is a bug in zfarm.[/]")
        return 1
    console.print("Both answers are the same.")
    return 0


sys.exit(main())
