"""Directories and files that are ours alone: private files, sockets of embedded farms; it opens no socket.

Every farm of a user on this host has a directory of its own below one runtime directory: its sockets, a lock
that its process holds for life, and a description for ``zfarm top`` and ``zfarm status``. Whoever finds a
directory whose lock is free removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from zfarm.edge.locks import Held, open_lock, take_lock
from zfarm.errors import ConfigurationError

__all__ = [
    "TOKEN_PREFIX",
    "Claim",
    "FarmPlace",
    "LocalFarm",
    "claim_socket",
    "hold",
    "list_local_farms",
    "lock_of",
    "new_place",
    "private_directory",
    "read_private",
    "refuse_secret",
    "runtime_directory",
    "store_directory",
    "sweep",
    "write_private",
]

TOKEN_PREFIX: Final = "zfarm-join:"
"""How the line begins with which a worker joins. It is a secret."""
FILE_MAX: Final = 1024 * 1024
"""Bytes of a private file: keys and descriptions are small."""


def store_directory() -> Path:
    """Where the workers of this user keep files for calls: $ZFARM_STORE, else in the user's cache."""
    chosen = os.environ.get("ZFARM_STORE")
    if chosen:
        return Path(os.path.abspath(chosen))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.path.abspath(cache)) / "zfarm" / "store"


# ---------------------------------------------------------------- private directories and files


def private_directory(path: Path, create: bool = False, shared: bool = False) -> Path:
    """Check that ``path`` is a directory of ours that nobody else can enter; make it first if ``create``.

    With ``shared`` others may read it, but not write.

    Raises:
        ConfigurationError: it is not; the text says the remedy.
    """
    if create:
        with contextlib.suppress(FileExistsError):
            try:
                os.makedirs(path.parent, mode=0o700, exist_ok=True)
                os.mkdir(path, 0o700)
            except OSError as error:
                if isinstance(error, FileExistsError):
                    raise
                raise ConfigurationError(f"cannot make the directory {path}: {error.strerror}") from None
    try:
        status = os.lstat(path)
    except OSError as error:
        raise ConfigurationError(f"cannot use the directory {path}: {error.strerror}") from None
    if stat.S_ISLNK(status.st_mode):
        raise ConfigurationError(f"{path} is a symbolic link: name the directory that it leads to")
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigurationError(f"{path} is no directory: move it away")
    _check_owner(path, status)
    bad = 0o022 if shared else 0o077
    if status.st_mode & bad:
        raise ConfigurationError(
            f"the directory {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): "
            f"chmod {'go-w' if shared else '700'} {path}"
        )
    return path


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise ConfigurationError(
            f"{path} belongs to user {status.st_uid}, and we are {os.geteuid()}: "
            "use a file and directory of your own"
        )


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, complete or not at all, in a directory of ours.

    A directory that is not there is made, private.

    Raises:
        ConfigurationError: others could write in the directory, or it cannot be written.
    """
    if not os.path.lexists(path.parent):
        private_directory(path.parent, create=True)
    private_directory(path.parent, shared=True)
    beside = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(beside, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None


def refuse_secret(text: str) -> None:
    """Of a token, or what is in a connection file, in the place of an address or a name, no word may reach a
    log.

    Raises:
        ConfigurationError: it is one; and what to do.
    """
    if text.startswith(TOKEN_PREFIX):
        what, remedy = "a token", "`zfarm worker --token-file FILE|-` reads it"
    elif text.lstrip().startswith("{"):
        what, remedy = "what is in a connection file", "give the file's name, with --connection"
    else:
        return
    raise ConfigurationError(
        f"{what} is a secret, and belongs into a private file: {remedy}. Others of this host may see "
        "arguments and environment: take the key back with `zfarm key revoke`, and make a new one"
    )


def read_private(path: Path) -> bytes:
    """What is in a file that must be ours and closed to others.

    Nor may others be able to put another file in its place, except where the system forbids them that (as in
    /tmp).

    Raises:
        ConfigurationError: there is none, or it is a link, not ours, or open to others; and the remedy.
    """
    refuse_secret(path.name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise ConfigurationError(f"{path} is a symbolic link: name the file that it leads to") from None
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    with open(fd, "rb") as file:
        _check_surroundings(path)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path} is no regular file")
        _check_owner(path, status)
        if status.st_mode & 0o077:
            raise ConfigurationError(
                f"{path} holds secret keys and is open to others (mode {stat.S_IMODE(status.st_mode):04o}): "
                f"chmod 600 {path}"
            )
        if status.st_size > FILE_MAX:
            raise ConfigurationError(f"{path} has {status.st_size} bytes, at most {FILE_MAX} are allowed")
        return file.read(FILE_MAX)


def _check_surroundings(path: Path) -> None:
    try:
        mode = os.stat(path.parent).st_mode
    except OSError as error:  # it was removed with its directory, just now
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise ConfigurationError(
            f"others may replace {path}, since they may write in its directory "
            f"(mode {stat.S_IMODE(mode):04o}): chmod go-w {path.parent}"
        )


def hold(path: Path) -> int:
    """Take the connection file ``path`` for as long as this process lives; the descriptor that holds it. It
    is free as soon as that is closed, by the death of the process at the latest.

    Raises:
        ConfigurationError: another process has it (the text names it), or there can be no lock beside it.
    """
    lock = _lock_beside(path)
    try:
        return take_lock(lock)
    except Held as held:
        raise ConfigurationError(
            f"{path} is the connection file of the broker in process {held.holder}, which is alive: "
            "stop that, or name another file with --connection"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot lock {lock}: {error.strerror}") from None


@contextlib.contextmanager
def lock_of(path: Path) -> Iterator[None]:
    """Wait until nobody else changes the private file ``path``, and keep others out meanwhile.

    Raises:
        ConfigurationError: the directory is writable by others or not ours, or there can be no lock in it.
    """
    lock = _lock_beside(path)
    try:
        fd = open_lock(lock)
    except OSError as error:
        raise ConfigurationError(f"cannot lock {lock}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock_beside(path: Path) -> Path:
    """The lock of a private file, in a directory that is there and only ours to write in."""
    if not os.path.lexists(path.parent):
        private_directory(path.parent, create=True)
    private_directory(path.parent, shared=True)
    return path.with_name(f"{path.name}.lock")


# ---------------------------------------------------------------- the runtime directory


def runtime_directory() -> Path:
    """The private directory for sockets of this user on this host; short, since a socket's name must be.

    XDG_RUNTIME_DIR/zfarm where that is good, else /tmp/zfarm-UID. Everybody can write in /tmp, so what is
    found there is checked before it is used.

    Raises:
        ConfigurationError: somebody else has taken the place.
    """
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given and os.path.isabs(given):
        with contextlib.suppress(
            ConfigurationError
        ):  # a stale or foreign one (sudo keeps it) is no reason to fail
            private_directory(Path(given))
            return private_directory(Path(given) / "zfarm", create=True)
    base = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir()
    return private_directory(Path(base) / f"zfarm-{os.geteuid()}", create=True)


@dataclass(frozen=True)
class LocalFarm:
    """An embedded farm of this user on this host, as it describes itself."""

    address: str
    notes_address: str
    pid: int  # of the farm's process
    client_pid: int
    started_at: float  # seconds since 1970
    program: str = ""
    directory: str = ""


class FarmPlace:
    """The directory of one embedded farm, held by a lock until ``remove``, ``release`` or the process ends.

    To hand it to another process, let that inherit ``lock_fd`` and make a FarmPlace of the same two there,
    then ``release`` it here. A process that was merely forked holds the lock, too: close ``lock_fd`` there.
    """

    def __init__(self, directory: Path, lock_fd: int) -> None:
        self.directory = directory
        self.address = f"ipc://{directory}/broker"
        self.notes_address = f"ipc://{directory}/notes"
        self.lock_fd = lock_fd

    def describe(self, pid: int, client_pid: int, program: str = "") -> None:
        """Let ``zfarm top`` and ``zfarm status`` find this farm."""
        farm = LocalFarm(
            self.address, self.notes_address, pid, client_pid, time.time(), program, str(self.directory)
        )
        write_private(self.directory / "farm.json", msgspec.json.encode(farm))

    def release(self) -> None:
        """Let go of the lock without removing anything: another process that has inherited it holds it on."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def remove(self) -> None:
        """Remove the directory with all that is in it, then let go of the lock. Harmless when done before."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.release()


def new_place() -> FarmPlace:
    """A fresh private directory for one embedded farm; stale ones are swept on the way.

    The lock belongs to the open file: a process forked from this one shares it, and it is free only when the
    last of them has gone or let go.

    Raises:
        ConfigurationError: there is no private place for it.
    """
    parent = runtime_directory()
    sweep(parent)
    for _ in range(100):
        directory = parent / secrets.token_hex(4)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigurationError(f"cannot make a directory in {parent}: {error.strerror}") from None
        lock_fd = _lock(directory / "lock", create=True)
        # a sweeper may have come between mkdir and lock: then the lock lies in a directory that is gone
        if lock_fd is not None and _still_there(directory / "lock", lock_fd):
            return FarmPlace(directory, lock_fd)
        if lock_fd is not None:
            os.close(lock_fd)
    raise ConfigurationError(f"cannot make a directory in {parent}: something removes it at once")


def _lock(path: Path, create: bool = False, shared: bool = False) -> int | None:
    """A descriptor that holds the lock ``path``; None if another process has it or it cannot be opened."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        fd = os.open(path, flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _still_there(path: Path, fd: int) -> bool:
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


def sweep(parent: Path | None = None) -> list[Path]:
    """Remove the directories of farms that are gone, those whose lock is free; tells which."""
    parent = parent or runtime_directory()
    removed = []
    for directory in _directories(parent):
        lock_fd = _lock(directory / "lock", create=True)
        if lock_fd is None:
            continue
        try:
            if _still_there(directory / "lock", lock_fd):
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(directory)
        finally:
            os.close(lock_fd)
    return removed


def _directories(parent: Path) -> Iterator[Path]:
    """The directories in ``parent``, which is closed to others, so that all are ours."""
    with os.scandir(parent) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield parent / entry.name


def list_local_farms() -> list[LocalFarm]:
    """The embedded farms of this user that run on this host now, the newest last."""
    farms = []
    for directory in _directories(runtime_directory()):
        lock_fd = _lock(directory / "lock", shared=True)  # two that look do not disturb each other
        if lock_fd is not None:
            os.close(lock_fd)  # nobody holds it: a farm that is gone
            continue
        try:
            farm = msgspec.json.decode(read_private(directory / "farm.json"), type=LocalFarm)
        except (ConfigurationError, msgspec.MsgspecError, UnicodeDecodeError):
            continue  # not described yet, or gone meanwhile
        farms.append(replace(farm, directory=str(directory)))
    return sorted(farms, key=lambda farm: farm.started_at)


# ---------------------------------------------------------------- sockets


class Claim:
    """The right to bind one local socket. Keep it while the socket is bound; ``release`` removes the path."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    def release(self) -> None:
        """Remove the socket and let the next one have its name. Harmless when done before."""
        if self._lock_fd < 0:
            return
        for path in (self.path, _lock_path(self.path)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        os.close(self._lock_fd)
        self._lock_fd = -1


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def claim_socket(path: Path) -> Claim:
    """Make ``path`` safe to bind: binding takes over whatever is there, a live broker's socket included.

    Raises:
        ConfigurationError: the directory is open to others, another process listens there, or something that
            is not a socket of ours lies there.
    """
    private_directory(path.parent)
    for _ in range(100):
        lock_fd = _lock(_lock_path(path), create=True)
        if lock_fd is None:
            raise ConfigurationError(f"another process listens on {path}: stop it or use another path")
        if _still_there(_lock_path(path), lock_fd):
            break
        os.close(lock_fd)  # its last owner removed it while we took it
    else:
        raise ConfigurationError(f"cannot take the lock of {path}: something removes it at once")
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return Claim(path, lock_fd)
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        os.close(lock_fd)
        raise ConfigurationError(f"{path} is there and is no socket of ours: remove it or use another path")
    os.unlink(path)  # left by a process that was killed: its lock was free
    return Claim(path, lock_fd)
