"""The form of the source text: first lines, sizes, and what must not stand in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.tidy.sources import Source, body_lines, dotted, sources

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60

# Ratchets: what is above a limit, the most it may have, and why. An entry must go when its file fits.
LONG_FILES: dict[str, tuple[int, str]] = {
    "zfarm/api.py": (550, "what users import, with all that is promised of it"),
    "zfarm/core/ledger.py": (545, "every change of the broker's books, live and in replay alike"),
    "zfarm/futures.py": (520, "one class, and what makes it light until somebody waits for it"),
    "zfarm/core/client.py": (570, "all that a client's machine decides; its books and streams are elsewhere"),
    "zfarm/core/worker.py": (560, "all that a worker's machine decides beside its children and its files"),
    "zfarm/edge/children.py": (530, "one child's pipes, page, output and end, in one place"),
    "zfarm/edge/checks.py": (600, "one short check for each message, in the order of the protocol"),
    "zfarm/link.py": (775, "one thread's whole conversation with its farm, and how it ends"),
    "zfarm/messages.py": (1440, "the whole protocol in one file, to be read from top to bottom"),
}
LONG_FUNCTIONS: dict[str, tuple[int, str]] = {}
SLEEPS: dict[str, str] = {}

ALL = sources()
PACKAGE = sources("zfarm")
TESTS = sources("tests")


def each_of(found: list[Source]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("source", found, ids=str)


@each_of(ALL)
def test_a_file_opens_with_one_sentence_that_says_what_lives_here(source: Source) -> None:
    if source.path.name == "__init__.py" and not source.text and source.name.startswith("tests/"):
        return  # a marker of a package and nothing else
    docstring = ast.get_docstring(source.tree)

    assert docstring, f"{source.name} has no docstring"
    first = docstring.split("\n\n")[0]
    assert len(first) <= 400, f"{source.name}: the first sentence is a page"
    assert first.rstrip()[-1] in ".:!?", f"{source.name} opens with no sentence: {first!r}"


@each_of(ALL)
def test_a_file_can_be_read_in_one_sitting(source: Source) -> None:
    limit, _why = LONG_FILES.get(source.name, (FILE_LINES_MAX, ""))

    assert len(source.lines) <= limit, f"{source.name} has {len(source.lines)} lines, limit {limit}: split it"


@each_of(ALL)
def test_a_function_fits_on_a_screen(source: Source) -> None:
    long = {
        f"{source.name}:{name}": body_lines(function)
        for name, function in source.functions()
        if body_lines(function) > LONG_FUNCTIONS.get(f"{source.name}:{name}", (FUNCTION_LINES_MAX, ""))[0]
    }

    assert not long, f"bodies above {FUNCTION_LINES_MAX} lines: {long}"


def test_the_ratchets_hold_only_what_is_still_above_the_limit() -> None:
    lengths = {source.name: len(source.lines) for source in ALL}
    bodies = {f"{source.name}:{name}": body_lines(f) for source in ALL for name, f in source.functions()}

    stale = [name for name in LONG_FILES if lengths.get(name, 0) <= FILE_LINES_MAX]
    stale += [name for name in LONG_FUNCTIONS if bodies.get(name, 0) <= FUNCTION_LINES_MAX]
    slept = {f"{source.name}:{where}" for source in TESTS for where, _line in sleeps_of_tests(source)}
    stale += [name for name in SLEEPS if name not in slept]
    assert not stale, f"these fit now: take them off the list: {stale}"


UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")


@each_of(ALL)
def test_nothing_is_left_for_later(source: Source) -> None:
    marked = [(number, line) for number, line in enumerate(source.lines, 1) if UNFINISHED.search(line)]

    assert not marked, source.name


@each_of(ALL)
def test_no_stub_and_no_bare_except(source: Source) -> None:
    found = []
    for part in ast.walk(source.tree):
        if isinstance(part, ast.ExceptHandler) and part.type is None:
            found.append(f"{source.name}:{part.lineno}: bare except")
        if isinstance(part, ast.Raise) and part.exc is not None:
            raised = part.exc.func if isinstance(part.exc, ast.Call) else part.exc
            if dotted(raised) == "NotImplementedError" and source.name.startswith("zfarm/"):
                found.append(f"{source.name}:{part.lineno}: a stub")

    assert not found


def sleeps_of_tests(source: Source) -> Iterator[tuple[str, int]]:
    """Calls of sleep by a test or fixture itself; those in tasks and in polling helpers are not its own."""
    for name, function in source.functions():
        fixture = any("fixture" in ast.unparse(decorator) for decorator in function.decorator_list)
        if not fixture and not function.name.startswith("test_"):
            continue
        for call in own_calls(function):
            if dotted(call.func) in {"time.sleep", "sleep"}:
                yield name, call.lineno


def own_calls(parent: ast.AST) -> Iterator[ast.Call]:
    """The calls in a function, without those in functions and lambdas defined inside it."""
    for child in ast.iter_child_nodes(parent):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from own_calls(child)


@each_of(TESTS)
def test_tests_wait_on_conditions_and_never_on_sleeps(source: Source) -> None:
    slept = [line for name, line in sleeps_of_tests(source) if f"{source.name}:{name}" not in SLEEPS]

    assert not slept, f"{source.name}, lines {slept}: wait on a condition with a deadline instead"


def test_the_sleep_check_sees_a_sleep_and_only_the_tests_own() -> None:
    source = Source(TESTS[0].path)
    source.__dict__["text"] = """
import time
def test_x():
    def task(): time.sleep(1)
    submit(lambda: time.sleep(1))
    time.sleep(2)
"""

    assert list(sleeps_of_tests(source)) == [("test_x", 6)]


@each_of(PACKAGE)
def test_what_a_module_lists_is_there(source: Source) -> None:
    """`__all__`, where it stands, holds each name once, and each is defined in the file (ruff sorts it)."""
    listed = names_in_all(source.tree)
    if listed is None:
        return
    defined = {name for statement in source.tree.body for name in bound_names(statement)}

    assert len(listed) == len(set(listed)), f"{source.name}: __all__ holds a name twice"
    assert set(listed) <= defined, f"{source.name}: __all__ names what is not here: {set(listed) - defined}"


@each_of(PACKAGE)
def test_what_a_module_offers_is_documented(source: Source) -> None:
    offered = set(names_in_all(source.tree) or ())
    silent = [
        part.name
        for part in source.tree.body
        if isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and part.name in offered
        and not ast.get_docstring(part)
    ]

    assert not silent, f"{source.name} offers these without a word: {silent}"


def names_in_all(tree: ast.Module) -> list[str] | None:
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if any(dotted(target) == "__all__" for target in targets) and isinstance(statement, ast.Assign):
            return [str(name) for name in ast.literal_eval(statement.value)]
    return None


def bound_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.If | ast.Try):
        for inner in ast.iter_child_nodes(statement):
            if isinstance(inner, ast.stmt):
                yield from bound_names(inner)
    else:
        for part in ast.walk(statement):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                yield part.id
