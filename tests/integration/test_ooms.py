"""Workers in a small memory control group: whom the kernel kills there, what is told of it, who goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

import zfarm
from tests.face.processes import TcpFarm, wait_until
from tests.integration.groups import NotAllowed, kills, memory_group, start_worker_in
from tests.integration.test_faults import hold, marked
from zfarm.errors import TaskLost

pytestmark = pytest.mark.timeout(120)

MB = 1_000_000
GROUP = 300 * MB


@pytest.fixture
def group(farm: TcpFarm) -> Iterator[Path]:
    """A memory control group of 300 MB; the farm ends before it goes."""
    with ExitStack() as stack:
        try:
            place = stack.enter_context(memory_group(GROUP))
        except NotAllowed as reason:
            pytest.skip(f"no control groups of memory here: {reason}")
        stack.callback(farm.close)
        yield place


def lost(farm: zfarm.Executor, fn: Callable[..., Any], *args: Any) -> TaskLost:
    """How that call ends."""
    error = farm.submit(fn, *args).exception(60)
    assert type(error) is TaskLost, error
    return error


def test_a_child_that_the_kernel_kills_for_lack_of_memory(farm: TcpFarm, group: Path) -> None:
    farm.start_broker()
    start_worker_in(group, farm, 1)
    farm.wait_slots(1)
    with zfarm.Executor(farm.connection) as executor:
        (death,) = lost(executor.options(max_attempts=1), bytearray, 2 * GROUP).deaths
        assert executor.submit(abs, -1).result(60) == 1, "the worker lives"

    assert death.signal == signal.SIGKILL
    assert "control group" in death.oom
    assert "likely for lack of memory" in death.text
    assert death.peak_bytes > 200 * MB


def test_neighbours_of_what_the_kernel_kills_lose_nothing_and_no_other_limit_is_blamed(
    farm: TcpFarm, group: Path
) -> None:
    farm.start_broker()
    worker = start_worker_in(group, farm, 3)
    farm.wait_slots(3)
    runs, go = farm.directory / "runs", farm.directory / "go"
    with zfarm.Executor(farm.connection) as executor:
        near = [executor.submit(hold, str(runs), n, str(go)) for n in range(2)]
        wait_until(lambda: len(marked(runs)) == 2, "the neighbours run")
        thrice = lost(executor, bytearray, 2 * GROUP)
        limited = lost(executor.options(memory="2GB"), bytearray, 2 * GROUP)
        once = lost(executor.options(retries=0), bytearray, 2 * GROUP)
        assert kills(group) == 7
        go.touch()
        assert [future.result(60) for future in near] == [0, 1]

    assert set(marked(runs).values()) == {1}, "what only ran beside is not run again"
    assert worker.process.poll() is None
    assert [len(error.deaths) for error in (thrice, limited, once)] == [3, 3, 1]
    for death in (*thrice.deaths, *limited.deaths, *once.deaths):
        assert (death.signal, death.worker) == (signal.SIGKILL, f"{death.host}/{worker.pid}")
        assert "control group" in death.oom
    assert "(3 times)" in str(thrice), "all three are told alike, and so at once"
    assert "below its memory limit of 2000.0 MB" in str(limited)
    assert "refused" not in str(limited)


def fill(runs: str, number: int, size: int, go: str, end: str) -> int:
    """Have so much memory in use from when there is a file ``go``, and stay until there is one ``end``."""
    hold(runs, number, go)
    held = bytearray(size)
    hold(runs, number, end)
    return len(held)


@pytest.mark.parametrize("victim", ["worker", "nursery"])
def test_if_the_kernel_takes_the_worker_or_its_nursery_all_goes_on_elsewhere(
    farm: TcpFarm, group: Path, victim: str
) -> None:
    farm.start_broker()
    worker = start_worker_in(group, farm, 4)
    farm.wait_slots(4)
    runs, go, end = (farm.directory / name for name in ("runs", "go", "end"))
    part = GROUP // 2
    with zfarm.Executor(farm.connection) as executor:
        eaters = [executor.submit(fill, str(runs), n, part, str(go), str(end)) for n in range(2)]
        near = executor.submit(hold, str(runs), 2, str(end))
        once = executor.options(retries=0).submit(hold, str(runs), 3, str(end))
        wait_until(lambda: len(marked(runs)) == 4, "all of them run")
        farm.start_worker(4)
        farm.wait_slots(8)
        (nursery,) = psutil.Process(worker.pid).children()
        first = worker.pid if victim == "worker" else nursery.pid
        Path(f"/proc/{first}/oom_score_adj").write_text("1000")  # none of the children has as much
        go.touch()
        assert worker.wait() == (-signal.SIGKILL if victim == "worker" else os.EX_SOFTWARE)
        assert kills(group) >= 1
        end.touch()
        assert [future.result(60) for future in (*eaters, near)] == [part, part, 2]
        error = once.exception(60)

    assert isinstance(error, TaskLost), error
    (death,) = error.deaths
    if victim == "worker":
        assert "was lost: silent" in death.text, "who could have told more is gone"
    else:
        assert "killed with the nursery" in death.text
        assert "control group" in death.oom
        assert "likely for lack of memory" in str(error)
