"""The records of one turn on their way into the tables of a journal; it knows no file but through Spill, and
begins and ends no transaction.

A turn changes nothing in memory but itself: what was true before stays in State, and State takes the turn's
view over once it is committed. So a turn that fails is simply dropped. Statements run over many rows at
once, in the order accepted, changed (begun, retried, struck), settled, forgotten; a record that would come
too late in this order first makes the others go ahead.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec import structs

from zfarm.edge.sealed import (
    BOOKS,
    EMPTY,
    TASK_BITS,
    TASK_NUMBER_MAX,
    Books,
    Broken,
    Shared,
    TaskRow,
    checksum,
    decode,
    encode,
    sealed,
)
from zfarm.edge.spill import Spill
from zfarm.messages import (
    Accepted,
    Begun,
    Blob,
    Dropped,
    Enrolled,
    Forgotten,
    Payload,
    Record,
    Retried,
    Settled,
    Struck,
)

__all__ = ["READ_ATTEMPT", "READ_TASK", "State", "Turn", "key_list"]

READ_TASK: Final = msgspec.msgpack.Decoder(TaskRow)
READ_ATTEMPT: Final = msgspec.msgpack.Decoder(Struck | Retried)
LAST_WORDS: Final = 3
"""As the books in memory keep them (zfarm.core.deaths)."""
CLIENTS_MAX: Final = 1 << (63 - TASK_BITS)
CHANGED, SETTLED, FORGOTTEN = (
    1,
    2,
    3,
)  # how far a task has come within a turn; not mentioned: accepted at most

key_list = msgspec.json.encode
"""Keys as one parameter: `IN (SELECT value FROM json_each(?))` costs a third of one statement per key."""

WEIGHT_OF_TURN: Final = 8192
"""Bytes of the log for a turn that hardly does anything: a page of tasks and the page of the books."""

SELECT = "SELECT id, row FROM tasks WHERE id IN (SELECT value FROM json_each(?))"
DELETE = "DELETE FROM tasks WHERE id IN (SELECT value FROM json_each(?)) RETURNING id, row"
DELETE_CLIENT = "DELETE FROM tasks WHERE id BETWEEN ? AND ? RETURNING id, row"


@dataclass
class State:
    """What is known of the tables without reading them. ``refs`` counts the tasks without outcome per shared
    blob; ``tops`` holds at least the highest task key per client row."""

    books: Books = field(default_factory=Books)
    clients: dict[str, int] = field(default_factory=dict)
    tops: dict[int, int] = field(default_factory=dict)
    numbers: dict[bytes, int] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)
    files: dict[int, int] = field(default_factory=dict)  # shared number to its file, where it has one
    refs: dict[int, int] = field(default_factory=dict)
    next_shared: int = EMPTY + 1


class Turn:
    """One turn: ``take`` its pairs, then ``finish``, all within one transaction; then ``adopt`` or
    ``drop``."""

    def __init__(self, db: sqlite3.Connection, state: State, spill: Spill, file_from: int, at: int) -> None:
        self.books = msgspec.structs.replace(state.books, turn=state.books.turn + 1, clean=False)
        self.weight = WEIGHT_OF_TURN  # bytes, roughly, that this turn adds to the log
        self._db = db
        self._state = state
        self._spill = spill
        self._file_from = file_from
        self._at = at
        self._clients = state.clients
        self._shared: dict[bytes, int] = {}  # new in this turn
        self._shared_files: dict[int, int] = {}
        self._change: dict[int, int] = {}  # of refs
        self._written: list[int] = []
        self._gone: list[int] = []
        self._stages: dict[int, int] = {}
        self._accepted: dict[int, tuple[int, bytes, Blob]] = {}
        self._changed: dict[int, list[Begun | Retried | Struck]] = {}
        self._settled: dict[int, tuple[bytes, Blob]] = {}
        self._forgotten: list[int] = []

    def take(self, pairs: Sequence[tuple[Record, Payload]]) -> None:
        """Note these records, and write what cannot wait."""
        for record, payload in pairs:
            if isinstance(record, Accepted):
                self._on_accepted(record, payload)
            elif isinstance(record, Settled):
                self._on_settled(record, payload)
            elif isinstance(record, Forgotten):
                self._on_forgotten(record)
            elif isinstance(record, Begun | Retried | Struck):
                self._on_changed(record)
            elif isinstance(record, Enrolled):
                self._on_enrolled(record)
            else:
                self._on_dropped(record)

    def finish(self) -> None:
        """Write what is left, and the books. What must be safe before the commit is safe after this."""
        self._flush()
        self._sweep_shared()
        self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (BOOKS, sealed(self.books, BOOKS)))
        if self._written:
            self._spill.sync()

    def adopt(self) -> None:
        """The turn is committed: make its view the State."""
        state = self._state
        state.books = self.books
        state.clients = self._clients
        state.files.update(self._shared_files)
        for blob, number in self._shared.items():
            state.numbers[blob] = number
            state.bodies[number] = blob
            state.next_shared = max(state.next_shared, number + 1)
        for number, change in self._change.items():
            left = state.refs.get(number, 0) + change
            if left:
                state.refs[number] = left
            else:
                state.refs.pop(number, None)
                state.files.pop(number, None)
                del state.numbers[state.bodies.pop(number)]
        self._spill.remove(self._gone)

    def drop(self) -> None:
        """The turn is rolled back: leave no trace."""
        self._spill.remove(self._written)

    # ------------------------------------------------------------ records

    def _key(self, client: str, task: int) -> int:
        """The key of a task; -1 if there can be none."""
        number = self._clients.get(client)
        if number is None or not 0 <= task <= TASK_NUMBER_MAX:
            return -1
        return number << TASK_BITS | task

    def _on_accepted(self, record: Accepted, payload: Payload) -> None:
        key = self._key(record.client, record.task)
        if key < 0:
            raise ValueError(f"no client {record.client!r} was enrolled, or {record.task} is no task number")
        if key in self._stages:
            self._flush()
        tops = self._state.tops
        client = key >> TASK_BITS
        if key > tops.get(client, -1):
            tops[client] = key  # too high, should the turn be dropped: that costs a look more, and no harm
        elif key in self._accepted or self._db.execute("SELECT 1 FROM tasks WHERE id = ?", (key,)).fetchone():
            return  # the first one counts
        function, setup, body = payload
        row = TaskRow(
            accepted=encode(record),
            function=self._share(function),
            setup=self._share(setup),
            at=self._at,
            check=checksum(body),
        )
        if len(body) >= self._file_from:
            row.file, body = self._write(body), b""
        self._accepted[key] = (key, sealed(row, key), body)
        self.weight += len(body)

    def _on_changed(self, record: Begun | Retried | Struck) -> None:
        key = self._key(record.client, record.task)
        if self._stages.get(key, 0) > CHANGED:
            self._flush()
        self._stages[key] = CHANGED
        self._changed.setdefault(key, []).append(record)

    def _on_settled(self, record: Settled, payload: Payload) -> None:
        key = self._key(record.client, record.outcome.task)
        if self._stages.get(key, 0) > SETTLED:
            self._flush()
        self._stages[key] = SETTLED
        self._settled.setdefault(key, (encode(record), payload[0]))

    def _on_forgotten(self, record: Forgotten) -> None:
        for task in record.tasks:
            key = self._key(record.client, task)
            self._stages[key] = FORGOTTEN
            self._forgotten.append(key)

    def _own_clients(self) -> None:
        """Clients change seldom: then this turn gets a table of its own."""
        if self._clients is self._state.clients:
            self._clients = dict(self._clients)

    def _on_enrolled(self, record: Enrolled) -> None:
        self._own_clients()
        number = self._clients.get(record.client)
        if number is None:
            number = self._free_number()
            self.books.clients += 1
        else:
            (old,) = self._db.execute("SELECT row FROM clients WHERE id = ?", (number,)).fetchone()
            self.books.subtract(old)
        row = sealed(record, number)
        self.books.add(row)
        self._db.execute("INSERT OR REPLACE INTO clients VALUES (?, ?)", (number, row))
        self._clients[record.client] = number

    def _free_number(self) -> int:
        """A row number for a new client: never one that a client of this turn or of before has."""
        (highest,) = self._db.execute("SELECT coalesce(max(id), 0) FROM clients").fetchone()
        number: int = highest + 1
        if number < CLIENTS_MAX:
            return number
        taken = set(self._clients.values())
        return next(free for free in range(1, CLIENTS_MAX) if free not in taken)

    def _on_dropped(self, record: Dropped) -> None:
        number = self._clients.get(record.client)
        if number is None:
            return
        self._flush()  # the number may be taken by another client within this turn
        self._own_clients()
        del self._clients[record.client]
        low = number << TASK_BITS
        self._deleted(self._db.execute(DELETE_CLIENT, (low, low | TASK_NUMBER_MAX)).fetchall())
        (old,) = self._db.execute("DELETE FROM clients WHERE id = ? RETURNING row", (number,)).fetchone()
        self.books.subtract(old)
        self.books.clients -= 1

    # ------------------------------------------------------------ rows

    def _flush(self) -> None:
        if self._accepted:
            self._insert_accepted()
        if self._changed:
            self._update_changed()
        if self._settled:
            self._update_settled()
        if self._forgotten:
            self._deleted(self._db.execute(DELETE, (key_list(self._forgotten),)).fetchall())
            self._forgotten.clear()
        self._stages.clear()

    def _insert_accepted(self) -> None:
        add = self.books.add
        for _key, row, _body in self._accepted.values():
            add(row)
        self._db.executemany("INSERT INTO tasks VALUES (?, ?, ?)", self._accepted.values())
        self.books.tasks += len(self._accepted)
        self.weight += 256 * len(self._accepted)
        self._accepted.clear()

    def _read(self, keys: Iterable[int]) -> list[tuple[int, bytes, TaskRow]]:
        """The rows that there are among these, without outcome."""
        found = []
        for key, row in self._db.execute(SELECT, (key_list(list(keys)),)).fetchall():
            task = decode(READ_TASK, row, key)
            if not task.outcome:
                found.append((key, row, task))
        return found

    def _update_changed(self) -> None:
        rows = []
        for key, old, task in self._read(self._changed):
            for record in self._changed[key]:
                if isinstance(record, Begun):
                    task.begun = record.lease
                else:
                    task.deaths = _with_attempt(task.deaths, record)
            rows.append((self._replaced(old, task, key), key))
        self._db.executemany("UPDATE tasks SET row = ? WHERE id = ?", rows)
        self.weight += 512 * len(rows)
        self._changed.clear()

    def _update_settled(self) -> None:
        rows: list[tuple[bytes, Blob, int]] = []
        for key, old, task in self._read(self._settled):
            task.outcome, blob = self._settled[key]
            self._release(task)
            task.check = checksum(blob)
            task.file = 0
            if len(blob) >= self._file_from:
                task.file, blob = self._write(blob), b""
            rows.append((self._replaced(old, task, key), blob, key))
            self.weight += len(blob) + 256
        self._db.executemany("UPDATE tasks SET row = ?, body = ? WHERE id = ?", rows)
        self.books.ended += len(rows)
        self._settled.clear()

    def _replaced(self, old: bytes, task: TaskRow, key: int) -> bytes:
        row = sealed(task, key)
        self.books.subtract(old)
        self.books.add(row)
        return row

    def _deleted(self, rows: list[tuple[int, bytes]]) -> None:
        """These rows of tasks are gone: so is what they held."""
        for key, row in rows:
            task = decode(READ_TASK, row, key)
            self.books.subtract(row)
            if task.outcome:
                self.books.ended -= 1
                if task.file:
                    self._gone.append(task.file)
            else:
                self._release(task)
        self.books.tasks -= len(rows)
        self.weight += 256 * len(rows)

    def _release(self, task: TaskRow) -> None:
        """This call will not be needed any more."""
        for number in (task.function, task.setup):
            if number != EMPTY:
                self._change[number] = self._change.get(number, 0) - 1
        if task.file:
            self._gone.append(task.file)

    # ------------------------------------------------------------ blobs

    def _write(self, blob: Blob) -> int:
        file = self._spill.write(blob)
        self._written.append(file)
        return file

    def _share(self, blob: Blob) -> int:
        """The number of a function or setup that one more task needs."""
        if not blob:
            return EMPTY
        if not isinstance(blob, bytes):
            blob = bytes(blob)
        number = self._state.numbers.get(blob) or self._shared.get(blob)
        if number is None:
            number = self._state.next_shared + len(self._shared)
            self._insert_shared(number, blob)
        self._change[number] = self._change.get(number, 0) + 1
        return number

    def _insert_shared(self, number: int, blob: bytes) -> None:
        body = blob
        shared = Shared(check=checksum(blob))
        if len(blob) >= self._file_from:
            shared.file, body = self._write(blob), b""
            self._shared_files[number] = shared.file
        row = sealed(shared, number)
        self._db.execute("INSERT INTO shared VALUES (?, ?, ?)", (number, row, body))
        self._shared[blob] = number
        self.books.add(row)
        self.books.shared += 1
        self.weight += len(body) + 256

    def _sweep_shared(self) -> None:
        """Functions and setups go with their last task."""
        refs = self._state.refs
        gone = [number for number, change in self._change.items() if not refs.get(number, 0) + change]
        if not gone:
            return
        sql = "DELETE FROM shared WHERE id IN (SELECT value FROM json_each(?)) RETURNING row"
        rows = self._db.execute(sql, (key_list(gone),)).fetchall()
        if len(rows) != len(gone):
            raise Broken(f"shared: {len(gone) - len(rows)} rows are missing")
        for (row,) in rows:
            self.books.subtract(row)
        self.books.shared -= len(rows)
        for number in gone:
            file = self._state.files.get(number) or self._shared_files.get(number)
            if file:
                self._gone.append(file)


def _with_attempt(attempts: list[bytes], record: Retried | Struck) -> list[bytes]:
    """These attempts and one more; only the latest keep the last words of their children."""
    if len(attempts) >= LAST_WORDS:
        old = READ_ATTEMPT.decode(attempts[-LAST_WORDS])
        if isinstance(old, Struck) and old.fate.stderr:
            old = structs.replace(old, fate=structs.replace(old.fate, stderr=""))
            attempts = [*attempts[:-LAST_WORDS], encode(old), *attempts[1 - LAST_WORDS :]]
    return [*attempts, encode(record)]
