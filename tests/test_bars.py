"""Progress bars: what they show in a terminal, and that they show nothing elsewhere."""

from __future__ import annotations

import io
import sys
import time
import warnings
from collections.abc import Generator
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

import zfarm
from tests.face.processes import wait_until
from zfarm.drawing import Bars, Pace
from zfarm.loading import bar

pytestmark = pytest.mark.timeout(60)


def terminal() -> Console:
    """A terminal whose screen can be read."""
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def screen(console: Console) -> str:
    """All that was ever drawn."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def last_bar(console: Console) -> str:
    """The bar as it was left."""
    return [line for line in screen(console).splitlines() if "━" in line][-1]


def fail_at_3(n: int) -> int:
    """Fail at 3."""
    if n == 3:
        raise ValueError(n)
    return n


def tell_and_wait(gate: str) -> None:
    """Say how far it is, then wait for a file."""
    zfarm.progress(30, 200, "learning")
    while not Path(gate).exists():
        time.sleep(0.005)


def test_it_counts_what_ends_and_what_fails() -> None:
    console = terminal()
    with zfarm.Executor(max_workers=2) as farm:
        futures = [farm.submit(fail_at_3, n) for n in range(20)]
        ended = farm.as_completed(futures)
        assert len(ended) == 20
        seen = list(zfarm.track(ended, description="numbers", console=console))

    assert set(seen) == set(futures)
    last = last_bar(console)
    assert "numbers" in last
    assert "20/20" in last
    assert "/s" in last
    assert "1 failed" in last


def test_it_shows_what_tasks_say_of_themselves(tmp_path: Path) -> None:
    console = terminal()
    gate = tmp_path / "gate"
    with zfarm.Executor(max_workers=2) as farm:
        slow: zfarm.Future[Any] = farm.submit(tell_and_wait, str(gate))
        quick: zfarm.Future[Any] = farm.submit(pow, 2, 2)
        loop = zfarm.track(farm.as_completed([slow, quick]), console=console)
        assert next(loop) is quick
        wait_until(lambda: "learning" in screen(console), "the bar of the task")
        gate.touch()
        assert list(loop) == [slow]

    assert "tell_and_wait learning" in screen(console)
    assert "30/200" in screen(console).replace(" ", "")


def test_a_task_may_have_told_something_before_it_is_looked_at(tmp_path: Path) -> None:
    """Found in a terminal, where the loop began later than the calls: it ended with an error of rich."""
    console = terminal()
    gate = tmp_path / "gate"
    with zfarm.Executor(max_workers=1) as farm:
        future: zfarm.Future[Any] = farm.submit(tell_and_wait, str(gate))
        wait_until(lambda: future.progress, "progress")
        loop = zfarm.track(farm.as_completed([future]), console=console)
        gate.touch()
        assert list(loop) == [future]

    assert "1/1" in last_bar(console)


def test_a_long_note_leaves_room_for_the_count() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    future: Any = Future()
    future._name, future.progress = "work", zfarm.Progress(1, 2, "one\ntwo\x1b[2J " + "three " * 100)
    bars = Bars([future], console)
    with bars:
        bars.add_task("tasks", total=8, failed=0, pace=Pace())
    lines = screen(console).splitlines()

    assert any("  work one two[2J three thr… " in line and "1/2" in line for line in lines)
    assert any("tasks " in line and "0/8" in line for line in lines)
    assert not any("\x1b[2J" in line for line in lines)


def test_without_a_terminal_nothing_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    console = Console(file=io.StringIO())
    assert list(zfarm.track([1, 2], console=console)) == [1, 2]
    assert screen(console) == ""
    with zfarm.Executor(max_workers=1) as farm:
        assert list(farm.map(abs, [-1, -2], progress=True)) == [1, 2]
    assert capfd.readouterr() == ("", "")


def test_a_pipe_is_no_terminal_whatever_is_said_of_colours(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Found in a log of a CI, which sets FORCE_COLOR: it was full of bars."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(zfarm.track([1, 2])) == [1, 2]
    with bar("file", 10) as moved:
        moved(10)
    assert capfd.readouterr() == ("", "")


def test_whoever_interrupts_the_loop_is_no_failed_call() -> None:
    console = terminal()

    def interrupted() -> Generator[int, None, None]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(zfarm.track(interrupted(), 5, console=console))
    assert "1/5" in last_bar(console)
    assert "failed" not in screen(console)


def test_whoever_waits_no_longer_has_seen_no_call_fail() -> None:
    console = terminal()
    with zfarm.Executor(max_workers=1) as farm:
        future = farm.submit(time.sleep, 600)
        with pytest.raises(TimeoutError):
            list(zfarm.track(farm.as_completed([future], timeout=0.01), console=console))
        future.cancel(force=True)
    assert "0/1" in screen(console)
    assert "failed" not in screen(console)


def test_a_map_has_a_bar_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    monkeypatch.setattr("rich.console.Console", lambda **_options: console)
    with zfarm.Executor(max_workers=2) as farm:
        assert list(farm.map(abs, range(-500, 0), progress=True)) == list(range(500, 0, -1))
        assert "500/500" in screen(console)
        failing = farm.map(fail_at_3, (n for n in range(10)), progress=True)
        assert [next(failing) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="3"):
            next(failing)

    assert "1 failed" in last_bar(console)


def test_leaving_the_loop_closes_what_it_was_over() -> None:
    closed = []

    def numbers() -> Generator[int, None, None]:
        try:
            yield from range(10)
        finally:
            closed.append(True)

    for console in (terminal(), Console(file=io.StringIO())):
        loop = zfarm.track(numbers(), console=console)
        assert next(loop) == 0
        loop.close()  # type: ignore[attr-defined]
    assert closed == [True, True]


def test_a_cancelled_future_counts_as_failed() -> None:
    console = terminal()
    future: Future[int] = Future()
    future.cancel()
    assert list(zfarm.track([future], console=console)) == [future]
    assert "1 failed" in screen(console)


def test_a_rate_is_that_of_the_time_that_has_gone_by() -> None:
    """Found on two equal slots, whose calls end together: 90,000 a second, it said, and 0:00:01 left."""
    pace = Pace()
    assert pace.per_s is None
    pace.see(100.0, 0)
    pace.see(104.0, 0)
    assert pace.per_s is None
    pace.see(110.0, 2)
    assert pace.per_s == 0.2
    pace.see(115.0, 2)
    assert pace.per_s == pytest.approx(2 / 15)
    for second in range(116, 200):
        pace.see(float(second), 2 + 3 * (second - 115))
    assert pace.per_s == pytest.approx(3.0)


def test_the_time_left_follows_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    console, now = terminal(), [1000.0]
    bars = Bars([], console)
    monkeypatch.setattr(bars, "get_time", lambda: now[0])
    bar = bars.add_task("tasks", total=1000, failed=0, pace=Pace())
    bars.look()
    now[0] += 20.0
    bars.update(bar, completed=2)
    bars.look()
    console.print(bars.make_tasks_table(bars.tasks))

    assert "0.1/s" in screen(console)
    assert "2:46:20" in screen(console)


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_keeps_how_it_has_ended(monkeypatch: pytest.MonkeyPatch, widgets: bool) -> None:
    drawn: list[str] = []

    class Output:
        def __enter__(self) -> None:
            return None

        def __exit__(self, *exc_info: object) -> None:
            return None

        def clear_output(self, wait: bool) -> None:
            drawn.clear()

    def display(shown: Any) -> None:
        if not isinstance(shown, Output):
            drawn.append(shown.text)

    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake := ModuleType("IPython.display"))
    monkeypatch.setattr(fake, "display", display, raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", ModuleType("ipywidgets") if widgets else None)
    if widgets:
        monkeypatch.setattr(sys.modules["ipywidgets"], "Output", Output, raising=False)
    console = Console(force_jupyter=True, color_system=None)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", 'install "ipywidgets"')
        assert len(list(zfarm.track(range(7), console=console))) == 7
        assert "7/7" in "".join(drawn)

        drawn.clear()
        with bar("data", 2000, console=console) as moved:
            moved(1000)
        assert "2.0/2.0 kB" in "".join(drawn)
