"""Where in the files of a journal damage lies, for the error that tells it; it reads, and knows no table.

SQLite says at most a page number, and takes what follows a damaged frame of its log for never written. Both
formats are documented (https://www.sqlite.org/fileformat2.html).
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from pathlib import Path
from typing import Final

__all__ = ["end_of_log", "spot_of_page", "spot_of_row"]

LOG_HEADER: Final = struct.Struct(">8I")
FRAME_HEADER: Final = struct.Struct(">6I")
MAGIC: Final = 0x377F0682
"""The last bit tells the byte order in which the checksums add up their words: set, the greater one first."""
CHECKED: Final = 8
"""Bytes of a frame's header that its checksum covers, before its page."""
PAGE_NAMED: Final = re.compile(r"\bpage (\d+)", re.IGNORECASE)


def end_of_log(log: bytes) -> int:
    """The byte at which the frames of a log end that are whole: what follows is damaged, or of an earlier
    use of the file."""
    if len(log) < LOG_HEADER.size:
        return 0
    magic, _, page_bytes, _, *salt, first, second = LOG_HEADER.unpack_from(log)
    swapped = ((magic & 1) != 0) != (sys.byteorder == "big")
    if magic & ~1 != MAGIC or _added(log[: LOG_HEADER.size - 8], swapped, 0, 0) != (first, second):
        return 0
    at = LOG_HEADER.size
    while at + FRAME_HEADER.size + page_bytes <= len(log):
        _, _, *frame_salt, frame_first, frame_second = FRAME_HEADER.unpack_from(log, at)
        page = at + FRAME_HEADER.size
        first, second = _added(log[at : at + CHECKED], swapped, first, second)
        first, second = _added(log[page : page + page_bytes], swapped, first, second)
        if frame_salt != salt or (frame_first, frame_second) != (first, second):
            break
        at = page + page_bytes
    return at


def _added(data: bytes, swapped: bool, first: int, second: int) -> tuple[int, int]:
    """SQLite's checksum, continued over these words of 32 bits."""
    words = array("I", data)
    if swapped:
        words.byteswap()
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = first + even + second & 0xFFFF_FFFF
        second = second + odd + first & 0xFFFF_FFFF
    return first, second


def spot_of_page(text: str, tables: Path, log: Path) -> tuple[Path, int]:
    """The file, and the byte in it, of the first page that SQLite names in ``text``; the tables' first byte
    if it names none."""
    named = PAGE_NAMED.search(text)
    if named is None:
        return tables, 0
    number = int(named[1])
    content = _read(log)
    end = end_of_log(content)
    found = -1
    if end:
        page_bytes = LOG_HEADER.unpack_from(content)[2]
        for at in range(LOG_HEADER.size, end, FRAME_HEADER.size + page_bytes):
            if FRAME_HEADER.unpack_from(content, at)[0] == number:
                found = at + FRAME_HEADER.size
    if found >= 0:
        return log, found
    content = _read(tables)  # which may have been cut before that page
    return tables, min(max(0, number - 1) * _page_bytes(content), len(content))


def spot_of_row(row: bytes, tables: Path, log: Path) -> tuple[Path, int]:
    """The file, and the byte in it, where a row that was read begins; the tables' first byte if it lies in
    several pages."""
    content = _read(log)
    at = content.rfind(row, 0, end_of_log(content)) if row else -1
    if at >= 0:
        return log, at
    return tables, max(0, _read(tables).find(row)) if row else 0


def _page_bytes(tables: bytes) -> int:
    said = int.from_bytes(tables[16:18], "big")
    return 65536 if said == 1 else said


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
