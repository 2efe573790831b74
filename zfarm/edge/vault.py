"""The database file of a journal: who may open it, what must be found in it, and what its errors mean; it
knows no record.

Beside PATH lie PATH-wal (SQLite's log), PATH.blobs (large blobs), PATH.lock (held by the process that has it
open, whose number it contains) and PATH.mark. The mark tells the last turn that was committed. SQLite takes
a log that was cut or damaged for one whose tail was never committed, and silently goes on without; the mark
shows it. It is written after each commit and not synced: it is never ahead of what is on the disk, and it
survives the end of the process, so that only a power cut makes it late, and then it asks for less.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sqlite3
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from zfarm.edge.damage import end_of_log, spot_of_page, spot_of_row
from zfarm.edge.disk import sync_directory
from zfarm.edge.locks import Held, take_lock
from zfarm.edge.places import private_directory
from zfarm.edge.sealed import (
    ABOUT,
    MAGIC,
    MIGRATIONS,
    SCHEMA,
    SCHEMA_VERSION,
    About,
    Books,
    Broken,
    decode,
    sealed,
)
from zfarm.errors import ConfigurationError, FarmError, JournalCorrupt, JournalError

__all__ = ["Mark", "Vault", "no_room", "state_is_known"]

HEADER: Final = b"SQLite format 3\0"
READ_ABOUT: Final = msgspec.msgpack.Decoder(About)

BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
NO_ROOM: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)
"""A write that failed, as against a sync: the transaction's last page is not in the log, so it never was."""
ERRNO: Final = {
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
}
"""Errors of the world around us, by their primary code. Our statements are right, so any other is damage."""


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0)


def no_room(error: sqlite3.Error) -> bool:
    """Whether this error is a write that failed, on a full disk for example, and not a sync."""
    return _code(error) in NO_ROOM


def state_is_known(error: sqlite3.Error) -> bool:
    """Whether a transaction that met this error is certainly not in the database once it is rolled back."""
    return no_room(error) or _code(error) & 0xFF in (sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY)


def size_text(needs: int) -> str:
    """So many bytes, for people; 0: nobody knows how many."""
    return f"at least {-(-needs >> 20)} MiB" if needs else "some"


class Mark:
    """The file that tells the last turn committed, in the journal of this identity."""

    SIZE: Final = 8 + 16 + 4

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._identity = b""

    def read(self) -> tuple[int, bytes] | None:
        """Turn and identity; None if there is none that can be believed."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        if len(data) != self.SIZE or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "big"):
            return (
                None  # torn by a power cut, or damaged: then the journal itself is not, and may be believed
            )
        return int.from_bytes(data[:8], "big"), data[8:-4]

    def open(self, identity: bytes) -> None:
        """Make ready to write."""
        self._identity = identity
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def write(self, turn: int) -> None:
        """Note that this turn is committed."""
        data = turn.to_bytes(8, "big") + self._identity
        os.pwrite(self._fd, data + zlib.crc32(data).to_bytes(4, "big"), 0)

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Vault:
    """One opened database: ours alone while it is open.

    Raises:
        ConfigurationError: another process has it open, it is not ours or not private, of something else, or
            of a newer zfarm.
        JournalCorrupt: it is damaged.
        JournalError: it cannot be read or written.
    """

    def __init__(self, path: Path, create: bool = True) -> None:
        self.needs = 0  # bytes that are missing on the disk, as far as it is known
        self.path = Path(os.path.realpath(path))  # the lock must be the same whatever way leads here
        self.wal = self._beside("-wal")
        self.mark = Mark(self._beside(".mark"))
        self.about = About(MAGIC, SCHEMA_VERSION, b"", 0)
        self._lock_fd = -1
        self._lock_is_new = False
        self._kept_log: Path | None = None
        try:
            with self.watching("cannot be opened"):
                if not create and not self.path.exists():
                    raise ConfigurationError(f"there is no journal {self.path}")
                private_directory(self.path.parent, create=create, shared=True)
                self._check_kind(create)
                self._lock()
                self._check_log()
                self._check_file()
                self.db = self._connect()
        except BaseException:
            self._unlock()
            raise
        try:
            with self.watching("cannot be opened"):
                self.db.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._check_schema()
                self._configure()
        except JournalCorrupt:
            self.leave()
            raise
        except ConfigurationError:
            if self._lock_is_new:  # it is no journal that anybody has had open: leave nothing beside it
                os.unlink(self._beside(".lock"))
            self.close()
            raise
        except BaseException:
            self.close()
            raise

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    # ------------------------------------------------------------ who may open it

    def _check_kind(self, create: bool) -> None:
        """Refuse what was never a journal, before anything is left beside it; one that is damaged has a mark,
        and a broker makes one of an empty file."""
        if os.path.lexists(self.mark.path) or not self.path.is_file():
            return
        try:
            with open(self.path, "rb") as file:
                start = file.read(len(HEADER))
        except PermissionError:
            return  # whose it is will be said
        if start != HEADER and (start or not create):
            raise ConfigurationError(f"{self.path} is no journal: name another one")

    def _lock(self) -> None:
        path = self._beside(".lock")
        self._lock_is_new = not path.exists()
        try:
            self._lock_fd = take_lock(path)
        except Held as held:
            raise ConfigurationError(
                f"the journal {self.path} is in use by process {held.holder}: stop it, "
                "or name another journal"
            ) from None

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _check_log(self) -> None:
        """Refuse a log without its tables: it may hold all that there is, and SQLite would remove it."""
        size, log = (file.stat().st_size if file.exists() else 0 for file in (self.path, self.wal))
        if log and not size:
            what, log_name = "it is empty or missing, and its log is there", self.wal.name
            cure = f"SQLite removes {log_name} if it opens what has no tables: put those back first"
            raise self.corrupt(self.path.name, what, cure=cure)

    def _check_file(self) -> None:
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(self.path, flags, 0o600))
            sync_directory(self.path.parent)
            return
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{self.path} is no regular file: name another journal")
        if status.st_uid != os.geteuid():
            raise ConfigurationError(
                f"{self.path} belongs to user {status.st_uid}, and we are {os.geteuid()}"
            )
        if status.st_mode & 0o077:
            raise ConfigurationError(
                f"the journal {self.path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): "
                f"chmod 600 {self.path}"
            )
        if status.st_nlink != 1:
            raise ConfigurationError(
                f"{self.path} has {status.st_nlink} names (hard links), and the files that belong to it lie "
                "beside one of them only: remove the other names"
            )

    # ------------------------------------------------------------ opening it

    def _connect(self) -> sqlite3.Connection:
        # ONE connection, used by one thread, and nobody else's: SQLite 3.7.0 to 3.51.2 can damage a database
        # when two connections write or checkpoint its log at the same time, and many interpreters link those.
        return sqlite3.connect(self.path, isolation_level=None, timeout=0)

    def _configure(self) -> None:
        run = self.db.execute
        if not self.about.identity:
            run("PRAGMA auto_vacuum = INCREMENTAL")
        (mode,) = run("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise JournalError(
                f"the journal {self.path} cannot have a write-ahead log here: name another place"
            )
        run("PRAGMA synchronous = FULL")
        run("PRAGMA fullfsync = ON")  # macOS: a sync that deserves the name
        run("PRAGMA checkpoint_fullfsync = ON")
        run(
            "PRAGMA wal_autocheckpoint = 0"
        )  # SQLite would ignore a sync that fails there; we do it ourselves
        run("PRAGMA cache_size = -32000")
        run("PRAGMA trusted_schema = OFF")
        run("PRAGMA cell_size_check = ON")
        run("PRAGMA secure_delete = FAST")

    def _check_schema(self) -> None:
        found = dict(self.db.execute("SELECT name, sql FROM sqlite_schema").fetchall())
        mark = self.mark.read()
        if not found and mark is None:
            return  # new, or left by a process that was killed before it came to anything
        if "about" not in found and mark is None:
            raise ConfigurationError(f"{self.path} is a database of something else: name another journal")
        if "about" not in found:
            raise self.corrupt("sqlite_schema", "the tables are not those of a journal")
        row = self.db.execute("SELECT row FROM about WHERE id = ?", (ABOUT,)).fetchone()
        try:
            self.about = decode(READ_ABOUT, row[0] if row else None, ABOUT)
        except Broken as error:
            raise self.corrupt_row(f"table about, row {ABOUT}", f"it {error}", error.row) from error
        if self.about.version > SCHEMA_VERSION:
            raise ConfigurationError(
                f"a newer zfarm has written the journal {self.path} (its schema is {self.about.version}, "
                f"this zfarm knows {SCHEMA_VERSION}): upgrade zfarm, or name another journal"
            )
        if mark is not None and mark[1] != self.about.identity:
            raise self.corrupt(self.mark.path.name, "it belongs to another journal", self.mark.path)
        if self.about.version == SCHEMA_VERSION and found != SCHEMA:
            raise self.corrupt("sqlite_schema", "the tables are not those of a journal of this version")

    def build(self, epoch: int) -> None:
        """Within a transaction: make the tables of a new journal or bring old ones up to date, and enter its
        new epoch."""
        run = self.db.execute
        if not self.about.identity:
            for statement in SCHEMA.values():
                run(statement)
            self.about.identity = os.urandom(16)
        for version in range(self.about.version, SCHEMA_VERSION):
            for statement in MIGRATIONS[version]:
                run(statement)
        self.about.version = SCHEMA_VERSION
        self.about.epoch = epoch
        run("INSERT OR REPLACE INTO about VALUES (?, ?)", (ABOUT, sealed(self.about, ABOUT)))

    def quick_check(self) -> str:
        """What SQLite finds wrong with its pages, in a line; empty: nothing."""
        found = [str(row[0]) for row in self.db.execute("PRAGMA quick_check(3)")]
        return "" if found == ["ok"] else "; ".join(found)

    def _pages_found(self) -> str:
        """The same, after an error that names no page."""
        try:
            found = self.quick_check()
        except sqlite3.Error:  # it cannot even be looked at
            return ""
        return f" ({found})" if found else ""

    def check_turn(self, books: Books) -> None:
        """JournalCorrupt if turns that were committed are not here."""
        mark = self.mark.read()
        if mark is not None and mark[0] > books.turn:
            raise self.corrupt(
                self.wal.name,
                f"it ends with turn {books.turn}, but turn {mark[0]} had been committed (if an older copy "
                f"was put back on purpose, remove {self.mark.path.name})",
                self.wal,
                end_of_log(self.wal.read_bytes()) if self.wal.exists() else 0,
            )

    # ------------------------------------------------------------ closing it

    def close(self) -> None:
        """Let go of it. SQLite moves its log into the tables if it can."""
        try:
            self.db.close()
        finally:
            self.mark.close()
            self._unlock()

    def leave(self) -> None:
        """Let go of it, and keep its log as it is: the end of damage, or of a sync that failed."""
        option = getattr(sqlite3, "SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE", None)
        if option is not None:
            self.db.setconfig(option, True)  # type: ignore[attr-defined]
        self._keep_log()  # Python 3.11 cannot keep SQLite from moving the log into the tables and removing it
        with contextlib.suppress(sqlite3.Error):
            self.close()

    def _keep_log(self) -> Path:
        """A second name for the log, so that it outlives its first; its only name if it needs no other."""
        if self._kept_log is not None:
            return self._kept_log
        for number in range(1, 100):
            name = self._beside(f"-wal.kept-{number}")
            try:
                if not self.wal.stat().st_size:
                    break
                os.link(self.wal, name)
            except FileExistsError:
                continue
            except OSError:
                break  # no log, or a file system without links
            self._kept_log = name
            return name
        return self.wal

    # ------------------------------------------------------------ errors

    def corrupt(
        self, where: str, what: str, file: Path | None = None, offset: int = 0, cure: str = ""
    ) -> JournalCorrupt:
        """The error to raise for damage. ``offset``: the byte of ``file`` where what is damaged begins.
        ``cure``: what is to be said of SQLite if its own means would do harm."""
        file = self._keep_log() if file == self.wal else file or self.path
        kept = f"nothing was removed: {self.path.name}* in {self.path.parent} are all that there is"
        return JournalCorrupt(
            f"the journal {self.path} is damaged: {where}: {what} (byte {offset} of {file.name}). "
            f"{kept[0].upper()}{kept[1:]}; copy them away before anything else. "
            f"{cure or f'`sqlite3 {self.path.name} .recover` reads the rows that are whole'}; "
            "a broker starts anew with another journal",
            path=str(self.path),
            where=f"{where}: {what}",
            kept=kept,
            file=str(file),
            offset=offset,
        )

    def corrupt_row(self, where: str, what: str, row: object) -> JournalCorrupt:
        """The same, for what was read as a row."""
        sought = row if isinstance(row, bytes) else b""
        return self.corrupt(where, what, *spot_of_row(sought, self.path, self.wal))

    def corrupt_page(self, found: str) -> JournalCorrupt:
        """The same, for what SQLite has found."""
        return self.corrupt("found by SQLite", found, *spot_of_page(found, self.path, self.wal))

    def error(self, error: sqlite3.Error | OSError, what: str, fatal: bool = False) -> FarmError:
        """The error to raise for one of SQLite or the system."""
        if isinstance(error, OSError):
            why = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
            return self._trouble(what, why, error.errno or errno.EIO, fatal)
        code = _code(error)
        if code & 0xFF in BUSY:
            return ConfigurationError(f"the journal {self.path} is in use by another program: end that")
        if code == sqlite3.SQLITE_NOTADB and self.mark.read() is None:
            return ConfigurationError(f"{self.path} is no journal: name another one")
        locked = code & 0xFF == sqlite3.SQLITE_READONLY and os.access(self.path, os.W_OK)
        if code & 0xFF not in ERRNO or code == sqlite3.SQLITE_IOERR_SHORT_READ or locked:
            return self.corrupt_page(f"{error}{self._pages_found()}")
        number = ERRNO[code & 0xFF]
        said = str(error)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if code == sqlite3.SQLITE_IOERR_WRITE and limit != resource.RLIM_INFINITY:  # SQLite does not tell why
            said = f"{error}; files may have {limit} bytes at most: raise that, as with ulimit -f"
        return self._trouble(what, f"{os.strerror(number)} ({said})", number, fatal)

    def _trouble(self, what: str, why: str, number: int, fatal: bool) -> JournalError:
        if number in (errno.ENOSPC, errno.EDQUOT):
            why += (
                f". Free {size_text(self.needs)} on the file system of {self.path.parent}, or make it larger"
            )
        elif number == errno.EIO:
            why += f". The disk under {self.path.parent} fails: see what the system says of it (dmesg)"
        if fatal:
            why += (
                ". Nobody knows now how much of this the disk has, so nothing more is written; what was "
                "accepted is there when the journal is opened again"
            )
        return JournalError(f"the journal {self.path} {what}: {why}", number, fatal)

    def no_space(self, what: str) -> JournalError:
        """The error to raise for something that needs more bytes than the disk has."""
        return self._trouble(what, os.strerror(errno.ENOSPC), errno.ENOSPC, fatal=False)

    @contextlib.contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Turn the errors of SQLite and the system that leave this block into ours."""
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.InterfaceError, JournalError):
            raise  # our own mistake, or said already
        except (sqlite3.Error, OSError) as error:
            raise self.error(error, what) from error
