"""A task farm with the face of concurrent.futures: this machine's cores, or many hosts by an address."""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # type checkers know better; typing itself costs more than all the rest here
if TYPE_CHECKING:
    from zfarm.api import Executor, current_farm
    from zfarm.bars import track
    from zfarm.beyond import WorkerInfo
    from zfarm.errors import (
        AccessDenied,
        BrokerUnreachable,
        ConfigurationError,
        DamagedFile,
        Death,
        FarmBroken,
        FarmBusy,
        FarmClosed,
        FarmError,
        FileUnknown,
        ForkError,
        InitializerFailed,
        JobExists,
        JobTakenOver,
        JobUnknown,
        JournalCorrupt,
        JournalError,
        LimitExceeded,
        MemoryLimit,
        ModuleMissing,
        NotPortable,
        ProtocolError,
        RemoteError,
        RemoteTraceback,
        StreamGap,
        TaskError,
        TaskLost,
        TaskTimeout,
        TooLarge,
        TransferError,
        UnsafeName,
        VersionMismatch,
    )
    from zfarm.files import File, Files
    from zfarm.futures import Future
    from zfarm.handles import FileHandle
    from zfarm.jobs import Job, attach
    from zfarm.kept import Kept
    from zfarm.merging import StreamItem
    from zfarm.naming import NamedFile
    from zfarm.sharing import Shared
    from zfarm.streams import Item, Progress, Stream, emit, progress
    from zfarm.transfer import outdir, scratch, send_file

__all__ = [
    "AccessDenied",
    "BrokerUnreachable",
    "ConfigurationError",
    "DamagedFile",
    "Death",
    "Executor",
    "FarmBroken",
    "FarmBusy",
    "FarmClosed",
    "FarmError",
    "File",
    "FileHandle",
    "FileUnknown",
    "Files",
    "ForkError",
    "Future",
    "InitializerFailed",
    "Item",
    "Job",
    "JobExists",
    "JobTakenOver",
    "JobUnknown",
    "JournalCorrupt",
    "JournalError",
    "Kept",
    "LimitExceeded",
    "MemoryLimit",
    "ModuleMissing",
    "NamedFile",
    "NotPortable",
    "Progress",
    "ProtocolError",
    "RemoteError",
    "RemoteTraceback",
    "Shared",
    "Stream",
    "StreamGap",
    "StreamItem",
    "TaskError",
    "TaskLost",
    "TaskTimeout",
    "TooLarge",
    "TransferError",
    "UnsafeName",
    "VersionMismatch",
    "WorkerInfo",
    "__version__",
    "attach",
    "current_farm",
    "emit",
    "outdir",
    "progress",
    "scratch",
    "send_file",
    "track",
]

_HOMES = {
    "Executor": "zfarm.api",
    "File": "zfarm.files",
    "FileHandle": "zfarm.handles",
    "Files": "zfarm.files",
    "Future": "zfarm.futures",
    "Item": "zfarm.streams",
    "Job": "zfarm.jobs",
    "Kept": "zfarm.kept",
    "NamedFile": "zfarm.naming",
    "Progress": "zfarm.streams",
    "Shared": "zfarm.sharing",
    "Stream": "zfarm.streams",
    "StreamItem": "zfarm.merging",
    "WorkerInfo": "zfarm.beyond",
    "attach": "zfarm.jobs",
    "current_farm": "zfarm.api",
    "emit": "zfarm.streams",
    "outdir": "zfarm.transfer",
    "progress": "zfarm.streams",
    "scratch": "zfarm.transfer",
    "send_file": "zfarm.transfer",
    "track": "zfarm.bars",
}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import what is asked for only now: ``import zfarm`` itself costs nothing."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOMES.get(name, "zfarm.errors")
        value = globals()[name] = getattr(__import__(home, fromlist=[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
