"""The worker's ends of what one child prints and logs: cut into lines, by call, at a bounded rate.

Reading never stops, so a child that floods never waits for long; what is too much is counted and dropped, and
the count is told. A process that the child has left behind may keep a pipe open: nobody waits for its end.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Final, NamedTuple

from zfarm.settings import Settings

__all__ = ["RECORDS", "Piece", "Taps"]

RECORDS: Final = 3
"""The source of what logging and warnings say."""

_MARK: Final = re.compile(rb"\0\x1bzf(\d{1,18})\x1b")
_MARK_BEGINS: Final = re.compile(rb"\0(?:\x1b(?:z(?:f\d{0,18})?)?)?\Z")
_READ_BYTES: Final = 64 * 1024
_READS: Final = 4
"""Readings in one turn, so that a child that floods does not keep its worker from the others."""
_LINE_MAX: Final = 16 * 1024
_LAST_BYTES: Final = 4 * 1024
"""Of what is dropped the last is kept until more comes: it may tell of what went wrong."""
_ROOM_MIN: Final = 4.0 * 1024


class Piece(NamedTuple):
    """Whole lines that one call has printed, and how many bytes before them were dropped."""

    seq: int
    source: int
    text: bytes
    dropped: int = 0


class _Tap:
    """One pipe."""

    def __init__(self, source: int) -> None:
        self.source = source
        self.fd, self.theirs = os.pipe()
        os.set_blocking(self.fd, False)
        self.open = True
        self._seq = 0
        self._held = b""  # perhaps the beginning of a mark
        self._line = b""
        self._more = False  # the last reading was full

    def close(self) -> None:
        self.close_theirs()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close_theirs(self) -> None:
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def read(self, running: int) -> list[Piece] | None:
        """What is there, while call ``running`` runs; None: nothing for now."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            self._more = False
            return None
        except OSError:
            data = b""
        if not data:
            self.open = False
            return None
        found: list[Piece] = []
        if not (self._more or self._held) and not data.startswith(b"\0"):
            following = _MARK.search(data)
            if following is None or int(following[1]) != self._seq:  # else it is amid what that call says
                self._turn_to(max(running, self._seq), found)  # marks may be ahead of what was known to run
        self._more = len(data) == _READ_BYTES
        data = self._held + data
        begun = _MARK_BEGINS.search(data, max(0, len(data) - 24))
        self._held = b"" if begun is None else data[begun.start() :]
        text, *marked = _MARK.split(data[: len(data) - len(self._held)])
        self._take(text, found)
        for seq, text in zip(marked[::2], marked[1::2], strict=True):
            self._turn_to(int(seq), found)
            self._take(text, found)
        return found

    def rest(self) -> list[Piece]:
        """The line that has not ended."""
        found: list[Piece] = []
        line, self._line = self._line + self._held, b""
        self._held = b""
        if line:
            found.append(Piece(self._seq, self.source, line))
        return found

    def _turn_to(self, seq: int, found: list[Piece]) -> None:
        if seq != self._seq:
            if self._line:
                found.append(Piece(self._seq, self.source, self._line))
            self._seq, self._line = seq, b""

    def _take(self, text: bytes, found: list[Piece]) -> None:
        text = self._line + text
        end = text.rfind(b"\n") + 1
        if len(text) - end > _LINE_MAX:
            end = len(text)
        self._line = text[end:]
        if end:
            found.append(Piece(self._seq, self.source, text[:end]))


class Taps:
    """Standard output, standard error and records of one child."""

    def __init__(self, limits: Settings, now: float) -> None:
        """Raises OSError."""
        self._limits = limits
        self._room = float(limits.output_burst_bytes)
        self._at = now
        self._seq = 0
        self._dropped: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._taps: list[_Tap] = []
        try:
            for source in (1, 2, RECORDS):
                self._taps.append(_Tap(source))
        except OSError:
            self.close()
            raise

    @property
    def theirs(self) -> list[int]:
        """The child's ends."""
        return [tap.theirs for tap in self._taps]

    @property
    def sources(self) -> list[int]:
        """The descriptors to wait for."""
        return [tap.fd for tap in self._taps if tap.open]

    def close_theirs(self) -> None:
        """The child has them."""
        for tap in self._taps:
            tap.close_theirs()

    def close(self) -> None:
        """Close our ends; whoever still writes gets an error."""
        for tap in self._taps:
            with suppress(OSError):
                tap.close()

    def read(self, running: int, now: float, whole: bool = False) -> list[Piece]:
        """What was printed, while call ``running`` runs; with ``whole`` lines that have not ended, too."""
        found: list[Piece] = []
        for tap in self._taps:
            for _ in range(_READS):
                pieces = tap.read(running) if tap.open else None
                if pieces is None:
                    break
                found += pieces
            if whole:
                found += tap.rest()
        return _joined(self._allowed(found, now, whole))

    def _allowed(self, found: list[Piece], now: float, whole: bool) -> list[Piece]:
        limits = self._limits
        most = float(limits.output_burst_bytes)
        self._room = min(self._room + (now - self._at) * limits.output_bytes_per_s, most)
        self._at = now
        allowed: list[Piece] = []
        for piece in found:
            if piece.seq != self._seq:  # what the call before has printed is not its fault
                self._seq, self._room = piece.seq, max(self._room, _ROOM_MIN)
            key = (piece.seq, piece.source)
            if len(piece.text) > self._room:
                count, last = self._dropped.get(key, (0, b""))
                self._dropped[key] = (count + len(piece.text), (last + piece.text)[-_LAST_BYTES:])
                continue
            self._room -= len(piece.text)
            allowed.append(self._after_dropped(key, piece.text))
        if whole:
            allowed += [self._after_dropped(key, b"") for key in list(self._dropped)]
        return allowed

    def _after_dropped(self, key: tuple[int, int], text: bytes) -> Piece:
        """This text, with the last lines of what was dropped before it, and the count of the rest."""
        dropped, last = self._dropped.pop(key, (0, b""))
        if dropped > len(last):
            last = last[last.find(b"\n") + 1 :]
        return Piece(*key, last + text, dropped - len(last))


def _joined(pieces: list[Piece]) -> list[Piece]:
    """The same in as few pieces as can be: each is a message, of which a link holds only so many."""
    runs: list[tuple[Piece, list[bytes]]] = []
    for piece in pieces:
        if runs and not piece.dropped and runs[-1][0][:2] == piece[:2]:
            runs[-1][1].append(piece.text)
        else:
            runs.append((piece, [piece.text]))
    return [first._replace(text=b"".join(texts)) for first, texts in runs]
