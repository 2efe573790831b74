"""import zfarm costs nothing, and public names are what type checkers see."""

from __future__ import annotations

import subprocess
import sys

import pytest

import zfarm
from zfarm import errors

LIGHT = """
import sys
before = set(sys.modules)
import zfarm
print(*sorted(set(sys.modules) - before))
"""


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    run = subprocess.run(
        [sys.executable, "-S", "-c", LIGHT], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert set(run.stdout.split()) <= {"zfarm", "__future__"}


def test_every_public_name_is_there() -> None:
    for name in zfarm.__all__:
        assert getattr(zfarm, name) is not None
    assert set(zfarm.__all__) <= set(dir(zfarm))
    assert zfarm.TaskLost.__module__ == "zfarm.errors"
    with pytest.raises(AttributeError, match="no attribute 'Futures'"):
        zfarm.Futures  # type: ignore[attr-defined]  # noqa: B018


ROOT = __file__.rpartition("/tests/")[0]


def test_every_error_is_there() -> None:
    assert set(errors.__all__) <= set(zfarm.__all__)
