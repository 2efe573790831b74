"""The process that children come from: small, single-threaded, forked before its worker has threads.

The worker asks for children over a socket and hands over their descriptors; the nursery forks, reaps, reports
and kills. It is the parent, so a pid stays the child's own until the nursery itself has buried it: no kill
can hit a stranger. It ends when its worker closes the socket, in whatever way, and takes all children along,
and what their calls have left behind.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from typing import Any, Final, NamedTuple, TypeAlias

from zfarm.edge.strays import adopt_strays, bury_strays, end_strays

__all__ = ["Failed", "Forked", "Gone", "Nursery", "Report"]

# request: verb, child, time; reply: verb, child, pid or errno or wait status, peak memory in bytes
_REQUEST: Final = struct.Struct("<4sQd")
_REPLY: Final = struct.Struct("<4sQqQ")
_FORK: Final = b"fork"
_KILL: Final = b"kill"
_INTERRUPT: Final = b"int "
_DOOM: Final = b"doom"
_FORKED: Final = b"born"
_FAILED: Final = b"fail"
_GONE: Final = b"gone"
_MET: Final = b"met "  # its doom: gone, too
_FDS: Final = 7
_CAN_PEEK: Final = hasattr(os, "waitid")
_MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024


class Forked(NamedTuple):
    """The process of this child exists."""

    child: int
    pid: int


class Failed(NamedTuple):
    """The child could not be forked: the errno says why."""

    child: int
    errno: int


class Gone(NamedTuple):
    """The child has ended: ``signal`` (0: none), exit code, and the most memory that it had in use.

    ``doomed``: it was killed since its time was over.
    """

    child: int
    signal: int
    exit_code: int
    peak_bytes: int
    doomed: bool


Report: TypeAlias = Forked | Failed | Gone


class Nursery:
    """The worker's side."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.pid = pid
        self._sock = sock
        self._rest = b""

    @classmethod
    def start(cls) -> Nursery:
        """Fork the nursery. Do it early: before threads, before zmq is imported, before files are open.

        The nursery imports what children need while the caller goes on.
        """
        ours, theirs = socket.socketpair()
        flush_standard_streams()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                ours.close()
                keeper = _Keeper(theirs)  # held until the end: its socket closes with the process
                code = keeper.keep()
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
            finally:
                os._exit(code)
        theirs.close()
        ours.setblocking(False)
        return cls(ours, pid)

    def fileno(self) -> int:
        """The descriptor that is readable when ``read`` has something."""
        return self._sock.fileno()

    def fork(self, child: int, fds: Sequence[int]) -> None:
        """Ask for a child that gets these descriptors: pipe, tunnel, page, stderr, and
        three for what is captured.

        Answered by Forked or Failed.

        Raises:
            OSError: the nursery is gone.
        """
        self._insist(lambda: socket.send_fds(self._sock, [_REQUEST.pack(_FORK, child, 0.0)], list(fds)))

    def kill(self, child: int) -> None:
        """Kill a child with its process group; nothing happens if it is gone. Raises OSError as ``fork``."""
        self._insist(lambda: self._sock.send(_REQUEST.pack(_KILL, child, 0.0)))

    def interrupt(self, child: int) -> None:
        """Send SIGINT to a child; nothing happens if it is gone. Raises OSError as ``fork``."""
        self._insist(lambda: self._sock.send(_REQUEST.pack(_INTERRUPT, child, 0.0)))

    def doom(self, child: int, at: float | None) -> None:
        """Kill a child as ``kill`` does once ``time.monotonic()`` shows ``at``, whatever becomes of the
        worker until then; None: do not, after all. Raises OSError as ``fork``."""
        request = _REQUEST.pack(_DOOM, child, inf if at is None else at)
        self._insist(lambda: self._sock.send(request))

    def _insist(self, send: Callable[[], int]) -> None:
        while True:
            try:
                send()
                return
            except (
                BlockingIOError
            ):  # thousands of requests wait: the nursery only ever forks, so not for long
                select.select((), (self._sock,), ())

    def read(self) -> list[Report] | None:
        """What the nursery has to say; None when it is gone."""
        try:
            data = self._sock.recv(64 * 1024)
        except BlockingIOError:
            return []
        except ConnectionError:
            return None
        if not data:
            return None
        data = self._rest + data
        whole = len(data) - len(data) % _REPLY.size
        self._rest = data[whole:]
        return [_report(*fields) for fields in _REPLY.iter_unpack(data[:whole])]

    def close(self) -> None:
        """Kill all children, and wait until the nursery has buried them."""
        if self._sock.fileno() < 0:
            return
        self._sock.close()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _report(verb: bytes, child: int, number: int, peak_bytes: int) -> Report:
    if verb == _FORKED:
        return Forked(child, number)
    if verb == _FAILED:
        return Failed(child, number)
    code = os.waitstatus_to_exitcode(number)
    return Gone(child, max(-code, 0), max(code, 0), peak_bytes, verb == _MET and code == -signal.SIGKILL)


def flush_standard_streams() -> None:
    """What is buffered now would be written by every forked process as well."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.flush()


class _Keeper:
    """The nursery itself."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pids: dict[int, int] = {}  # pid -> child
        self._dooms: dict[int, float] = {}  # child -> when it is to be killed
        self._met: set[int] = set()  # children that were, and are not buried
        self._out = b""

    def keep(self) -> int:
        """Serve until the worker is gone; the exit code."""
        self._settle()
        from zfarm.edge import child as _preloaded  # noqa: F401  children find it imported

        _forget_exit_handlers()
        gc.collect()
        gc.freeze()  # what is there now is shared with all children, and collecting it would copy it
        try:
            self._serve()
        finally:
            self._bury_all()
        return 0

    def _settle(self) -> None:
        from zfarm.edge import upbringing

        for number in (
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGQUIT,
            signal.SIGTSTP,
            signal.SIGPIPE,
        ):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        _close_all_but(self._sock.fileno())
        # objects of the worker may still close descriptors by their low numbers
        self._sock = socket.socket(fileno=upbringing.move_high([self._sock.detach()])[0])
        with suppress(OSError):
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)
        _own_streams()
        adopt_strays()
        self._sock.setblocking(False)
        self._awake, self._wakeup = upbringing.move_high(list(os.pipe()))
        for fd in (self._awake, self._wakeup):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._awake, select.POLLIN)
        while True:
            poller.register(self._sock, select.POLLIN | (select.POLLOUT if self._out else 0))
            ready = dict(poller.poll(self._patience_ms()))
            if ready.get(self._awake):
                with suppress(BlockingIOError):
                    os.read(self._awake, 4096)
                self._bury()
            if self._sock.fileno() in ready and not self._take():
                return
            if self._dooms and self._sock.fileno() not in ready:  # one may be put off by what waits there
                self._meet_dooms()
            if not self._give():
                return

    def _patience_ms(self) -> float | None:
        """How long nothing has to be done unless somebody says so; None: for ever."""
        if not self._dooms:
            return None
        return max(0.0, min(min(self._dooms.values()) - time.monotonic(), 3600.0)) * 1e3

    def _meet_dooms(self) -> None:
        now = time.monotonic()
        for pid, child in self._pids.items():
            if self._dooms.get(child, inf) <= now:
                self._met.add(child)
                _kill_group(pid)
        self._dooms = {child: at for child, at in self._dooms.items() if at > now}

    def _take(self) -> bool:
        """Read one request; False when the worker is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _REQUEST.size, _FDS)
        except BlockingIOError:
            return True
        except OSError:
            return False
        while 0 < len(data) < _REQUEST.size:
            select.select((self._sock,), (), ())
            more = self._sock.recv(_REQUEST.size - len(data))
            if not more:
                return False
            data += more
        if not data:
            return False
        verb, child, at = _REQUEST.unpack(data)
        if verb == _FORK and len(fds) < _FDS:  # the system has dropped those that are too many for us
            for fd in fds:
                os.close(fd)
            self._reply(_FAILED, child, errno.EMFILE)
        elif verb == _FORK:
            self._fork(child, fds)
        elif verb == _DOOM:
            self._dooms.pop(child, None)
            if at < inf and child in self._pids.values():
                self._dooms[child] = at
        else:
            for pid, number in self._pids.items():
                if number == child and verb == _KILL:
                    _kill_group(pid)
                elif number == child:
                    os.kill(pid, signal.SIGINT)  # it is not buried, so the pid is its own
        return True

    def _fork(self, child: int, fds: list[int]) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._reply(_FAILED, child, error.errno or 0)
        else:
            if pid == 0:
                self._be_child(parent, fds)
            self._pids[pid] = child
            self._reply(_FORKED, child, pid)
        for fd in fds:
            os.close(fd)

    def _be_child(self, parent: int, fds: list[int]) -> None:
        from zfarm.edge import child, upbringing

        code = 1
        try:
            signal.set_wakeup_fd(-1)
            self._sock.close()
            os.close(self._awake)
            os.close(self._wakeup)
            gc.unfreeze()
            pipe, tunnel, page, stderr, out, err, records = fds
            os.dup2(stderr, 2)
            os.close(stderr)
            code = child.main(parent, pipe, tunnel, page, out, err, records)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            upbringing.end(code)

    def _bury(self) -> None:
        """Report the children that have ended, after what they left in their process groups was killed."""
        for pid in list(self._pids):
            if _CAN_PEEK:  # while it is not buried, its pid cannot become somebody else's
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
                _kill_group(pid)
            buried, status, usage = os.wait4(pid, os.WNOHANG)
            if not buried:
                continue
            if not _CAN_PEEK:
                with suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
            child = self._pids.pop(pid)
            self._dooms.pop(child, None)
            verb = _MET if child in self._met else _GONE
            self._met.discard(child)
            self._reply(verb, child, status, usage.ru_maxrss * _MAXRSS_UNIT)
        bury_strays(self._pids)

    def _bury_all(self) -> None:
        for pid in self._pids:
            _kill_group(pid)
        for pid in self._pids:
            os.waitpid(pid, 0)
        end_strays()

    def _reply(self, verb: bytes, child: int, number: int, peak_bytes: int = 0) -> None:
        self._out += _REPLY.pack(verb, child, number, peak_bytes)

    def _give(self) -> bool:
        try:
            while self._out:
                self._out = self._out[self._sock.send(self._out) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def _kill_group(pid: int) -> None:
    """Kill a child that is not buried yet with all that it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:  # it has not come to lead a group yet, or is dead
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _close_all_but(*kept: int) -> None:
    """Close whatever the worker had open: a child must hold no socket, lock or pipe of its worker."""
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(folder):
        fd = int(name)
        if fd > 2 and fd not in kept:
            with suppress(OSError):  # the one that listdir had open
                os.close(fd)


def _own_streams() -> None:
    """Print to where the descriptors lead, if the worker's streams lead to something that was just closed."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            fits = getattr(sys, name).fileno() == number
        except (AttributeError, ValueError, OSError):
            fits = False
        if not fits:
            with suppress(OSError):  # a worker without any output
                stream = open(number, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
                setattr(sys, name, stream)


def _forget_exit_handlers() -> None:
    """What the worker wants done at its exit is not for its children to do; what modules always do, is."""
    atexit._clear()
    finalizers: Any = weakref.finalize
    for inherited in list(finalizers._registry):
        inherited.atexit = False
    finalizers._registered_with_atexit = False
    logging = sys.modules.get("logging")
    if logging is not None:
        atexit.register(logging.shutdown)
    processes: Any = sys.modules.get("multiprocessing.process")
    if processes is not None:
        processes._children = set()
    utilities: Any = sys.modules.get("multiprocessing.util")
    if utilities is not None:
        utilities._finalizer_registry.clear()
        atexit.register(utilities._exit_function)
