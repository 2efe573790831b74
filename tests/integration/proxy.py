"""A TCP proxy on loopback that misbehaves when told to: resets, stalls, black holes, a flipped bit."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

__all__ = ["Proxy", "through"]

CHUNK = 65536
TICK_S = 0.05
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close says RST and drops what was not sent

DOWN, UP = "down", "up"
"""Directions: to who dialled, and to whom it dials."""


class _Pump:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        self.source = source
        self.sink = sink
        self.direction = direction
        self.waiting = b""


class Proxy:
    """Listens on ``port`` and dials ``target`` for each that comes; one thread, ends with the context."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.links = 0
        """Connections that were made through it."""
        self.corrupted = 0
        """Bytes that were flipped."""
        self._corrupt: list[tuple[str, ...]] = []
        self._until = {DOWN: 0.0, UP: 0.0}
        self._pairs: list[tuple[_Pump, _Pump]] = []
        self._asked: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._ending = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._thread.join()

    # ------------------------------------------------------------ from the test's thread

    def reset(self) -> None:
        """End all connections with RST."""
        self._ask(self._reset_all)

    def stall(self, seconds: float, *directions: str) -> None:
        """Carry nothing in these directions (both, if none is named) for so long; then all that waited."""
        until = time.monotonic() + seconds
        self._ask(lambda: self._until.update(dict.fromkeys(directions or (DOWN, UP), until)))

    def corrupt(self, *directions: str) -> None:
        """Flip one bit of what comes next in one of these directions (either, if none is named)."""
        self._ask(lambda: self._corrupt.append(directions or (DOWN, UP)))

    def _ask(self, what: Callable[[], None]) -> None:
        with self._lock:
            self._asked.append(what)

    # ------------------------------------------------------------ the proxy's thread

    def _reset_all(self) -> None:
        for pair in list(self._pairs):
            self._end(pair)

    def _run(self) -> None:
        while not self._ending:
            with self._lock:
                asked, self._asked = self._asked, []
            for what in asked:
                what()
            self._follow_stalls()
            for key, mask in self._selector.select(TICK_S):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data in self._pairs:
                    self._carry(key.data, key.fileobj, mask)
        self._reset_all()
        self._listener.close()
        self._selector.close()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            near.close()
            return
        self.links += 1
        pair = (_Pump(near, far, UP), _Pump(far, near, DOWN))
        self._pairs.append(pair)
        for pump in pair:
            pump.source.setblocking(False)
            self._selector.register(pump.source, selectors.EVENT_READ, pair)

    def _stalled(self, pump: _Pump) -> bool:
        return self._until[pump.direction] > time.monotonic()

    def _follow_stalls(self) -> None:
        for pair in list(self._pairs):
            self._watch(pair)

    def _watch(self, pair: tuple[_Pump, _Pump]) -> None:
        """Wait for what can go on: nothing is read that cannot be carried, as in a full pipe."""
        for pump, back in (pair, pair[::-1]):
            wants = selectors.EVENT_READ * (not pump.waiting and not self._stalled(pump))
            wants |= selectors.EVENT_WRITE * bool(back.waiting and not self._stalled(back))
            known = self._selector.get_map().get(pump.source.fileno())
            if known is None and wants:
                self._selector.register(pump.source, wants, pair)
            elif known is not None and not wants:
                self._selector.unregister(pump.source)
            elif known is not None and known.events != wants:
                self._selector.modify(pump.source, wants, pair)

    def _carry(self, pair: tuple[_Pump, _Pump], ready: object, mask: int) -> None:
        pump, back = pair if pair[0].source is ready else pair[::-1]
        try:
            if mask & selectors.EVENT_READ and not pump.waiting and not self._stalled(pump):
                pump.waiting = self._read(pump)
                self._write(pump)
            if mask & selectors.EVENT_WRITE and not self._stalled(back):
                self._write(back)
        except (OSError, EOFError):
            self._end(pair)
            return
        self._watch(pair)

    def _read(self, pump: _Pump) -> bytes:
        got = pump.source.recv(CHUNK)
        if not got:
            raise EOFError
        if self._corrupt and pump.direction in self._corrupt[0]:
            del self._corrupt[0]
            self.corrupted += 1
            middle = len(got) // 2
            got = got[:middle] + bytes([got[middle] ^ 1]) + got[middle + 1 :]
        return got

    @staticmethod
    def _write(pump: _Pump) -> None:
        with contextlib.suppress(BlockingIOError):
            sent = pump.sink.send(pump.waiting)
            pump.waiting = pump.waiting[sent:]

    def _end(self, pair: tuple[_Pump, _Pump]) -> None:
        self._pairs.remove(pair)
        for pump in pair:
            if pump.source.fileno() in self._selector.get_map():
                self._selector.unregister(pump.source)
            with contextlib.suppress(OSError):  # it may be gone already
                pump.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            pump.source.close()


def through(connection: Path, port: int, copy: Path) -> Path:
    """Write a copy of a connection file in which each door of the broker is ``port`` of loopback."""
    content = json.loads(connection.read_text())
    content["addresses"] = {role: [f"tcp://127.0.0.1:{port}"] for role in content["addresses"]}
    copy.touch(0o600)
    copy.write_text(json.dumps(content))
    return copy
