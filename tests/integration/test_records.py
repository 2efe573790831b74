"""What tasks log and warn of: said again at their client as it wants it, once, and bounded."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until

pytestmark = pytest.mark.timeout(60)


class Odd:
    """What has no text, and cannot be pickled."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __reduce__(self) -> Any:
        raise TypeError("no pickle")


class OddWarning(UserWarning):
    """A category that takes two arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one, two)


def log_all(n: int) -> dict[str, bool]:
    """Log on all levels; what of it is on here."""
    log = logging.getLogger("tasks.part")
    for level in ("debug", "info", "warning"):
        getattr(log, level)("%s %d", level, n)
    quiet = logging.getLogger("quiet.part")
    quiet.warning("not wanted")
    return {"debug": log.isEnabledFor(logging.DEBUG), "quiet": quiet.isEnabledFor(logging.WARNING)}


def log_facts() -> int:
    """Log with all that a record can have."""
    log = logging.getLogger("facts")
    try:
        raise ValueError("what went wrong")
    except ValueError:
        log.exception("it %s", "failed", extra={"user": "me", "count": 3, "odd": Odd()})
    log.warning("args that do not fit: %d %d", *[1])
    log.warning(Odd())
    log.log(35, "nul \0 and \ud800 and\nlines")
    return os.getpid()


def log_with_handlers() -> None:
    """Log where handlers write to the standard streams, too."""
    own = logging.getLogger("own")
    own.propagate = False
    for handler in (logging.StreamHandler(), logging.StreamHandler(sys.stdout)):
        own.addHandler(handler)
    own.warning("said once")
    logging.basicConfig(format="basic %(message)s")
    logging.warning("said by the root")
    print("printed")


def warn(n: int) -> None:
    """Warn at one place, of one thing that is always the same and one that is not."""
    warnings.warn("always the same", DeprecationWarning, stacklevel=1)
    warnings.warn(f"number {n}", RuntimeWarning, stacklevel=1)


def warn_oddly() -> str:
    """Warn with a category that nobody else has, and with one that cannot be made of a text."""

    class Local(DeprecationWarning):
        pass

    sys.modules["__main__"].LocalOne = Local  # type: ignore[attr-defined]
    Local.__qualname__, Local.__module__ = "LocalOne", "no.such.module"
    warnings.warn("of a stranger", Local, stacklevel=1)
    warnings.warn(OddWarning("a", "b"), stacklevel=1)
    return "done"


def flood(many: int) -> None:
    """Log more than may travel."""
    for n in range(many):
        logging.getLogger("flood").warning("%0200d", n)


def log_and_crash() -> None:
    """Log, and die on the spot."""
    logging.getLogger("last").error("the last words")
    os.abort()


@pytest.fixture
def levels() -> Iterator[None]:
    """Levels as they are without any configuration, and afterwards as they were."""
    root, before = logging.getLogger(), logging.getLogger().level
    names = ("tasks", "quiet")
    yield
    root.setLevel(before)
    for name in names:
        logging.getLogger(name).setLevel(logging.NOTSET)


def said(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [record.getMessage() for record in list(caplog.records) if record.name == name]


@pytest.mark.usefixtures("levels")
def test_the_levels_of_the_client_decide_what_travels(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("tasks").setLevel(logging.INFO)
    logging.getLogger("quiet").setLevel(logging.CRITICAL)
    with zfarm.Executor(max_workers=1) as farm:
        loud = farm.options(output="forward")
        assert loud.submit(log_all, 1).result(30) == {"debug": False, "quiet": False}
        logging.getLogger("tasks").setLevel(logging.DEBUG)
        assert loud.submit(log_all, 2).result(30) == {"debug": True, "quiet": False}
        wait_until(lambda: "warning 2" in said(caplog, "tasks.part"), "the client has said it all")
        logging.disable(logging.WARNING)
        try:
            assert loud.submit(log_all, 3).result(30)["debug"] is True  # enabled there, and not wanted
        finally:
            logging.disable(logging.NOTSET)
        assert farm.submit(log_all, 4).result(30) == {"debug": False, "quiet": True}  # as in process pools

    assert said(caplog, "tasks.part") == ["info 1", "warning 1", "debug 2", "info 2", "warning 2"]
    assert not said(caplog, "quiet.part")


def test_a_record_comes_with_its_facts_and_as_text(farm: TcpFarm, caplog: pytest.LogCaptureFixture) -> None:
    farm.start_broker()
    farm.start_worker(1, "--name", "far")
    farm.wait_slots(1)
    began = time.time()
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(log_facts)
        pid = future.result(30)
        wait_until(lambda: len(said(caplog, "facts")) == 4, "four records")
    first, second, third, fourth = [r for r in caplog.records if r.name == "facts"]

    assert (first.levelno, first.getMessage(), first.funcName) == (40, "it failed", "log_facts")
    assert (first.process, first.zfarm_host, first.zfarm_call) == (pid, "far", "log_facts")  # type: ignore[attr-defined]
    assert first.zfarm_task == 1  # type: ignore[attr-defined]
    assert (first.user, first.count) == ("me", 3)  # type: ignore[attr-defined]
    assert first.odd == "<Odd that cannot be shown: RuntimeError>"  # type: ignore[attr-defined]
    assert began - 5 < first.created < time.time() + 5
    assert str(first.exc_text).splitlines()[-1] == "ValueError: what went wrong"
    assert first.filename == "test_records.py"
    assert second.getMessage().startswith("args that do not fit: %d %d (its arguments cannot be shown")
    assert "cannot be shown" in third.getMessage()
    assert (fourth.levelno, fourth.levelname) == (35, "Level 35")
    assert fourth.getMessage() == "nul \0 and \\ud800 and\nlines"
    assert "ERROR:facts:it failed\nTraceback" in future.stderr


def test_nothing_is_said_twice(caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    with zfarm.Executor(max_workers=1) as farm:
        future = farm.options(output="forward").submit(log_with_handlers)
        future.result(30)

    assert said(caplog, "own") == ["said once"]
    assert said(caplog, "root") == ["said by the root"]
    assert future.stdout == "printed\n"
    assert future.stderr == "WARNING:own:said once\nWARNING:root:said by the root\n"
    shown = "".join(capfd.readouterr())
    assert "said" not in shown
    assert "printed" in shown


def test_kept_records_are_in_stderr_alone_and_others_go_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    with zfarm.Executor(max_workers=1) as farm:
        kept = farm.options(output="keep").submit(log_all, 1)
        off = farm.options(output="off").submit(log_all, 2)
        kept.result(30)
        off.result(30)

    assert kept.stderr == "WARNING:tasks.part:warning 1\nWARNING:quiet.part:not wanted\n"
    assert off.stderr == ""
    assert not said(caplog, "tasks.part")


def test_warnings_are_shown_once_per_place_whatever_the_task(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("default")
    with zfarm.Executor(max_workers=2) as farm:
        loud = farm.options(output="forward")
        for future in [loud.submit(warn, n) for n in range(6)]:
            future.result(30)
    shown = [(w.category, str(w.message), w.filename) for w in recwarn.list]

    assert shown.count((DeprecationWarning, "always the same", __file__)) == 1
    assert {text for kind, text, _ in shown if kind is RuntimeWarning} == {f"number {n}" for n in range(6)}


def test_filters_of_the_client_are_its_own_affair(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "number", RuntimeWarning)
    with zfarm.Executor(max_workers=1) as farm:
        loud = farm.options(output="forward")
        assert loud.submit(warn, 1).result(30) is None  # an error at the client does not make the call fail
        assert loud.submit(warn_oddly).result(30) == "done"
    shown = [(w.category, str(w.message)) for w in recwarn.list]

    assert (DeprecationWarning, "always the same") in shown
    assert (UserWarning, "no.such.module.LocalOne: of a stranger") in shown
    assert any(issubclass(kind, UserWarning) and "('a', 'b')" in text for kind, text in shown)
    assert not [text for _, text in shown if text.startswith("number")]


def test_a_flood_of_records_is_cut_with_a_notice_and_its_end_comes(caplog: pytest.LogCaptureFixture) -> None:
    with zfarm.Executor(max_workers=1) as farm:
        farm.options(output="forward").submit(flood, 40_000).result(60)

    records = said(caplog, "flood")
    assert len(records) < 40_000
    assert records[-1] == f"{39_999:0200d}"
    assert [text for text in said(caplog, "zfarm") if "bytes of log records of flood #1" in text]


def test_the_last_record_before_a_crash_is_in_the_error(caplog: pytest.LogCaptureFixture) -> None:
    with zfarm.Executor(max_workers=1) as farm:
        future = farm.options(output="forward", max_attempts=1).submit(log_and_crash)
        error = future.exception(30)

    assert isinstance(error, zfarm.TaskLost)
    assert "ERROR:last:the last words" in error.deaths[-1].stderr
    assert said(caplog, "last") == ["the last words"]
