"""What tasks do with files, and what their clients see of it: send_file, outdir, Files; no socket."""

from __future__ import annotations

import os
from pathlib import Path

from zfarm.edge.names import check_name
from zfarm.edge.scratch import Scratch
from zfarm.errors import ConfigurationError, TransferError
from zfarm.files import File, Files, FilesProgress
from zfarm.handles import FileHandle
from zfarm.outbox import outbox_of
from zfarm.streams import inside_task

__all__ = ["File", "FileHandle", "Files", "FilesProgress", "outdir", "scratch", "send_file"]


def send_file(path: str | os.PathLike[str], name: str | None = None) -> None:
    """Send a file from the running task to its client, as it is now: it comes as one of ``future.files``.

    ``name`` is how it shall be called there, with directories between slashes if need be; by default its own
    name. Waits while the client is behind by more than ``settings.files_window_bytes``; when this returns the
    file may be changed or removed.

    Raises:
        UnsafeName: the name is absolute, leads upwards, is no name, or clashes with one that was sent before.
        TransferError: it is a directory, device or pipe, cannot be read, gets shorter meanwhile, or is larger
            than ``settings.file_bytes_max``.
        RuntimeError: this process does not run a task of a farm, or one of a map, which has no future.
    """
    outbox = outbox_of(inside_task("send_file()"), "send_file()")
    outbox.send(path, check_name(os.path.basename(os.fspath(path)) if name is None else name))


def outdir() -> Path:
    """A directory of the running task whose whole content goes to its client when the task ends, in whatever
    way but by a death: files with their permissions, directories, empty ones too. Then it is removed, in its
    own time.

    Files come as with ``send_file``, under their names in that directory. What is no file or directory
    (symbolic links, devices, pipes) or has a name that cannot travel is refused, and the client is told.

    Raises:
        TransferError: it cannot be made.
        RuntimeError: as for ``send_file``.
    """
    inside = inside_task("outdir()")
    outbox = outbox_of(inside, "outdir()")
    if outbox.directory is None:
        try:
            outbox.directory = Scratch()
        except (OSError, ConfigurationError) as error:
            raise TransferError(f"the output directory cannot be made: {error}") from error
    return outbox.directory.path


def scratch() -> Path:
    """The private directory of the running task, for what nobody else shall see: made at the first call, and
    with the files that ``options(files=...)`` places there. It is removed when the task has ended, in
    whatever way.

    Raises:
        TransferError: it cannot be made.
        RuntimeError: this process does not run a task of a farm.
    """
    from zfarm.edge.workplace import workplace_of

    return workplace_of(inside_task("scratch()")).path
