"""What stands in the tables of a journal: rows sealed with checksums, and the schema; it knows no file.

SQLite keeps no checksums, so every row carries its own: it is a struct whose bytes end in a CRC-32 that
starts from the row's key, so that a row is not believed under another key either. The books count the rows
and add up their seals, so that no row can vanish or come back either.
"""

from __future__ import annotations

import zlib
from typing import Final, TypeVar

import msgspec

from zfarm.messages import Blob

__all__ = [
    "ABOUT",
    "BOOKS",
    "EMPTY",
    "MAGIC",
    "MIGRATIONS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "TASK_BITS",
    "TASK_NUMBER_MAX",
    "TOTAL_MASK",
    "About",
    "Books",
    "Broken",
    "Shared",
    "TaskRow",
    "checksum",
    "decode",
    "encode",
    "seal_of",
    "sealed",
]

SCHEMA_VERSION: Final = 4
"""2: rows of tasks tell whether a task that may begin once only has begun, and how often one was retried.
3: what was accepted tells its memory limit; deaths tell the last words of children.
4: what was accepted tells what resources and labels it demands of its worker."""
MAGIC: Final = "zfarm journal"

TASK_BITS: Final = 40
"""A task's key is its client's row number and its own number: tasks of one client lie together, in order."""
TASK_NUMBER_MAX: Final = (1 << TASK_BITS) - 1

ABOUT: Final = 0
BOOKS: Final = 1
EMPTY: Final = 0
"""The number of an empty shared blob: it needs no row."""

# The table `about` and its row 0 keep their form in every version, so that every version can tell its own.
SCHEMA: Final = {
    "about": "CREATE TABLE about (id INTEGER PRIMARY KEY, row BLOB NOT NULL)",
    "clients": "CREATE TABLE clients (id INTEGER PRIMARY KEY, row BLOB NOT NULL)",
    "shared": "CREATE TABLE shared (id INTEGER PRIMARY KEY, row BLOB NOT NULL, body BLOB NOT NULL)",
    "tasks": "CREATE TABLE tasks (id INTEGER PRIMARY KEY, row BLOB NOT NULL, body BLOB NOT NULL)",
}
"""Integer keys alone: a unique index over random keys would cost two thirds of the speed. The body comes
last, so that a scan of the rows passes over it."""

MIGRATIONS: Final[dict[int, tuple[str, ...]]] = {1: (), 2: (), 3: ()}
"""Version to the statements that lead from it to the next; all that are needed run in one transaction."""

TOTAL_MASK: Final = 0xFFFF_FFFF_FFFF
SEAL_BYTES: Final = 4
RESIDUE: Final = 0x2144DF1C
"""The CRC-32 of anything that ends in its own, least byte first."""


class Broken(Exception):
    """A row is not what was written; ``row``: what was read."""

    def __init__(self, text: str, row: bytes = b"") -> None:
        super().__init__(text)
        self.row = row


class Row(msgspec.Struct, array_like=True, gc=False):
    """A row's bytes. Fields are only appended, with defaults."""


class About(Row):
    """What this database is. ``identity`` ties the files beside it to it."""

    magic: str
    version: int
    identity: bytes
    epoch: int


class Books(Row):
    """What must be found in the tables after turn number ``turn``. ``total`` adds up the seals of their
    rows."""

    turn: int = 0
    clean: bool = False
    clients: int = 0
    shared: int = 0
    tasks: int = 0
    ended: int = 0
    total: int = 0

    def add(self, row: bytes) -> None:
        """A row was written."""
        self.total = self.total + seal_of(row) & TOTAL_MASK

    def subtract(self, row: bytes) -> None:
        """A row was removed or replaced."""
        self.total = self.total - seal_of(row) & TOTAL_MASK


class Shared(Row):
    """A function or setup that tasks share. ``check`` is the checksum of its body, ``file`` the body's
    file."""

    check: int
    file: int = 0


class TaskRow(Row):
    """A task: its records as they came, and where its blob is.

    ``function`` and ``setup`` number rows of shared; those of an ended task mean nothing any more. The blob
    in the body, or in ``file``, is the call's until there is an ``outcome``, and then the outcome's.
    """

    accepted: bytes
    function: int
    setup: int
    at: int  # seconds since 1970
    check: int
    file: int = 0
    outcome: bytes = b""
    deaths: list[bytes] = []  # and errors for which it is run again, in the order in which they came
    begun: int = 0  # the lease of its Begun; 0: none


encode = msgspec.msgpack.Encoder().encode
RowT = TypeVar("RowT")


def checksum(blob: Blob) -> int:
    """Of a body."""
    return zlib.crc32(blob)


def _seed(key: int) -> int:
    return key & 0xFFFF_FFFF ^ key >> 32


def sealed(row: Row | msgspec.Struct, key: int) -> bytes:
    """The bytes of a row, to be written under ``key``."""
    data: bytes = encode(row)
    return data + zlib.crc32(data, _seed(key)).to_bytes(SEAL_BYTES, "little")


def seal_of(row: bytes) -> int:
    """The seal at the end of a row."""
    return int.from_bytes(row[-SEAL_BYTES:], "little")


def decode(decoder: msgspec.msgpack.Decoder[RowT], row: object, key: int) -> RowT:
    """The row that was read under ``key``.

    Raises:
        Broken: it is not what was written there.
    """
    if not isinstance(row, bytes):
        raise Broken("is not there, or no sealed row")
    if zlib.crc32(row, _seed(key)) != RESIDUE:
        raise Broken("does not fit its checksum", row)
    try:
        return decoder.decode(row[:-SEAL_BYTES])
    except msgspec.MsgspecError as error:
        raise Broken(f"cannot be read: {error}", row) from error
