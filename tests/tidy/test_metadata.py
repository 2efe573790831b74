"""The metadata: what zfarm imports it declares, what it declares is pinned, and CI runs what users run."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tidy.sources import ROOT, Source, sources

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
FOR_TESTS = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]
DISTRIBUTIONS = {"zmq": "pyzmq", "rich_click": "rich-click"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def imported(source: Source) -> Iterator[str]:
    """The top-level packages that a file imports, wherever in it."""
    for part in ast.walk(source.tree):
        if isinstance(part, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in part.names)
        elif isinstance(part, ast.ImportFrom) and part.module and not part.level:
            yield part.module.partition(".")[0]


def test_the_package_declares_what_it_imports() -> None:
    used = {name for source in sources("zfarm") for name in imported(source)}
    foreign = {DISTRIBUTIONS.get(name, name) for name in used - sys.stdlib_module_names - {"zfarm"}}

    assert foreign <= {canonicalize_name(need.name) for need in NEEDED}


def test_lower_bounds_only_so_that_nobody_is_locked_out() -> None:
    bounds = {str(need): [clause.operator for clause in need.specifier] for need in [*NEEDED, *FOR_TESTS]}

    assert all(operators == [">="] for operators in bounds.values()), bounds


def test_everything_declared_is_pinned_within_its_bounds() -> None:
    pinned = pins()

    for need in [*NEEDED, *FOR_TESTS]:
        version = pinned.get(canonicalize_name(need.name))
        assert version is not None, f"constraints.txt has no pin for {need.name}: make pins"
        assert need.specifier.contains(version), (
            f"constraints.txt pins {need.name} {version}, outside {need.specifier}"
        )


def test_packages_come_from_where_the_machine_says() -> None:
    for name in ("constraints.txt", "Makefile", "pyproject.toml", ".ci/setup", ".ci/pins", ".ci/run"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not any(word in text for word in ("index-url", "find-links", "://")), name


def test_ci_runs_the_two_commands_that_users_run() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()

    assert [line for line in lines if line.startswith("make ")] == ["make test", "make demo"]


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "zfarm" / "py.typed").exists()
