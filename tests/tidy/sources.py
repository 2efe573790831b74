"""What the tidy tests read: every Python file of the project, parsed once; it imports nothing of zfarm."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("zfarm", "tests", "examples", "benchmarks")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file."""

    path: Path

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """The path from the project's root, with slashes."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    def functions(self) -> Iterator[tuple[str, FunctionNode]]:
        """Every function with its dotted name within the file, nested ones included."""
        yield from _functions(self.tree, ())


def _functions(parent: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, FunctionNode]]:
    for child in ast.iter_child_nodes(parent):
        inner = names
        if isinstance(child, FunctionNode | ast.ClassDef):
            inner = (*names, child.name)
            if not isinstance(child, ast.ClassDef):
                yield ".".join(inner), child
        yield from _functions(child, inner)


def body_lines(function: FunctionNode) -> int:
    """The lines of a function's body from its first to its last, without the docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    if not body:
        return 0
    return (body[-1].end_lineno or body[-1].lineno) - body[0].lineno + 1


def sources(*folders: str) -> list[Source]:
    """Every Python file of these folders (default: all of the project's), in a stable order."""
    found = [path for folder in folders or FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return [Source(path) for path in sorted(found)]


def dotted(expression: ast.expr) -> str:
    """`a.b.c` of a name or attribute expression; empty for anything else."""
    if isinstance(expression, ast.Name):
        return expression.id
    if isinstance(expression, ast.Attribute):
        before = dotted(expression.value)
        return f"{before}.{expression.attr}" if before else ""
    return ""
