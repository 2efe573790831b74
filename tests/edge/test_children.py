"""Real child processes: how they run, answer, wait, stop, and above all die."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests.edge.rig import Rig
from zfarm.edge.child import current
from zfarm.edge.pipe import PIPE_LOST
from zfarm.messages import VALUE


@pytest.fixture
def rig():
    with Rig() as made:
        yield made


def keywords(**words):
    return words


def number(n):
    return n


def die(how=signal.SIGKILL):
    os.kill(os.getpid(), how)
    time.sleep(60)


def leave(code):
    os._exit(code)


def touch_and_wait(path, go=None):
    with open(path, "a") as file:
        file.write("x")
    while go is not None and not os.path.exists(go):
        time.sleep(0.002)
    return "went"


def sleep_long():
    time.sleep(60)


def test_calls_are_answered_in_order(rig):
    seqs = rig.send(*[(number, n) for n in range(500)])
    assert [rig.outcome(seq)[0] for seq in seqs] == list(range(500))
    assert [seq for _, seq in rig.order] == seqs


def test_keyword_arguments_of_any_name_arrive(rig):
    assert rig.call(keywords, self=1, fn=2, timeout=3) == {"self": 1, "fn": 2, "timeout": 3}


def test_a_child_that_is_killed_costs_the_started_call_alone(rig, tmp_path):
    seqs = rig.send((number, 1), (number, 2), (die,), (touch_and_wait, str(tmp_path / "never")))
    rig.until(lambda: rig.deaths)

    assert [rig.outcome(seq)[0] for seq in seqs[:2]] == [1, 2]
    started, number_of_signal, exit_code, text = rig.deaths[1]
    assert (started, number_of_signal, exit_code) == (seqs[2], signal.SIGKILL, 0)
    assert "killed by SIGKILL" in text
    assert not (tmp_path / "never").exists()


def test_a_segmentation_fault_is_told_as_one(rig):
    rig.send((die, signal.SIGSEGV))
    rig.until(lambda: rig.deaths)
    assert rig.deaths[1][1:] == (signal.SIGSEGV, 0, "killed by SIGSEGV")


def test_an_exit_without_goodbye_tells_its_code(rig):
    rig.send((leave, 3))
    rig.until(lambda: rig.deaths)
    assert rig.deaths[1][1:3] == (0, 3)
    assert "exited with code 3" in rig.deaths[1][3]


def test_results_that_were_not_sent_are_found_in_the_page(rig):
    """All calls are known to be short, so their results wait in the page when the last one dies."""
    rig.call(number, 0)
    rig.call(number, 0)
    rig.call(maybe_die, False)
    rig.call(maybe_die, False)
    seqs = rig.send(*[(number, n) for n in range(20)], (maybe_die, True))
    rig.until(lambda: rig.deaths)

    assert [rig.outcome(seq)[0] for seq in seqs[:-1]] == list(range(20))
    assert rig.deaths[1][0] == seqs[-1]


def maybe_die(now):
    if now:
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_has_not_started_is_taken_back_and_never_runs(rig, tmp_path):
    go, ran = tmp_path / "go", tmp_path / "ran"
    first, second = rig.send((touch_and_wait, str(tmp_path / "first"), str(go)), (touch_and_wait, str(ran)))
    rig.until((tmp_path / "first").exists)
    rig.children.take_back(1)
    rig.until(lambda: rig.took_back)
    go.touch()
    rig.outcome(first)

    assert rig.took_back == {1: first}
    assert rig.call(number, 5) == 5, "calls that come later do run"
    assert not ran.exists()
    assert (1, second) not in rig.outcomes


def test_taking_back_finds_results_that_wait_behind_a_long_call(rig, tmp_path):
    go = tmp_path / "go"
    go.touch()
    for _ in range(3):
        rig.call(touch_and_wait, str(tmp_path / "x"), str(go))
        rig.call(number, 0)
    go.unlink()
    seqs = rig.send((number, 1), (number, 2), (touch_and_wait, str(tmp_path / "first"), str(go)), (number, 3))
    rig.until((tmp_path / "first").exists)
    rig.children.take_back(1)
    rig.until(lambda: rig.took_back)

    assert rig.took_back == {1: seqs[2]}
    assert [rig.outcomes[1, seq][0].kind for seq in seqs[:2]] == [VALUE, VALUE]
    go.touch()
    assert rig.outcome(seqs[2])[0] == "went"


def test_a_stopped_child_leaves_and_runs_its_exit_handlers(rig, tmp_path):
    rig.call(at_exit, str(tmp_path / "left"))
    rig.children.stop(1, kill=False)
    rig.until(lambda: rig.deaths)
    assert rig.deaths[1][1:] == (0, 0, "stopped")
    assert (tmp_path / "left").exists()


def at_exit(path):
    import atexit
    from pathlib import Path

    atexit.register(Path(path).touch)


def test_a_child_that_does_not_leave_is_killed(rig, tmp_path):
    rig.children._limits = type(rig.children._limits)(stop_grace_s=0.05)
    rig.send((touch_and_wait, str(tmp_path / "x"), str(tmp_path / "never")))
    rig.until((tmp_path / "x").exists)
    rig.children.stop(1, kill=False)
    rig.until(lambda: rig.deaths)
    assert rig.deaths[1][1] == signal.SIGKILL
    assert "did not leave within 0.05 s" in rig.deaths[1][3]


def test_killing_takes_the_whole_process_group(rig):
    pid = rig.call(start_program)
    assert psutil.pid_exists(pid)
    rig.children.stop(1, kill=True)
    rig.until(lambda: rig.deaths)
    assert rig.deaths[1][3] == "killed on request"
    rig.until(lambda: gone(pid))


def start_program():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def close_everything():
    os.closerange(3, 4096)
    return "closed"


def test_a_task_that_closes_its_pipe_harms_itself_only(rig):
    rig.send((close_everything,))
    rig.until(lambda: rig.deaths)
    assert rig.deaths[1][1:3] == (0, PIPE_LOST)
    assert "closed file descriptors" in rig.deaths[1][3]
    assert rig.send((number, 4), child=2)
    assert rig.outcome(1, child=2)[0] == 4


def write_garbage():
    for name in os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.write(int(name), b"\xffgarbage" * 100)
    time.sleep(60)


def test_garbage_on_the_pipe_kills_the_child(rig):
    rig.send((write_garbage,))
    rig.until(lambda: rig.deaths)
    assert rig.deaths[1][1] == signal.SIGKILL
    assert "garbage on the pipe" in rig.deaths[1][3]


def fork_and_come_back():
    return os.fork() == 0


def test_a_fork_that_comes_back_from_a_task_answers_nothing(rig):
    assert rig.call(fork_and_come_back) is False
    assert rig.call(number, 1) == 1


def fork_and_stay(path):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        assert current() is None
        while not os.path.exists(path):
            time.sleep(0.005)
        os._exit(0)
    return pid


def test_a_process_that_a_task_leaves_behind_does_not_hold_the_pipe(rig, tmp_path):
    pid = rig.call(fork_and_stay, str(tmp_path / "go"))
    rig.send((die,))
    rig.until(lambda: rig.deaths)
    assert not gone(pid)
    (tmp_path / "go").touch()
    rig.until(lambda: gone(pid))


def test_a_large_value_comes_home_whole(rig):
    data = os.urandom(20_000_000)
    assert rig.call(number, data) == data


def test_a_child_that_does_not_read_does_not_block(rig, tmp_path):
    go = tmp_path / "go"
    rig.send((touch_and_wait, str(tmp_path / "x"), str(go)))
    began = time.monotonic()
    seqs = rig.send(*[(len, bytes(1_000_000)) for _ in range(30)])
    assert time.monotonic() - began < 5
    go.touch()
    assert [rig.outcome(seq)[0] for seq in seqs] == [1_000_000] * 30


def printing():
    print("x" * 300_000)


def test_output_reaches_file_descriptor_1(capfd):
    with Rig() as rig:
        rig.call(printing)
    seen = capfd.readouterr().out.count("x")
    assert seen == 300_000


def world():
    return {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "terminate": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "stdin": sys.stdin is None or os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev,
        "cwd": os.getcwd(),
        "path": list(sys.path),
        "daemon": __import__("multiprocessing").current_process().daemon,
        "sockets": sum(1 for fd in os.listdir("/proc/self/fd") if is_socket(int(fd)))
        if os.path.isdir("/proc/self/fd")
        else 2,
    }


def is_socket(fd):
    try:
        with socket.socket(fileno=os.dup(fd)):
            return True
    except OSError:
        return False


def test_the_world_of_a_child_is_that_of_its_client(rig):
    seen = rig.call(world)
    assert seen["session"] == seen["pid"] != os.getsid(0)
    assert seen["interrupt"]
    assert seen["terminate"]
    assert seen["stdin"]
    assert seen["cwd"] == os.getcwd()
    assert seen["path"] == sys.path
    assert not seen["daemon"]
    assert seen["sockets"] == 2, "its pipe and its tunnel, and nothing of its worker"


def draw():
    import random

    import numpy as np

    return random.random(), np.random.rand()


def test_children_draw_different_numbers(rig):
    rig.send((draw,), child=1)
    rig.send((draw,), child=2)
    one, two = rig.outcome(1, child=1)[0], rig.outcome(1, child=2)[0]
    assert one[0] != two[0]
    assert one[1] != two[1]


def wait_inside():
    here = current()
    assert here is not None
    with here.waits(), here.waits():
        pass
    return here.realm, here.seq


def test_a_call_can_say_that_it_waits(rig):
    assert rig.call(wait_inside) == ("realm", 1)
    assert rig.waits == [(1, True), (1, False)]


def speak_through_the_tunnel(size):
    import select

    here = current()
    assert here is not None
    port = here.tunnel
    port.send([b"hello", b"x" * size])
    while not port.flush():
        select.select((), (port,), ())
    while True:
        select.select((port,), (), ())
        for heard in port.receive() or ():
            return [bytes(frame) for frame in heard]


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_client_in_a_task_speaks_through_the_tunnel(rig, size):
    (seq,) = rig.send((speak_through_the_tunnel, size))
    rig.until(lambda: rig.tunnels)
    assert rig.tunnels == [(1, [b"hello", b"x" * size])]
    rig.children.tunnel_send(1, [b"back", b"y" * size])
    assert rig.outcome(seq)[0] == [b"back", b"y" * size]
    rig.send((die,))
    rig.until(lambda: rig.deaths)
    assert rig.tunnels_closed == [1]


def test_the_death_of_the_nursery_is_the_death_of_all(rig):
    rig.call(number, 1)
    rig.send((sleep_long,), child=2)
    rig.until(lambda: 2 in rig.started)
    os.kill(rig.nursery.pid, signal.SIGKILL)
    rig.until(lambda: rig.nursery_deaths)
    assert sorted(rig.deaths) == [1, 2]
    assert all("nursery" in death[3] for death in rig.deaths.values())


WORKER = """
import os, signal, sys, time
from tests.edge.rig import Rig
def sleep_long(): time.sleep(60)
rig = Rig()
rig.send((sleep_long,))
rig.until(lambda: rig.started)
print(rig.nursery.pid, *rig.children.pids().values(), flush=True)
time.sleep(60)
"""


def test_a_worker_that_is_killed_leaves_no_process():
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pids = [int(word) for word in worker.stdout.readline().split()]
        worker.kill()
    for pid in pids:  # orphans: nobody but the kernel can be asked, and it answers at once or never
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(10)


def test_many_children_at_once(rig):
    for child in range(1, 21):
        rig.send((os.getpid,), child=child)
    pids = {rig.outcome(1, child=child)[0] for child in range(1, 21)}
    assert len(pids) == 20
    # the nursery may tell of one after its outcome
    rig.until(lambda: set(rig.children.pids().values()) == pids)


def mark(path, seq, wait_s):
    with open(path, "ab", buffering=0) as file:
        file.write(b"%d\n" % seq)
    end = time.perf_counter() + wait_s
    while time.perf_counter() < end:
        pass
    return seq


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_the_books_are_right(rig, tmp_path, seed):
    """Calls, takings back and a kill at any moment: what ran was told, or is the one that was running."""
    dice = random.Random(seed)
    path = tmp_path / "ran"
    path.touch()
    void: set[int] = set()
    last = 0
    for _ in range(dice.randrange(1, 12)):
        calls = [
            (mark, str(path), last + 1 + n, dice.choice((0, 0, 0.0005, 0.004)))
            for n in range(dice.randrange(1, 60))
        ]
        last = rig.send(*calls)[-1]
        if dice.random() < 0.6:
            rig.loop.turn(dice.random() * 0.01)
        if dice.random() < 0.5:
            rig.took_back.clear()
            rig.children.take_back(1)
            rig.until(lambda: rig.took_back)
            void.update(range(rig.took_back[1] + 1, last + 1))
    rig.loop.turn(dice.random() * 0.02)
    rig.until(lambda: rig.started)
    os.kill(rig.children.pids()[1], signal.SIGKILL)
    rig.until(lambda: rig.deaths)

    started = rig.deaths[1][0]
    ran = [int(line) for line in path.read_text().split()]
    told = {seq for _, seq in rig.outcomes}
    assert ran == sorted(set(ran)), "in order, and none twice"
    assert set(ran).isdisjoint(void)
    assert max(ran, default=0) <= started
    assert told <= set(ran)
    assert set(range(1, started)) - void <= told, "all before the running one were told"
