"""What a farm over TCP survives: stopped, killed and cut-off processes of every kind, one after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import wait
from functools import partial
from pathlib import Path

import psutil
import pytest

import zfarm
from tests.face.processes import ROOT, TcpFarm, environment, wait_until

pytestmark = pytest.mark.timeout(120)

BLIND = """
import pickle, _pickle, sys
def blind(*args, **kwargs):
    raise SystemExit("the broker tried to unpickle")
for module in (pickle, _pickle):
    for name in ("load", "loads", "Unpickler", "dump", "dumps", "Pickler"):
        setattr(module, name, blind)
sys.modules["cloudpickle"] = None
from zfarm.face.cli import main
sys.exit(main())
"""


def mark(path: str, number: int) -> int:
    """Leave a line that this call ran, and where."""
    with open(path, "a") as file:
        file.write(f"{number} {os.getppid()}\n")
    return number


def marked(path: Path) -> Counter[int]:
    """How often each number ran."""
    if not path.exists():
        return Counter()
    return Counter(int(line.split()[0]) for line in path.read_text().splitlines())


def hold(path: str, number: int, until: str) -> int:
    """Mark, and stay until there is a file ``until``."""
    import time as clock

    mark(path, number)
    while not os.path.exists(until):
        clock.sleep(0.01)
    return number


def hold_alone(lock: str, runs: str) -> str:
    """Hold a lock for ever, in the first run; the second one says whether it is free."""
    import fcntl
    import time as clock

    again = os.path.exists(runs)
    with open(lock, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "both at once"
        if again:
            return "the first is gone"
        mark(runs, 1)
        while True:
            clock.sleep(1)


def test_a_broker_that_cannot_unpickle_runs_a_farm(farm: TcpFarm) -> None:
    broker = farm.start(
        "broker", "--bind", "tcp://127.0.0.1:0", "--connection", str(farm.connection), program=["-c", BLIND]
    )
    wait_until(lambda: broker.process.poll() is not None or "program" in broker.out.read_text(), "broker")
    farm.start_worker(2)

    with zfarm.Executor(farm.connection) as client:
        assert list(client.map(lambda x: x * x, range(1000))) == [x * x for x in range(1000)]
        assert isinstance(client.submit(lambda: 1 / 0).exception(), ZeroDivisionError)
    assert broker.process.poll() is None, broker.said


def test_a_stopped_worker_loses_its_leases_and_is_welcome_again(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    first = farm.start_worker(1)
    farm.wait_slots(1)
    runs, go = tmp_path / "runs", tmp_path / "go"
    with zfarm.Executor(farm.connection) as client:
        held = client.submit(hold, str(runs), 1, str(go))
        wait_until(lambda: marked(runs)[1] == 1, "the call runs")
        os.kill(first.pid, signal.SIGSTOP)
        try:
            farm.start_worker(1)
            wait_until(lambda: marked(runs)[1] == 2, "the lease of the stopped worker moves")
        finally:
            os.kill(first.pid, signal.SIGCONT)
        farm.wait_slots(2)
        go.touch()

        assert held.result(30) == 1
        assert sorted(client.map(mark, [str(runs)] * 20, range(100, 120))) == list(range(100, 120))
    assert marked(runs)[1] == 2


def test_an_exclusive_call_of_a_worker_that_is_stopped_ends_before_it_runs_elsewhere(
    farm: TcpFarm, tmp_path: Path
) -> None:
    farm.start_broker()
    first = farm.start_worker(1)
    farm.wait_slots(1)
    lock, runs = tmp_path / "lock", tmp_path / "runs"
    with zfarm.Executor(farm.connection) as client:
        alone = client.options(exclusive=True).submit(hold_alone, str(lock), str(runs))
        wait_until(runs.exists, "the call runs")
        os.kill(first.pid, signal.SIGSTOP)
        try:
            farm.start_worker(1)
            assert alone.result(30) == "the first is gone"
        finally:
            os.kill(first.pid, signal.SIGCONT)


@pytest.mark.parametrize("journal", [(), ("--journal", "none")], ids=["journal", "no journal"])
def test_a_broker_that_is_killed_and_started_again_loses_nothing(
    farm: TcpFarm, tmp_path: Path, journal: tuple[str, ...]
) -> None:
    broker = farm.start_broker(*journal)
    port = farm.port
    farm.start_worker(2)
    farm.wait_slots(2)
    runs, go = tmp_path / "runs", tmp_path / "go"
    with zfarm.Executor(farm.connection) as client:
        held = [client.submit(hold, str(runs), n, str(go)) for n in range(2)]
        wait_until(lambda: len(marked(runs)) == 2, "both calls run")
        queued = [client.submit(mark, str(runs), n) for n in range(100, 300)]
        os.kill(broker.pid, signal.SIGKILL)
        broker.wait()
        farm.start_broker(*journal, port=port)
        more = [client.submit(mark, str(runs), n) for n in range(300, 310)]
        go.touch()

        assert [future.result(60) for future in held] == [0, 1]
        assert [future.result(60) for future in (*queued, *more)] == list(range(100, 310))
    assert {n for n, count in marked(runs).items() if count > 1} <= {0, 1}, (
        "nobody died under the queued calls"
    )


def test_a_client_that_is_interrupted_leaves_the_farm_healthy(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    farm.start_worker(2)
    farm.wait_slots(2)
    runs, never = tmp_path / "runs", tmp_path / "never"
    program = (
        "import sys, zfarm\n"
        "from tests.integration.test_faults import hold\n"
        "with zfarm.Executor(sys.argv[1]) as client:\n"
        "    futures = [client.submit(hold, sys.argv[2], n, sys.argv[3]) for n in range(50)]\n"
        "    for future in futures: future.result()\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", program, str(farm.connection), str(runs), str(never)],
        cwd=ROOT, env=environment(tmp_path), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: len(marked(runs)) == 2, "two calls run")
    client.send_signal(signal.SIGINT)
    _, said = client.communicate(timeout=30)

    assert client.returncode == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")
    wait_until(lambda: farm.status()["tasks"]["running"] == 0, "its calls are stopped")
    with zfarm.Executor(farm.connection) as other:
        assert list(other.map(mark, [str(runs)] * 5, range(900, 905))) == list(range(900, 905))
    assert len(marked(runs)) == 7, "what waited never ran"


def test_calls_of_a_client_that_was_killed_end_after_the_grace(farm: TcpFarm, tmp_path: Path) -> None:
    runs, never = tmp_path / "runs", tmp_path / "never"
    farm.variables = {"ZFARM_CLIENT_LOST_AFTER_S": "1.5", "ZFARM_CLIENT_GRACE_S": "0.5"}
    farm.start_broker()
    farm.start_worker(1)
    program = (
        "import sys, zfarm\n"
        "from tests.integration.test_faults import hold\n"
        "client = zfarm.Executor(sys.argv[1])\n"
        "client.submit(hold, sys.argv[2], 1, sys.argv[3]).result()\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", program, str(farm.connection), str(runs), str(never)],
        cwd=ROOT, env=environment(tmp_path),
    )  # fmt: skip
    wait_until(lambda: marked(runs)[1] == 1, "the call runs")
    client.kill()
    client.wait()

    wait_until(lambda: farm.status()["tasks"]["running"] == 0, "its call is stopped")
    with zfarm.Executor(farm.connection) as other:
        assert other.submit(mark, str(runs), 2).result(30) == 2


def test_100_calls_survive_workers_that_are_killed_all_the_time(farm: TcpFarm, tmp_path: Path) -> None:
    farm.variables = {"ZFARM_WORKER_LOST_AFTER_S": "2.5"}
    farm.start_broker()
    workers = [farm.start_worker(2) for _ in range(2)]
    farm.wait_slots(4)
    runs = tmp_path / "runs"
    with zfarm.Executor(farm.connection) as client:
        futures = [client.submit(slow_mark, str(runs), n) for n in range(100)]
        for _ in range(3):
            enough = len(marked(runs)) + 5
            wait_until(partial(lambda enough: len(marked(runs)) > enough, enough), "calls run")
            victim = workers.pop(0)
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
            workers.append(farm.start_worker(2))
        done, late = wait(futures, timeout=90)

        assert not late
        assert sorted(future.result() for future in done) == list(range(100))


def slow_mark(path: str, number: int) -> int:
    """A call that takes a moment."""
    import time as clock

    clock.sleep(0.05)
    return mark(path, number)


def test_a_worker_whose_nursery_is_killed_ends_with_an_error_and_loses_nothing(
    farm: TcpFarm, tmp_path: Path
) -> None:
    farm.start_broker()
    worker = farm.start_worker(1)
    farm.wait_slots(1)
    runs, go = tmp_path / "runs", tmp_path / "go"
    with zfarm.Executor(farm.connection) as client:
        future = client.submit(hold, str(runs), 1, str(go))
        wait_until(lambda: marked(runs)[1] == 1, "it runs")
        (nursery,) = psutil.Process(worker.pid).children()
        nursery.kill()
        assert worker.wait() == 70, "whoever runs services starts it anew"
        go.touch()
        farm.start_worker(1)
        assert future.result(60) == 1


def leave_behind(path: str) -> None:
    """A call that starts a process in a session of its own, and goes on."""
    stray = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path(path).write_text(f"{stray.pid} {os.getppid()} .")
    stray.wait()


def left_behind(path: Path) -> tuple[psutil.Process, psutil.Process]:
    """What such a call has left behind, and the nursery of its child."""
    wait_until(lambda: path.exists() and path.read_text().endswith("."), "it runs")
    stray, nursery, _ = path.read_text().split()
    return psutil.Process(int(stray)), psutil.Process(int(nursery))


def test_what_calls_have_left_behind_ends_though_its_nursery_is_killed(farm: TcpFarm, tmp_path: Path) -> None:
    farm.start_broker()
    worker = farm.start_worker(1)
    farm.wait_slots(1)
    with zfarm.Executor(farm.connection) as client:
        client.submit(leave_behind, str(tmp_path / "pids"))
        stray, nursery = left_behind(tmp_path / "pids")
        nursery.kill()
        assert worker.wait() == 70
        assert not stray.is_running()
        client.shutdown(wait=False, cancel_futures=True)


def test_a_process_that_no_call_has_started_outlives_the_worker(farm: TcpFarm, tmp_path: Path) -> None:
    """A script begins something beside, and becomes the worker by ``exec``."""
    farm.start_broker()
    aside = tmp_path / "aside"
    begin = f'sleep 300 & echo $! > "{aside}"; exec "$@"'
    farm.before = ["sh", "-c", begin, "sh"]
    worker = farm.start_worker(1)
    farm.wait_slots(1)
    beside = psutil.Process(int(aside.read_text()))
    assert beside.ppid() == worker.pid
    worker.process.terminate()
    assert worker.wait() == 0

    assert beside.is_running()
    beside.kill()


def test_what_calls_have_left_behind_ends_though_the_nursery_of_an_embedded_farm_is_killed(
    tmp_path: Path,
) -> None:
    with zfarm.Executor(1) as farm:
        running = farm.options(retries=0).submit(leave_behind, str(tmp_path / "pids"))
        stray, nursery = left_behind(tmp_path / "pids")
        nursery.kill()
        assert isinstance(running.exception(60), zfarm.TaskLost)
        wait_until(lambda: not stray.is_running(), "the farm has ended")
        assert farm.submit(abs, -1).result(60) == 1
