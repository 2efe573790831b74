"""Starting and minding the process of an embedded farm, for its client; it knows no message, no socket.

Two pipes tie the two processes. Of the *lifeline* only the client holds the writing end: when that closes, in
whatever way the client ends, the farm ends itself with all its children. On the *ready* pipe the farm says
once where it listens. Nothing heavy is imported here before the process is started: it boots while the client
imports the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zfarm.errors import FarmBroken
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.edge.segments import Ref

__all__ = ["Announcement", "Farmhouse"]

_BOOT = """\
import sys, marshal
try:
    config = marshal.load(open({lifeline}, 'rb', closefd=False))
except EOFError:  # the client went, or was interrupted, before it said what it wants
    sys.exit(1)
sys.path[:] = config['path']
sys.argv[:] = config['argv']
import zfarm.embedded
zfarm.embedded.main(config)  # returns when the client is gone, perhaps without cleaning up
import shutil
shutil.rmtree(config['directory'], ignore_errors=True)
"""

_LEAVE_MARGIN_S = 3.0
"""What the farm gets beyond the grace of its children before it is killed."""
_LINE_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class Announcement:
    """Where a farm that is ready listens."""

    control: str
    notes: str
    pid: int
    opened: bool = False
    """It could open our segment of shared memory."""
    probe: Ref | None = None
    """One of its own, for us to open."""


class Farmhouse:
    """One embedded farm's process, and another one in its place after it died. Used by one thread at a
    time."""

    def __init__(self, slots: int) -> None:
        """Mind a farm of ``slots`` slots; ``start`` starts it."""
        self.slots = slots
        self.ready_fd = -1
        """Readable when the farm is ready, or dead; -1: nothing to wait for any more."""
        self.death_fd = -1
        """Readable when the process has ended; -1: this system cannot tell in this way, see ``wait``."""
        self._lifeline = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._config: dict[str, object] = {}
        self._line = b""

    @property
    def pid(self) -> int:
        """The process; 0: none was started."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process; returns at once. It boots, and waits for ``configure``.

        Raises:
            FarmBroken: there is no interpreter to start, or the system refuses.
        """
        if not sys.executable:
            raise FarmBroken("sys.executable is empty: there is no interpreter to run an embedded farm with")
        try:
            self._start()
        except OSError as error:
            self.close()
            raise FarmBroken(f"the embedded farm cannot be started: {error}") from error

    def _start(self) -> None:
        self._line = b""
        theirs_life, self._lifeline = _pipe()
        self.ready_fd, theirs_ready = _pipe()
        self._config = {
            "slots": self.slots,
            "path": [str(entry) for entry in sys.path],
            "argv": [str(word) for word in getattr(sys, "argv", ())],  # tasks see the program's own
            "parent": os.getpid(),
            "lifeline": theirs_life,
            "ready": theirs_ready,
        }
        code = _BOOT.format(lifeline=theirs_life)
        try:
            self._process = subprocess.Popen(
                [sys.executable, *_flags(), "-c", code, "zfarm: embedded farm"],
                stdin=subprocess.DEVNULL,
                stdout=None if _is_open(1) else subprocess.DEVNULL,
                stderr=None if _is_open(2) else subprocess.DEVNULL,
                pass_fds=(theirs_life, theirs_ready),
                start_new_session=True,  # Ctrl-C in the terminal is for the client alone
            )
        finally:
            os.close(theirs_life)
            os.close(theirs_ready)
        os.set_blocking(self.ready_fd, False)
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # an old kernel or a strict sandbox: wait() will do
                self.death_fd = os.pidfd_open(self._process.pid)

    def configure(self, directory: str, probe: Ref | None = None) -> None:
        """Tell the process all that it needs, to listen in ``directory``, and to try to open ``probe``;
        ``announced`` tells the rest."""
        words = {**self._config, "directory": directory, "probe": None if probe is None else tuple(probe)}
        config = marshal.dumps(words)
        with contextlib.suppress(BrokenPipeError):  # it died already, which shows as its death
            while config:
                config = config[os.write(self._lifeline, config) :]
        os.set_blocking(self._lifeline, False)

    def note(self, notes: bytes) -> int:
        """Tell the farm something about shared memory; how much of it was told."""
        try:
            return os.write(self._lifeline, notes) if self._lifeline >= 0 else len(notes)
        except BlockingIOError:
            return 0
        except BrokenPipeError:  # it has died, and has nothing that it could be told of
            return len(notes)

    def announced(self) -> Announcement | None:
        """Read what the farm says on the ready pipe; None: it has not said all yet, or is dead and will
        never.

        Raises:
            FarmBroken: the farm says that it cannot start, and why.
        """
        try:
            part = os.read(self.ready_fd, _LINE_BYTES_MAX)
        except BlockingIOError:
            return None
        self._line += part
        if b"\n" not in part:
            if not part:
                self._drop("ready_fd")
            return None
        self._drop("ready_fd")
        import msgspec

        said = msgspec.json.decode(self._line)
        if "error" in said:
            raise FarmBroken(f"the embedded farm cannot start: {said['error']}")
        probe = None
        if said["probe"] is not None:
            from zfarm.edge.segments import Ref

            token, *rest = said["probe"]
            probe = Ref(bytes.fromhex(token), *rest)
        return Announcement(said["control"], said["notes"], said["pid"], said["opened"], probe)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the process to end and bury it; False: it has not ended within ``timeout_s``."""
        if self._process is None:
            return True
        if self.death_fd >= 0 and self._process.poll() is None:
            watch = select.poll()
            watch.register(self.death_fd, select.POLLIN)
            if not watch.poll(None if timeout_s is None else timeout_s * 1000):
                return False
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def obituary(self) -> str:
        """How the process ended, for a sentence."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return "is gone"
        return f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"

    def stop(self) -> None:
        """Let go of the lifeline, wait for the farm to leave, kill it if it does not, and give everything
        back."""
        self._drop("_lifeline")
        if not self.wait(settings.stop_grace_s + _LEAVE_MARGIN_S):
            assert self._process is not None
            self._process.kill()
            self.wait()
        self.close()

    def close(self) -> None:
        """Give back the descriptors: all that a forked process may do with a farm of its parent."""
        for name in ("_lifeline", "ready_fd", "death_fd"):
            self._drop(name)

    def disown(self) -> None:
        """In a forked process: hold nothing of the parent's farm, and say nothing about it when collected."""
        self.close()
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for

    def _drop(self, name: str) -> None:
        fd = getattr(self, name)
        if fd >= 0:
            setattr(self, name, -1)
            os.close(fd)


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not in the way of standard input, output and error."""
    ends = list(os.pipe())
    for index, fd in enumerate(ends):
        if fd <= 2:
            ends[index] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(fd)
    return ends[0], ends[1]


def _flags() -> list[str]:
    """The interpreter's own, for another one that can import things."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    try:
        os.getcwd()
    except OSError:  # Python 3.13.0 would look there first, and then import nothing at all
        flags.append("-P")
    return flags


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
