"""The turn: wait for sources, let machines decide, perform what they want; it knows no socket's protocol.

One turn: poll (until the earliest deadline) -> handlers of ready sources (they call ``machine.receive``) ->
``advance`` of every machine -> perform, again and again until no machine wants anything -> flush what waits
in ports. An exception in a machine or handler leaves ``run``: a bug in the core crashes, by design.

A ZeroMQ socket is watched by its file descriptor, which is edge-triggered: it may stay silent while messages
wait, after any call on the socket has looked into its mailbox. So no turn sleeps before it has asked every
socket for its state that may have been used since it was asked last. (zmq.Poller does that by itself and
costs a little less for a few sources, but more with every pipe of a child; this is flat for hundreds.)
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from math import ceil, inf
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    import zmq

    from zfarm.messages import Action

__all__ = ["Loop", "Machine", "Source", "Timer"]

Handler: TypeAlias = Callable[[], None]

POLLIN: Final = 1
POLLOUT: Final = 4
"""The same numbers in epoll, in poll, and for ZeroMQ's readability (1) wherever Python runs."""
_ROUNDS_MAX: Final = 100
"""Rounds of advance in one turn before sources get a look in again."""
_SLEEP_MAX_S: Final = 3600.0


class Machine(Protocol):
    """What the loop needs to know of a machine."""

    @property
    def deadline(self) -> float:
        """Monotonic seconds at which to call ``advance``: the past if it has something to do; inf: never."""

    def advance(self, now: float) -> list[Action]:
        """What the machine wants done."""


class HasFileno(Protocol):
    """A socket, a file, a pipe."""

    def fileno(self) -> int:
        """The descriptor."""


Source: TypeAlias = "int | HasFileno | zmq.Socket[bytes]"


class _Entry:
    __slots__ = ("asked", "fd", "live", "mask", "on_ready", "on_writable", "passive", "state")

    def __init__(self, fd: int, on_ready: Handler, on_writable: Handler | None) -> None:
        self.fd = fd
        self.live = True
        self.mask = POLLIN
        self.on_ready = on_ready
        self.on_writable = on_writable
        self.state: Callable[[int], int] | None = None  # getsockopt of a ZeroMQ socket
        self.passive = False  # nobody but on_ready uses the socket
        self.asked = False  # it was idle, and was not used since


class Timer:
    """A handler called at intervals; ``cancel`` ends that."""

    __slots__ = ("due", "fn", "interval_s", "live")

    def __init__(self, fn: Handler, due: float, interval_s: float) -> None:
        self.fn = fn
        self.due = due
        self.interval_s = interval_s  # inf: once
        self.live = True

    def cancel(self) -> None:
        """Never call the handler again."""
        self.live = False

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due


class Loop:
    """Drives machines over sources in one thread. Only wake, call_soon and stop may be called from others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, portable: bool = False) -> None:
        """Make a loop; ``portable`` leaves epoll and eventfd aside even where they exist."""
        self._clock = clock
        self.now = clock()
        """When this turn began; what handlers pass to ``receive``."""
        self._portable = portable or not hasattr(select, "epoll")
        self._poller: Any = select.poll() if self._portable else select.epoll()
        self._poll: Callable[[float], list[tuple[int, int]]]
        self._poll = self._poll_portably if self._portable else self._poller.poll
        self._sources: dict[int, _Entry] = {}  # by fd
        self._sockets: list[_Entry] = []
        self._events_option = 0
        self._plain = 0  # sources that are neither ZeroMQ sockets nor our own wake-up
        self._machines: list[tuple[Machine, Callable[[list[Action]], None]]] = []
        self._timers: list[Timer] = []
        self._flushers: list[Callable[[], float]] = []
        self._flush_due = inf
        self._wake_handlers: list[Handler] = []
        self._soon: deque[Handler] = deque()
        self._signals: dict[int, Any] = {}  # what to restore
        self._signal_pair: tuple[socket.socket, socket.socket, int] | None = None
        self._busy = False  # a machine may have something to do: do not sleep
        self._stopping = False
        self._sleeping = False  # about to sleep, or asleep: a waker must write
        self._woken = False
        self._closed = False
        self._wake_lock = threading.RLock()  # reentrant: a signal handler may wake the loop, too
        self._open_wake()

    # ------------------------------------------------------------ sources, machines, timers

    def add_source(
        self,
        source: Source,
        on_ready: Handler,
        on_writable: Handler | None = None,
        *,
        passive: bool = False,
    ) -> None:
        """Call ``on_ready`` whenever ``source`` can be read (or is at its end), once per turn.

        It need not read everything. ``on_writable`` is called while ``watch(source, writable=True)`` holds;
        ZeroMQ sockets have no use for it, see add_flusher. ``passive`` promises that a ZeroMQ socket is used
        by ``on_ready`` only, as a monitor is: that saves a look at it in most turns.
        """
        fd = source if isinstance(source, int) else source.fileno()
        if fd in self._sources:
            raise ValueError(f"descriptor {fd} is watched already")
        entry = _Entry(fd, on_ready, on_writable)
        library = sys.modules.get("zmq")  # nobody has a socket of a library that is not loaded
        if library is not None and isinstance(source, library.Socket):
            self._events_option = int(library.EVENTS)
            entry.state = source.getsockopt
            entry.passive = passive or source.getsockopt(library.TYPE) in (library.SUB, library.PULL)
            self._sockets.append(entry)
        else:
            self._plain += 1
        self._sources[fd] = entry
        self._poller.register(fd, entry.mask)

    def watch(self, source: Source, *, readable: bool = True, writable: bool = False) -> None:
        """Say what is of interest about a source added before; neither: it rests, even at its end."""
        entry = self._sources[source if isinstance(source, int) else source.fileno()]
        mask = (POLLIN if readable else 0) | (POLLOUT if writable else 0)
        if mask == entry.mask:
            return
        if not mask:
            self._poller.unregister(entry.fd)
        elif not entry.mask:
            self._poller.register(entry.fd, mask)
        else:
            self._poller.modify(entry.fd, mask)
        entry.mask = mask

    def remove_source(self, source: Source) -> None:
        """Watch ``source`` no more; to be called before it is closed, and harmless when it is not watched."""
        fd = source if isinstance(source, int) else source.fileno()
        entry = self._sources.pop(fd, None)
        if entry is None:
            return
        entry.live = False
        if entry.state is None:
            self._plain -= 1
        else:
            self._sockets.remove(entry)
        if entry.mask:
            self._poller.unregister(fd)

    def add_machine(self, machine: Machine, perform: Callable[[list[Action]], None]) -> None:
        """Drive ``machine``; ``perform`` gets every list of actions that is not empty, and may feed machines.

        A machine is asked when its deadline has come; whoever feeds one sets the deadline to the past.
        """
        self._machines.append((machine, perform))

    def remove_machine(self, machine: Machine) -> None:
        """Drive ``machine`` no more."""
        self._machines = [pair for pair in self._machines if pair[0] is not machine]

    def add_flusher(self, flush: Callable[[], float]) -> None:
        """Call ``flush`` at the end of every turn; it tells the seconds until it wants to be called again."""
        self._flushers.append(flush)

    def remove_flusher(self, flush: Callable[[], float]) -> None:
        """Call ``flush`` no more."""
        self._flushers.remove(flush)

    def add_timer(self, fn: Handler, interval_s: float) -> Timer:
        """Call ``fn`` every ``interval_s`` seconds, first after one interval; what was missed is left out."""
        timer = Timer(fn, self._clock() + interval_s, interval_s)
        heapq.heappush(self._timers, timer)
        return timer

    def call_later(self, fn: Handler, delay_s: float) -> Timer:
        """Call ``fn`` once, in ``delay_s`` seconds."""
        timer = Timer(fn, self._clock() + delay_s, inf)
        heapq.heappush(self._timers, timer)
        return timer

    # ------------------------------------------------------------ from other threads

    def on_wake(self, fn: Handler) -> None:
        """Call ``fn`` in every turn after a ``wake``: the place to empty what other threads have filled."""
        self._wake_handlers.append(fn)

    def wake(self) -> None:
        """Make the loop take a turn. From any thread; free of system calls unless the loop sleeps.

        What the caller wrote before is seen by that turn: the flag goes up before the look whether it sleeps,
        while the loop says that it will sleep before it looks at the flag.
        """
        self._woken = True
        if self._sleeping:
            self._sleeping = False  # others need not write; should the loop sleep again, our write comes yet
            with self._wake_lock:
                if not self._closed:
                    self._write_wake()

    def call_soon(self, fn: Handler) -> None:
        """Call ``fn`` in the loop's thread at its next turn. From any thread."""
        self._soon.append(fn)
        self.wake()

    def stop(self) -> None:
        """Let ``run`` return after the turn. From any thread, also before ``run``."""
        self._stopping = True
        self.wake()

    def on_signal(self, signum: int, fn: Handler) -> None:
        """Call ``fn`` in a turn after signal ``signum``, instead of what it did before, until ``close``.

        Raises:
            RuntimeError: not called in the main thread, which alone may set signal handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signal handlers can be set in the main thread only")
        if self._signal_pair is None:
            reader, writer = socket.socketpair()
            reader.setblocking(False)
            writer.setblocking(False)
            # another thread may get the signal: then only this descriptor wakes the main thread
            before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            self._signal_pair = (reader, writer, before)
            self.add_source(reader, self._drain_signals)
        before_fn = signal.signal(signum, lambda _signum, _frame: self._note_signal(fn))
        self._signals.setdefault(signum, before_fn)

    # ------------------------------------------------------------ the turn

    def run(self) -> None:
        """Take turns until ``stop``.

        Raises:
            Exception: whatever a machine, handler or perform raised; the loop is not to be used after that.
        """
        turn = self.turn
        while not self._stopping:
            turn()
        self._stopping = False

    def turn(self, timeout_s: float = inf) -> None:
        """Take one turn, sleeping for at most ``timeout_s`` seconds."""
        ready = self._ready_sockets()
        self._sleeping = True
        wait_s = 0.0 if self._woken or ready or self._busy else self._patience(timeout_s)
        fired = self._poll(wait_s) if wait_s or self._plain or not ready else ()
        self._sleeping = False
        self.now = now = self._clock()
        if self._woken:
            self._woken = False
            self._run_soon()
        for entry in ready:
            if entry.live:
                entry.asked = False
                entry.on_ready()
        if fired:
            self._dispatch(fired, ready)
        if self._timers and self._timers[0].due <= now:
            self._run_timers(now)
        self._advance(now)
        if self._flushers:
            self._flush_due = now + min([flush() for flush in self._flushers])

    def _ready_sockets(self) -> list[_Entry]:
        ready = []
        option = self._events_option
        for entry in self._sockets:
            if entry.asked:
                continue
            if entry.state(option) & POLLIN:  # type: ignore[misc]
                ready.append(entry)
            else:
                entry.asked = entry.passive  # its descriptor will tell
        return ready

    def _patience(self, timeout_s: float) -> float:
        """Seconds to sleep, -1 for any time."""
        due = self._flush_due
        for machine, _ in self._machines:
            if machine.deadline < due:
                due = machine.deadline
        while self._timers and not self._timers[0].live:
            heapq.heappop(self._timers)
        if self._timers and self._timers[0].due < due:
            due = self._timers[0].due
        if due == inf == timeout_s:
            return -1.0
        return min(max(due - self._clock(), 0.0), timeout_s, _SLEEP_MAX_S)

    def _poll_portably(self, wait_s: float) -> list[tuple[int, int]]:
        fired: list[tuple[int, int]] = self._poller.poll(None if wait_s < 0 else ceil(wait_s * 1000))
        return fired

    def _dispatch(self, fired: list[tuple[int, int]], done: list[_Entry]) -> None:
        sources = self._sources
        # look all up first: a handler may close a source and open another one under the same number
        for entry, mask in [(sources[fd], mask) for fd, mask in fired if fd in sources]:
            if mask & ~POLLOUT and entry.live and entry not in done:
                entry.asked = False
                entry.on_ready()
            if mask & POLLOUT and entry.live and entry.on_writable is not None:
                entry.on_writable()

    def _advance(self, now: float) -> None:
        """Let machines act until none of them wants anything."""
        machines = self._machines
        for _ in range(_ROUNDS_MAX):
            self._busy = False
            for machine, perform in machines:
                if machine.deadline <= now:  # whoever receives sets its deadline to the past
                    actions = machine.advance(now)
                    if actions:
                        self._busy = True
                        perform(actions)
            if not self._busy:
                return

    def _run_soon(self) -> None:
        soon = self._soon
        for _ in range(len(soon)):  # those added meanwhile have their turn next
            soon.popleft()()
        for fn in self._wake_handlers:
            fn()

    def _run_timers(self, now: float) -> None:
        timers = self._timers
        while timers and timers[0].due <= now:
            timer = timers[0]
            if not timer.live or timer.interval_s == inf:
                heapq.heappop(timers)
            else:
                timer.due += timer.interval_s
                if timer.due <= now:
                    timer.due = now + timer.interval_s
                heapq.heapreplace(timers, timer)
            if timer.live:
                timer.fn()

    # ------------------------------------------------------------ waking

    def _open_wake(self) -> None:
        self._wake_pair: tuple[socket.socket, socket.socket] | None = None
        if hasattr(os, "eventfd") and not self._portable:
            self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            reader, writer = socket.socketpair()
            reader.setblocking(False)
            writer.setblocking(False)
            self._wake_pair = reader, writer
            self._wake_fd = reader.fileno()
        self.add_source(self._wake_fd, self._drain_wake)
        self._plain = 0

    def _write_wake(self) -> None:
        if self._wake_pair is None:
            os.eventfd_write(self._wake_fd, 1)
        else:
            with contextlib.suppress(BlockingIOError):  # full of wake-ups: it will wake
                self._wake_pair[1].send(b"\0")

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if self._wake_pair is None:
                os.eventfd_read(self._wake_fd)
            else:
                self._wake_pair[0].recv(4096)

    def _note_signal(self, fn: Handler) -> None:
        self._soon.append(fn)
        self._woken = True  # the descriptor of the signals wakes the loop

    def _drain_signals(self) -> None:
        assert self._signal_pair is not None
        with contextlib.suppress(BlockingIOError):
            self._signal_pair[0].recv(4096)

    def close(self) -> None:
        """Give back descriptors and signal handlers; sources stay open. Harmless when done before."""
        with self._wake_lock:
            if self._closed:
                return
            self._closed = True
        if self._signal_pair is not None:
            reader, writer, before = self._signal_pair
            for signum, handler in self._signals.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(before)
            reader.close()
            writer.close()
        if self._wake_pair is None:
            os.close(self._wake_fd)
        else:
            self._wake_pair[0].close()
            self._wake_pair[1].close()
        if not self._portable:
            self._poller.close()
        for held in (self._sources, self._sockets, self._machines, self._flushers, self._wake_handlers):
            held.clear()
        self._timers.clear()
        self._soon.clear()
