"""The loop: every source is served, every deadline met, no wake-up lost, and machines run dry each turn."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import pytest
import zmq

from zfarm.edge.loop import Loop

DEADLINE_S = 20.0


@pytest.fixture(params=[False, True], ids=["epoll", "portable"])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    loop = Loop(portable=request.param)
    yield loop
    loop.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def turn_until(loop: Loop, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        loop.turn(0.5)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.001)


class Recorder:
    """A machine that acts at given times and remembers when it was called."""

    def __init__(self, deadline: float = inf) -> None:
        self.deadline = deadline
        self.calls: list[float] = []
        self.wanted: deque[list[Any]] = deque()

    def want(self, actions: list[Any]) -> None:
        self.wanted.append(actions)
        self.deadline = 0.0

    def advance(self, now: float) -> list[Any]:
        self.calls.append(now)
        assert now >= self.deadline
        self.deadline = 0.0 if len(self.wanted) > 1 else inf
        return self.wanted.popleft() if self.wanted else ["due"]


def test_a_pipe_is_read_when_it_is_written_and_when_it_closes(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    got: list[bytes] = []
    loop.add_source(ours, lambda: got.append(ours.recv(100)))
    loop.turn(0)
    assert not got
    theirs.send(b"one")
    loop.turn(DEADLINE_S)
    theirs.close()
    loop.turn(DEADLINE_S)
    assert got == [b"one", b""]
    loop.remove_source(ours)
    loop.remove_source(ours)
    ours.close()


def test_writability_is_told_only_while_it_is_asked_for(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    ready: list[str] = []
    loop.add_source(ours, lambda: ready.append("read"), lambda: ready.append("write"))
    loop.turn(0)
    assert ready == []
    loop.watch(ours, writable=True)
    loop.turn(0)
    assert ready == ["write"]
    loop.watch(ours, readable=False)
    theirs.send(b"x")
    loop.turn(0)
    assert ready == ["write"]
    loop.watch(ours)
    loop.turn(0)
    assert ready == ["write", "read"]
    loop.remove_source(ours)
    ours.close()
    theirs.close()


def test_a_handler_may_remove_any_source_of_the_same_turn(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    ready: list[int] = []

    def one_only(i: int) -> None:
        ready.append(i)
        for ours, _ in pairs:
            loop.remove_source(ours)

    for i, (ours, theirs) in enumerate(pairs):
        loop.add_source(ours, lambda i=i: one_only(i))  # type: ignore[misc]
        theirs.send(b"x")
    loop.turn(0)
    loop.turn(0)
    assert len(ready) == 1
    for pair in pairs:
        for end in pair:
            end.close()


def test_a_source_under_a_number_that_was_just_closed_is_not_mistaken(loop: Loop) -> None:
    first, first_theirs = socket.socketpair()
    second, second_theirs = socket.socketpair()
    fresh: list[socket.socket] = []
    wrong: list[str] = []

    def swap(ours: socket.socket, other: socket.socket) -> None:
        if fresh:
            return
        for end in (ours, other):
            loop.remove_source(end)
            end.close()
        fresh.extend(socket.socketpair())
        loop.add_source(fresh[0], lambda: wrong.append("served for another"))

    loop.add_source(first, lambda: swap(first, second))
    loop.add_source(second, lambda: swap(second, first))
    first_theirs.send(b"x")
    second_theirs.send(b"x")
    loop.turn(0)
    assert fresh
    assert not wrong
    loop.remove_source(fresh[0])
    for end in (*fresh, first_theirs, second_theirs):
        end.close()


@pytest.mark.parametrize("passive", [False, True])
def test_a_zeromq_socket_is_served_even_when_its_descriptor_stays_silent(
    loop: Loop, context: zmq.Context[Any], passive: bool
) -> None:
    ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ours.bind("inproc://x")
    theirs.connect("inproc://x")
    got: list[bytes] = []
    loop.add_source(ours, lambda: got.append(ours.recv(zmq.NOBLOCK)), passive=passive)
    for number in range(50):
        theirs.send(b"%d" % number)
    assert ours.getsockopt(zmq.EVENTS)  # this look takes the edge away from the descriptor
    began = time.monotonic()
    while len(got) < 50:  # one message a turn: the rest must not wait for another edge
        loop.turn(DEADLINE_S)
    assert time.monotonic() - began < DEADLINE_S / 2
    assert got == [b"%d" % number for number in range(50)]
    loop.remove_source(ours)


def test_a_passive_socket_is_asked_no_more_while_it_is_idle_and_served_when_something_comes(
    loop: Loop, context: zmq.Context[Any]
) -> None:
    ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ours.bind("inproc://x")
    theirs.connect("inproc://x")
    got: list[bytes] = []
    asked: list[int] = []
    loop.add_source(ours, lambda: got.append(ours.recv(zmq.NOBLOCK)), passive=True)
    (entry,) = loop._sockets
    entry.state = lambda option: (asked.append(option), ours.getsockopt(option))[1]  # type: ignore[func-returns-value]
    for _ in range(10):
        loop.turn(0)
    assert len(asked) == 1
    for number in range(20):
        theirs.send(b"%d" % number)
        turn_until(loop, lambda number=number: len(got) == number + 1)  # type: ignore[misc]
    assert got == [b"%d" % number for number in range(20)]
    loop.remove_source(ours)


def test_a_deadline_wakes_its_machine_and_only_then(loop: Loop) -> None:
    performed: list[Any] = []
    machine = Recorder(time.monotonic() + 0.05)
    loop.add_machine(machine, performed.extend)
    due = machine.deadline
    turn_until(loop, lambda: performed)
    assert performed == ["due"]
    assert machine.calls[-1] >= due
    assert len(machine.calls) == 1


def test_machines_that_feed_each_other_run_dry_within_one_turn(loop: Loop) -> None:
    first, second = Recorder(), Recorder()
    seen: list[int] = []

    def feed(other: Recorder) -> Callable[[list[Any]], None]:
        def perform(actions: list[Any]) -> None:
            for number in actions:
                seen.append(number)
                if number:
                    other.want([number - 1])

        return perform

    loop.add_machine(first, feed(second))
    loop.add_machine(second, feed(first))
    second.want([20])
    loop.turn(0)
    assert seen == list(range(20, -1, -1))


def test_machines_that_never_run_dry_do_not_starve_sources(loop: Loop) -> None:
    class Restless(Recorder):
        def advance(self, now: float) -> list[Any]:
            self.calls.append(now)
            return ["more"]

    ours, theirs = socket.socketpair()
    got: list[bytes] = []
    loop.add_source(ours, lambda: got.append(ours.recv(9)))
    machine = Restless(0.0)
    loop.add_machine(machine, lambda actions: None)
    loop.turn()
    theirs.send(b"x")
    loop.turn()  # does not sleep: there is something to do
    assert got == [b"x"]
    assert len(machine.calls) > 1
    loop.remove_source(ours)
    ours.close()
    theirs.close()


def test_an_exception_leaves_run(loop: Loop) -> None:
    class Broken(Recorder):
        def advance(self, now: float) -> list[Any]:
            raise AssertionError("a bug")

    loop.add_machine(Broken(0.0), lambda actions: None)
    with pytest.raises(AssertionError, match="a bug"):
        loop.run()


def test_timers_come_again_until_cancelled_and_later_comes_once(loop: Loop) -> None:
    times: list[float] = []
    once: list[int] = []
    began = time.monotonic()
    timer = loop.add_timer(lambda: times.append(time.monotonic()), 0.01)
    loop.call_later(lambda: once.append(1), 0.015)
    turn_until(loop, lambda: len(times) == 5)
    assert times[4] - began >= 0.05
    timer.cancel()
    loop.turn(0.05)
    assert len(times) == 5
    assert once == [1]


def test_a_flusher_is_called_each_turn_and_when_it_wants(loop: Loop) -> None:
    calls: list[float] = []

    def flush() -> float:
        calls.append(time.monotonic())
        return 0.02 if len(calls) < 4 else inf

    loop.add_flusher(flush)
    turn_until(loop, lambda: len(calls) == 4)
    assert calls[3] - calls[0] >= 0.06
    loop.turn(0.03)
    assert len(calls) == 5


def test_stop_before_run_and_from_another_thread(loop: Loop) -> None:
    loop.stop()
    loop.run()
    thread = threading.Thread(target=loop.run)
    thread.start()
    loop.stop()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("threads", [1, 4])
def test_no_wake_up_is_ever_lost(loop: Loop, threads: int) -> None:
    """Each thread hands over one thing at a time and waits for it: a lost wake-up would stop it for good."""
    inbox: deque[threading.Lock] = deque()
    rounds = 3000

    def empty() -> None:
        while inbox:
            inbox.popleft().release()

    stuck: list[int] = []

    def hand_over() -> None:
        served = threading.Lock()
        served.acquire()
        for number in range(rounds):
            inbox.append(served)
            loop.wake()
            if not served.acquire(timeout=DEADLINE_S):
                stuck.append(number)
                return

    loop.on_wake(empty)
    runner = threading.Thread(target=loop.run)
    runner.start()
    others = [threading.Thread(target=hand_over) for _ in range(threads)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    loop.stop()
    runner.join(DEADLINE_S)
    assert not stuck


def test_a_burst_of_wake_ups_costs_few_system_calls(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    write = loop._write_wake

    def counted() -> None:
        writes.append(1)
        write()

    monkeypatch.setattr(loop, "_write_wake", counted)
    done: list[int] = []
    for _ in range(1000):
        loop.call_soon(lambda: done.append(1))
    assert not writes  # nobody sleeps
    turn_until(loop, lambda: len(done) == 1000)
    runner = threading.Thread(target=loop.run)
    runner.start()
    wait_for(lambda: loop._sleeping)
    loop.wake()
    assert len(writes) == 1
    loop.stop()
    runner.join(DEADLINE_S)


def test_wake_after_close_is_harmless(loop: Loop) -> None:
    loop._sleeping = True  # as a waker may have seen it
    loop.close()
    loop.wake()
    loop.call_soon(lambda: None)


def test_signals_are_handled_in_a_turn_whichever_thread_gets_them(loop: Loop) -> None:
    got: list[str] = []
    before = signal.getsignal(signal.SIGUSR1)
    loop.on_signal(signal.SIGUSR1, lambda: got.append(threading.current_thread().name))
    elsewhere = threading.Timer(0.05, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))
    elsewhere.start()
    turn_until(loop, lambda: got)
    os.kill(os.getpid(), signal.SIGUSR1)
    turn_until(loop, lambda: len(got) == 2)
    elsewhere.join()
    assert set(got) == {threading.main_thread().name}
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_signals_are_refused_outside_the_main_thread(loop: Loop) -> None:
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            loop.on_signal(signal.SIGUSR1, lambda: None)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_a_clock_of_ones_own(loop: Loop) -> None:
    time_now = [100.0]
    own = Loop(clock=lambda: time_now[0])
    performed: list[Any] = []
    machine = Recorder(105.0)
    own.add_machine(machine, performed.extend)
    own.turn(0)
    assert not performed
    time_now[0] = 105.0
    own.turn()
    assert performed == ["due"]
    own.close()
