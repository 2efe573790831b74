"""The broker's journal: the records of a turn are on the disk when ``append`` returns, and ``replay`` gives
back what lives; it knows no machine.

The file is an SQLite database with a write-ahead log; who may open it and what must be found in it is in
vault, how a record becomes a row in entries, how rows are sealed in sealed, and large blobs are in spill.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

import msgspec

from zfarm.edge.entries import READ_ATTEMPT, READ_TASK, State, Turn
from zfarm.edge.room import Room
from zfarm.edge.sealed import (
    BOOKS,
    EMPTY,
    TASK_BITS,
    TASK_NUMBER_MAX,
    TOTAL_MASK,
    Books,
    Broken,
    Shared,
    TaskRow,
    checksum,
    decode,
    seal_of,
    sealed,
)
from zfarm.edge.spill import Spill
from zfarm.edge.vault import Vault, no_room, state_is_known
from zfarm.errors import FarmError, JournalCorrupt
from zfarm.messages import Accepted, Begun, Enrolled, Payload, Record, Settled
from zfarm.settings import Settings, settings

__all__ = ["TASK_NUMBER_MAX", "Journal", "JournalStats"]

READ_BOOKS: Final = msgspec.msgpack.Decoder(Books)
READ_SHARED: Final = msgspec.msgpack.Decoder(Shared)
READ_ENROLLED: Final = msgspec.msgpack.Decoder(Enrolled)
READ_ACCEPTED: Final = msgspec.msgpack.Decoder(Accepted)
READ_SETTLED: Final = msgspec.msgpack.Decoder(Settled)

EPOCH_MAX: Final = 2**31 - 1
ROWS_PER_READ: Final = 64
"""Rows read at once: with bodies just below the size of a file of their own, still a bounded share of
memory."""

T = TypeVar("T")


@dataclass(frozen=True)
class JournalStats:
    """A journal in numbers: bytes of its files, and what is in it. ``oldest_s`` is the age of the oldest
    task."""

    path: str
    epoch: int
    turns: int
    database_bytes: int
    free_bytes: int
    log_bytes: int
    blob_files: int
    blob_bytes: int
    clients: int
    queued: int
    ended: int
    functions: int
    oldest_s: float


class Journal:
    """The journal at ``path``, ours alone until it is closed. Use it from one thread.

    A new one is made unless ``create`` is False; a symbolic link leads to the journal itself. Without
    ``write`` it is only read, which needs no room on its disk.

    Raises:
        ConfigurationError: another process has it open (the text names it), it is not ours or open to others,
            it is something else, or a newer zfarm has written it.
        JournalCorrupt: it is damaged.
        JournalError: it cannot be read or written.
    """

    def __init__(
        self, path: Path | str, limits: Settings = settings, create: bool = True, write: bool = True
    ) -> None:
        self._limits = limits
        self._vault = Vault(Path(path), create)
        self._db = self._vault.db
        self.room = Room(self._vault, limits.journal_checkpoint_bytes)
        self._spill = Spill(self._vault.path.with_name(self._vault.path.name + ".blobs"))
        self._state = State()
        self._files: set[int] = set()  # while opening: those that rows name
        self._weight = 0
        self._closed = False
        self._writes = write or not self._vault.about.identity  # what has nothing in it is made first
        self._failed: FarmError | None = None
        try:
            with self._vault.watching("cannot be opened"):
                self._open()
        except BaseException as error:
            self._end(error)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """Where the journal is, links resolved."""
        return self._vault.path

    def epoch(self) -> int:
        """A number of 31 bits that grows each time the journal is opened, and is synced before it is told.

        The first is the time of day in seconds, so that a journal that was thrown away does not give its
        numbers again to the one that follows it.
        """
        return self._vault.about.epoch

    # ------------------------------------------------------------ writing

    def append(self, pairs: Sequence[tuple[Record, Payload]]) -> None:
        """Write these records, all or none; they are on the disk when this returns.

        The first Accepted and the first Settled of a task count; records about what is not known here change
        nothing. Task numbers go up to TASK_NUMBER_MAX.

        Raises:
            JournalError: nothing of this is in the journal, and a later turn may succeed (a full disk); or,
                with ``fatal``, nobody knows, and the broker must stop: what it holds may not be told.
            ValueError: an Accepted without an Enrolled before it, or with a task number that cannot be.
        """
        self._usable()
        if not pairs:
            return
        limits = self._limits
        turn = Turn(self._db, self._state, self._spill, limits.journal_file_from_bytes, int(time.time()))
        try:
            self._db.execute("BEGIN IMMEDIATE")
            turn.take(pairs)
            turn.finish()
            self._db.execute("COMMIT")
        except BaseException as error:
            self._undo(turn, error)
            raise
        with self._fatal("cannot be marked"):
            self._vault.mark.write(turn.books.turn)
        turn.adopt()
        self._weight += turn.weight
        if self._weight >= limits.journal_checkpoint_bytes:
            self._tidy()

    def _undo(self, turn: Turn, error: BaseException) -> None:
        """Roll back, and raise what ``error`` means; return if it is none of the outside."""
        known = self._rolled_back(error)
        turn.drop()
        if isinstance(error, Broken):
            raise self._give_up(self._vault.corrupt_row("found by a turn", str(error), error.row)) from error
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError | FarmError):
            return
        if isinstance(error, sqlite3.Error | OSError):
            said = self._vault.error(error, "cannot be written", fatal=not known)
            raise (said if known and not getattr(said, "fatal", True) else self._give_up(said)) from error

    def _rolled_back(self, error: BaseException) -> bool:
        """Whether the transaction is certainly not in the database."""
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            books = self._read_books()
        except (sqlite3.Error, Broken):
            return False
        if isinstance(error, sqlite3.Error) and not state_is_known(error):
            return False
        if isinstance(error, OSError) and error.errno == errno.EIO:
            return False  # of a blob's file: a disk that fails to sync one will fail others
        return books.turn == self._state.books.turn

    def no_space(self, needs: int) -> FarmError:
        """The error of a turn that there is no use in trying, since the disk lacks so many bytes for it."""
        self._vault.needs = needs
        return self._vault.no_space("cannot be written")

    def relieve(self) -> None:
        """Give room back to a disk that has little left.

        Raises:
            JournalError: with ``fatal``, the broker must stop; a disk without any room is none.
        """
        self._usable()
        self._tidy(scarce=True)

    def _tidy(self, scarce: bool = False) -> None:
        """Move the log into the tables, and give pages back that are not needed. The turn itself is safe."""
        db = self._db
        try:
            if self.room.tidy(scarce):
                self._weight = 0
        except sqlite3.Error as error:
            if not no_room(error):  # a sync that failed: the system may have forgotten what was to be written
                said = self._vault.error(error, "cannot be synced", fatal=True)
                raise self._give_up(said) from error
            if db.in_transaction:
                db.execute("ROLLBACK")

    # ------------------------------------------------------------ reading

    def replay(self) -> Iterator[tuple[Record, Payload]]:
        """The living state as records that can be applied one after the other.

        First Enrolled for each client; then, client by client in order of task numbers, Accepted, a Struck
        or Retried for each attempt that is over, Begun if it may have begun and must not do so again, and
        Settled if the task has ended: then function, setup and body of its Accepted are empty. Do not append
        before the last one has come.

        Raises:
            JournalCorrupt: something is not what was written; nothing before it is wrong.
        """
        self._usable()
        names = {number: client for client, number in self._state.clients.items()}
        with self._reading():
            for number, row in self._db.execute("SELECT id, row FROM clients ORDER BY id").fetchall():
                yield self._sound("clients", number, row, READ_ENROLLED), ()
            for key, row, body in self._rows():
                yield from self._task(key, row, body, names)

    def _task(
        self, key: int, row: object, body: object, names: dict[int, str]
    ) -> list[tuple[Record, Payload]]:
        task = self._sound("tasks", key, row, READ_TASK)
        accepted = READ_ACCEPTED.decode(task.accepted)
        if accepted.task != key & TASK_NUMBER_MAX or accepted.client != names.get(key >> TASK_BITS):
            raise self._vault.corrupt_row(f"table tasks, row {key}", "it is of another task", row)
        blob = self._body("tasks", key, task, body)
        bodies = self._state.bodies
        call: Payload = (bodies.get(task.function, b""), bodies.get(task.setup, b""), blob)
        if not (task.outcome or task.deaths or task.begun):
            return [(accepted, call)]
        pairs: list[tuple[Record, Payload]] = [(accepted, (b"", b"", b"") if task.outcome else call)]
        pairs += [(READ_ATTEMPT.decode(attempt), ()) for attempt in task.deaths]
        if task.begun and not task.outcome:
            pairs.append((Begun(accepted.client, accepted.task, task.begun), ()))
        if task.outcome:
            pairs.append((READ_SETTLED.decode(task.outcome), (blob,)))
        return pairs

    def _rows(self) -> Iterator[tuple[int, object, object]]:
        """Every row of tasks in order of its key. No statement is left open in between."""
        sql = f"SELECT id, row, body FROM tasks WHERE id > ? ORDER BY id LIMIT {ROWS_PER_READ}"
        last = -1
        while rows := self._db.execute(sql, (last,)).fetchall():
            yield from rows
            last = rows[-1][0]

    def _body(self, table: str, key: int, row: TaskRow | Shared, body: object) -> bytes:
        """The blob of a row, from wherever it is."""
        where = f"table {table}, row {key}"
        if row.file:
            where += f", blob {self._spill.path(row.file).name}"
            try:
                body = self._spill.read(row.file)
            except FileNotFoundError:
                raise self._vault.corrupt(where, "the file is missing", self._spill.path(row.file)) from None
        if not isinstance(body, bytes) or checksum(body) != row.check:
            text = "the blob does not fit its checksum"
            if row.file:
                raise self._vault.corrupt(where, text, self._spill.path(row.file))
            sql = f"SELECT row FROM {table} WHERE id = ?"
            raise self._vault.corrupt_row(where, text, self._db.execute(sql, (key,)).fetchone()[0])
        return body

    def _sound(self, table: str, key: int, row: object, decoder: msgspec.msgpack.Decoder[T]) -> T:
        try:
            return decode(decoder, row, key)
        except Broken as error:
            raise self._vault.corrupt_row(f"table {table}, row {key}", f"it {error}", error.row) from error

    def check(self) -> int:
        """Read everything and compare it with its checksums; tells how many records there are.

        Raises:
            JournalCorrupt: what is wrong, and where.
        """
        self._usable()
        with self._reading():
            self._check_pages()
            self._load(self._read_sound_books())
        return sum(1 for _ in self.replay())

    def stats(self) -> JournalStats:
        """The journal in numbers. Reads every row, without the blobs."""
        self._usable()
        with self._reading():
            database_bytes, free_bytes = self.room.tables()
            rows = self._db.execute("SELECT id, row FROM tasks")
            oldest = min((self._sound("tasks", key, row, READ_TASK).at for key, row in rows), default=0)
            log_bytes = self.room.log_bytes()
            sizes = self._spill.sizes()
        books = self._state.books
        return JournalStats(
            path=str(self.path),
            epoch=self.epoch(),
            turns=books.turn,
            database_bytes=database_bytes,
            free_bytes=free_bytes,
            log_bytes=log_bytes,
            blob_files=len(sizes),
            blob_bytes=sum(sizes.values()),
            clients=books.clients,
            queued=books.tasks - books.ended,
            ended=books.ended,
            functions=books.shared,
            oldest_s=max(0.0, time.time() - oldest) if oldest else 0.0,
        )

    # ------------------------------------------------------------ the file

    def compact(self) -> None:
        """Make the file as small as what is in it; needs room for a second one meanwhile. All or nothing.

        Raises:
            JournalError: it stays as it was; with ``fatal`` the broker must stop.
        """
        self._usable()
        try:
            self.room.to_compact()
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            fatal = not no_room(error)
            said = self._vault.error(error, "cannot be made smaller", fatal)
            raise (self._give_up(said) if fatal else said) from error
        self._weight = 0

    def close(self) -> None:
        """Bring the log into the tables, note that all is well, and let go. Harmless when done before.

        Raises:
            JournalError: that failed; nothing that was appended is lost by it.
        """
        if self._closed:
            return
        failed = self._failed
        try:
            if failed is None:
                with self._vault.watching("cannot be closed"):
                    if self._writes:
                        self._note(clean=True)
                        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except BaseException as error:
            failed = error if isinstance(error, FarmError) else None
            raise
        finally:
            self._end(failed)

    def _end(self, error: BaseException | None) -> None:
        self._closed = True
        if getattr(error, "fatal", False):
            self._vault.leave()
        else:
            self._vault.close()

    def _open(self) -> None:
        """See that the file is whole, learn what is in it, and enter the new epoch."""
        old = self._vault.about.epoch
        fresh = not self._vault.about.identity
        if not fresh:
            books = self._read_sound_books()
            self._vault.check_turn(books)
            self._check_pages()  # also when all was well at the last close: bits flip on disks at rest
            self._state, self._files = self._load(books)
        if not self._writes:
            return
        self.room.to_open()
        epoch = old + 1 if old else int(time.time()) & EPOCH_MAX
        self._db.execute("BEGIN IMMEDIATE")
        self._vault.build(epoch if epoch <= EPOCH_MAX else 1)
        self._write_books(clean=False)
        self._db.execute("COMMIT")
        self._vault.mark.open(self._vault.about.identity)
        self._vault.mark.write(self._state.books.turn)
        self._spill.sweep(self._files)
        self._files = set()
        self._vault.needs = 0
        self._tidy()

    def _check_pages(self) -> None:
        found = self._vault.quick_check()
        if found:
            raise self._vault.corrupt_page(found)

    def _load(self, books: Books) -> tuple[State, set[int]]:
        """Read every row, without the blobs of tasks; compare all with its seals and with the books. Returns
        what is there, and the files that rows name."""
        state = State(books=books)
        found = Books(turn=books.turn, clean=books.clean)
        for number, row in self._db.execute("SELECT id, row FROM clients"):
            state.clients[self._sound("clients", number, row, READ_ENROLLED).client] = number
            found.clients += 1
            found.add(row)
        for number, row, body in self._db.execute("SELECT id, row, body FROM shared"):
            shared = self._sound("shared", number, row, READ_SHARED)
            blob = self._body("shared", number, shared, body)
            state.numbers[blob] = number
            state.bodies[number] = blob
            if shared.file:
                state.files[number] = shared.file
            found.shared += 1
            found.add(row)
        files = set(state.files.values())
        self._load_tasks(state, found, files)
        if found != books or state.refs.keys() != state.bodies.keys():
            raise self._vault.corrupt("the tables", f"they hold {found}, and should hold {books}")
        state.next_shared = max(state.bodies, default=EMPTY) + 1
        return state, files

    def _load_tasks(self, state: State, found: Books, files: set[int]) -> None:
        refs, tops = state.refs, state.tops
        count = ended = total = 0
        for key, row in self._db.execute("SELECT id, row FROM tasks ORDER BY id"):
            task = self._sound("tasks", key, row, READ_TASK)
            tops[key >> TASK_BITS] = key
            count += 1
            total += seal_of(row)
            if task.file:
                files.add(task.file)
            if task.outcome:
                ended += 1
                continue
            for number in (task.function, task.setup):
                if number != EMPTY:
                    refs[number] = refs.get(number, 0) + 1
        found.tasks, found.ended = count, ended
        found.total = found.total + total & TOTAL_MASK

    def _note(self, clean: bool) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._write_books(clean)
        self._db.execute("COMMIT")
        self._vault.mark.write(self._state.books.turn)

    def _write_books(self, clean: bool) -> None:
        books = msgspec.structs.replace(self._state.books, turn=self._state.books.turn + 1, clean=clean)
        self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (BOOKS, sealed(books, BOOKS)))
        self._state.books = books

    def _read_books(self) -> Books:
        row = self._db.execute("SELECT row FROM about WHERE id = ?", (BOOKS,)).fetchone()
        return decode(READ_BOOKS, row[0] if row else None, BOOKS)

    def _read_sound_books(self) -> Books:
        try:
            return self._read_books()
        except Broken as error:
            raise self._vault.corrupt_row(f"table about, row {BOOKS}", f"it {error}", error.row) from error

    # ------------------------------------------------------------ when it went wrong

    def _usable(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._closed:
            raise ValueError(f"the journal {self.path} is closed")

    def _give_up(self, error: FarmError) -> FarmError:
        """From now on there is only this error: what is on the disk must not change any more."""
        self._failed = error
        return error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with self._vault.watching("cannot be read"):
                yield
        except JournalCorrupt as error:
            raise self._give_up(error) from error.__cause__

    @contextlib.contextmanager
    def _fatal(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._give_up(self._vault.error(error, what, fatal=True)) from error
