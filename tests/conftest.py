"""What holds for every test of the session: a private runtime directory, and nothing left behind."""

from __future__ import annotations

import multiprocessing.resource_tracker
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import leaks, sharing

SETTLE_S = 5.0
"""How long after a test what it started may take to go."""

np.dot(np.ones((2, 2)), np.ones((2, 2)))  # numpy's threads start now, and not as a leak of some test

_watched: Path | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Give this run its own places for sockets and temporary files, and mark its processes."""
    global _watched
    config.pluginmanager.register(sharing)
    os.environ.setdefault(
        "PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir()
    )  # tmp_path stays readable afterwards
    _watched = Path(tempfile.mkdtemp(prefix="zf"))  # short: the name of a socket has room for 107 bytes
    os.environ["XDG_RUNTIME_DIR"] = os.environ["TMPDIR"] = str(_watched)
    (_watched / "zfarm").mkdir(mode=0o700)  # the runtime directory stays; what farms put there must go
    os.environ.pop("ZFARM_ADDRESS", None)  # tests say themselves which farm they want
    tempfile.tempdir = None
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does that to what runs in its background,
        signal.signal(signal.SIGINT, signal.default_int_handler)  # and tests that interrupt would inherit it
    leaks.mark_processes()
    multiprocessing.resource_tracker.ensure_running()  # it lives as long as its parent


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what pytest_configure made."""
    if _watched is not None:
        shutil.rmtree(_watched, ignore_errors=True)


_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether the test itself failed."""
    report = yield
    if call.when == "call":
        item.stash[_failed] = report.failed
    return report


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    assert _watched is not None
    before = leaks.take_stock(_watched)
    yield
    failed = request.node.stash.get(_failed, False)
    lines = leaks.wait_settled(before, _watched, 0.5 if failed else SETTLE_S)
    if lines:
        leaks.end_processes(before)
    if lines and not failed:  # a test that failed left its work half done, and its traceback holds the rest
        pytest.fail("left behind by this test:\n  " + "\n  ".join(lines), pytrace=False)
