"""Every exception zfarm raises, drawn as a tree; it knows nothing but the standard library.

FarmError(Exception)                            catch this and you have caught zfarm
|- ConfigurationError (ValueError)              a setting that cannot work, and what would
|- FarmClosed (RuntimeError)                    used after shutdown
|- ForkError (RuntimeError)                     an executor used in a process forked after it was made
|- FarmBroken (BrokenExecutor)                  nothing can go on: the farm cannot be (re)started
|  `- InitializerFailed                         the initializer raised, exited or died in a child
|- BrokerUnreachable (ConnectionError)          no answer from the broker within the stated time
|- JobExists (ValueError)                       a job of this name is on the farm already
|- JobTakenOver                                 another program has attached to the job
|- JobUnknown (LookupError)                     no job of this name on the farm (any more)
|- ProtocolError                                a peer broke the protocol
|  |- VersionMismatch                           ours, theirs, who must upgrade
|  `- AccessDenied (PermissionError)            a key that is not allowed to do this
|- LimitExceeded                                which limit, its value, how to raise it
|  |- FarmBusy                                  the farm's queue is full
|  `- TooLarge                                  one payload is above the limit
|- TransferError (OSError)                      a file that cannot be sent or received: which, and why
|  |- FileUnknown (LookupError)                 nothing is kept under this name
|  |- UnsafeName (ValueError)                   a name that leads out of its directory, or clashes
|  `- DamagedFile                               what arrived is not what was sent
|- JournalError (OSError)                       the broker's journal cannot be written or read
|  `- JournalCorrupt                            which file, what was found, what is kept
`- TaskError                                    the task has no value
   |- TaskLost (BrokenExecutor)                 children or workers died under it: how often, how, where
   |- TaskTimeout (TimeoutError)                 it ran for longer than its timeout, and was stopped
   |- MemoryLimit (MemoryError)                  it had more memory in use than it may
   |- StreamGap (LookupError)                   items of its stream that cannot be had, by number
   |- ModuleMissing (ModuleNotFoundError)       a module that the call needs is missing: where, remedy
   |- NotPortable (TypeError)                   a call, value or error that cannot be pickled; what and why
   `- RemoteError                               stands for an exception that could not come home

The user's own exception comes home as itself, with a RemoteTraceback as its ``__cause__``.
Every class keeps its facts as attributes and survives pickling.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from dataclasses import dataclass

__all__ = [
    "AccessDenied",
    "BrokerUnreachable",
    "ConfigurationError",
    "DamagedFile",
    "Death",
    "FarmBroken",
    "FarmBusy",
    "FarmClosed",
    "FarmError",
    "FileUnknown",
    "ForkError",
    "InitializerFailed",
    "JobExists",
    "JobTakenOver",
    "JobUnknown",
    "JournalCorrupt",
    "JournalError",
    "LimitExceeded",
    "MemoryLimit",
    "ModuleMissing",
    "NotPortable",
    "ProtocolError",
    "RemoteError",
    "RemoteTraceback",
    "StreamGap",
    "TaskError",
    "TaskLost",
    "TaskTimeout",
    "TooLarge",
    "TransferError",
    "UnsafeName",
    "VersionMismatch",
]


class FarmError(Exception):
    """The root of everything zfarm raises."""

    @staticmethod
    def named(code: str, text: str) -> FarmError:
        """The error whose class is called ``code``, as peers name it on the wire; a ProtocolError if there
        is none."""
        kind = globals().get(code)
        if isinstance(kind, type) and issubclass(kind, FarmError):
            return kind(text)
        return ProtocolError(f"{code}: {text}")


class ConfigurationError(FarmError, ValueError):
    """A setting, file or argument that cannot work; the text says which one would."""


class FarmClosed(FarmError, RuntimeError):
    """The executor was shut down."""


class ForkError(FarmError, RuntimeError):
    """The executor belongs to another process: this one was forked after it was made."""


class FarmBroken(FarmError, BrokenExecutor):
    """Nothing can go on with this executor; the text says what happened and what to do."""


class InitializerFailed(FarmBroken):
    """The initializer raised, exited or died in a child."""


class BrokerUnreachable(FarmError, ConnectionError):
    """The broker gave no answer within the stated time."""


class JobExists(FarmError, ValueError):
    """There is a job of this name on the farm already."""


class JobTakenOver(FarmError):
    """Another program has attached to this job: its futures are there now, and the calls go on. One of which
    ``future.accepted`` is False may not have arrived, and is not among them then."""


class JobUnknown(FarmError, LookupError):
    """There is no job of this name on the farm (any more)."""


class ProtocolError(FarmError):
    """A peer said something that the protocol does not allow."""


class VersionMismatch(ProtocolError):
    """Protocol, zfarm or Python versions of two peers do not fit; the text names both."""


class AccessDenied(ProtocolError, PermissionError):
    """The key that a peer showed does not allow this."""


class LimitExceeded(FarmError):
    """A limit was met; the text names it, its value and how to raise it."""


class FarmBusy(LimitExceeded):
    """The farm holds as many tasks as it may."""


class TooLarge(LimitExceeded):
    """A pickled call or result is above ``payload_bytes_max``, here or of the broker."""


class TransferError(FarmError, OSError):
    """A file cannot be sent, received or kept; the text names it, and ``errno`` says why where the system
    does."""

    def __init__(self, text: str, errno: int = 0) -> None:
        super().__init__(text)
        self.errno = errno

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.errno)


class FileUnknown(TransferError, LookupError):
    """The farm keeps nothing under this name, or nothing of this owner."""


class UnsafeName(TransferError, ValueError):
    """The name of a file leads out of its directory, cannot be a name, or clashes with another one."""


class DamagedFile(TransferError):
    """What has arrived of a file is not what was sent."""


class JournalError(FarmError, OSError):
    """The broker's journal cannot be written or read; ``errno`` says why where the system does.

    With ``fatal`` nobody knows what of the turn is on the disk: the broker must stop, and be started anew.
    Without, nothing of the turn is in the journal, and a later one may succeed.
    """

    def __init__(self, text: str, errno: int = 0, fatal: bool = False) -> None:
        super().__init__(text)
        self.errno = errno
        self.fatal = fatal

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (
            *self.args,
            self.errno,
            self.fatal,
        )  # an OSError pickles its errno only with a file


class JournalCorrupt(JournalError):
    """The journal is damaged: ``path``, ``where`` in it and what was found, what is ``kept`` and how to
    save it. ``file`` is which of its files, and ``offset`` the byte in it where the damaged part begins (a
    row, a page, or the rest of the log); 0: the file as a whole."""

    def __init__(
        self, text: str, path: str = "", where: str = "", kept: str = "", file: str = "", offset: int = 0
    ) -> None:
        super().__init__(text, fatal=True)
        self.path = path
        self.where = where
        self.kept = kept
        self.file = file or path
        self.offset = offset

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.path, self.where, self.kept, self.file, self.offset)


class TaskError(FarmError):
    """The task has no value, for a reason that is not the user's exception."""


@dataclass(frozen=True)
class Death:
    """How one attempt of a task ended without an outcome.

    ``stderr`` holds the last lines that its child wrote there since it was last idle (of the last three
    attempts), with its stack if it crashed. ``peak_bytes`` is the most memory that the child had in use in
    its life; 0: not known. ``oom`` says what speaks for a kill by the kernel for lack of memory: evidence,
    and no proof; empty: nothing does.
    """

    host: str
    worker: str
    signal: int
    exit_code: int
    text: str
    stderr: str = ""
    peak_bytes: int = 0
    oom: str = ""

    def __str__(self) -> str:
        return f"{self.text} on {self.host}" if self.host else self.text


class TaskLost(TaskError, BrokenExecutor):
    """Children or workers died under the task, ``max_attempts`` times.

    ``deaths`` tells each attempt; ``maybe_ran`` is True when the call may have had effects. With
    ``retries=0`` it is also raised when the broker was started again and nobody knows any more whether the
    call had begun.
    """

    def __init__(self, text: str, deaths: tuple[Death, ...] = (), maybe_ran: bool = True) -> None:
        super().__init__(text)
        self.deaths = deaths
        self.maybe_ran = maybe_ran


class TaskTimeout(TaskError, TimeoutError):
    """The task ran for longer than its timeout, and its child was killed; ``deaths`` tells where."""

    def __init__(self, text: str, deaths: tuple[Death, ...] = ()) -> None:
        super().__init__(text)
        self.deaths = deaths


class MemoryLimit(TaskError, MemoryError):
    """The call wanted more memory than its ``memory`` option allows. It is not run again.

    Either it was refused the memory and raised: then the ``__cause__`` shows where, and its child lives on.
    Or it had it in use and its child was killed: then ``deaths`` tells that, and ``used_bytes`` how much.
    """

    def __init__(self, text: str, used_bytes: int = 0, deaths: tuple[Death, ...] = ()) -> None:
        super().__init__(text)
        self.used_bytes = used_bytes
        self.deaths = deaths


class StreamGap(TaskError, LookupError):
    """Items ``first`` to ``last`` of one ``attempt`` of a task cannot be had; all 0: nobody knows which."""

    def __init__(self, text: str, attempt: int = 0, first: int = 0, last: int = 0) -> None:
        super().__init__(text)
        self.attempt = attempt
        self.first = first
        self.last = last


class ModuleMissing(TaskError, ModuleNotFoundError):
    """The function or an argument needs the module ``name``, which is not there on ``host``; the text says
    what to do."""

    def __init__(self, text: str, name: str = "", host: str = "") -> None:
        super().__init__(text)
        self.name = name
        self.host = host

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.name, self.host)


class NotPortable(TaskError, TypeError):
    """A call, value or exception that cannot be pickled or unpickled; the text names the culprit."""

    has_futures = False
    """An argument of the call is a future, for whose result it can wait."""


class RemoteError(TaskError):
    """Stands for an exception that could not come home; keeps its type name and text."""

    def __init__(self, text: str, type_name: str = "", traceback: str = "") -> None:
        super().__init__(text)
        self.type_name = type_name
        self.traceback = traceback


class RemoteTraceback(Exception):
    """The ``__cause__`` of an exception that came home: the traceback text of the child."""

    def __init__(self, traceback: str) -> None:
        super().__init__(traceback)
        self.traceback = traceback

    def __str__(self) -> str:
        return f'\n"""\n{self.traceback}"""'
