"""A relay on TCP that joins messages: it sets the bit of a frame that encryption leaves bare.

Each frame says twice whether more follow: once outside, for all to see and to change, and once inside of
what is encrypted; the library believes either. Outside, who encrypts says no of every frame: a relay cannot
know which frame is the last of its message, and nothing comes of it if it says of another one, or of a ping,
that more follow. But of any two frames in a row, of messages of two at most, one is the last of its message.
"""

from __future__ import annotations

import socket
import threading

GREETING = 64
"""Bytes of a ZMTP 3 greeting, before the first frame."""
MORE, LONG, COMMAND = 1, 2, 4
"""Flags of a ZMTP frame."""
PINGS = (38, 40)
"""Bytes of an encrypted pong and ping: they are left alone, and what is as long as one."""


class Joiner:
    """Relays one connection after the other to ``target``, a port of this machine."""

    def __init__(self, target: int, frames: float = 1) -> None:
        self.target = target
        self.armed = {True: threading.Event(), False: threading.Event()}
        """When set, the next ``frames`` from the target (or to it) seem to be followed by more."""
        self.joined = 0
        """How often all of them did."""
        self._frames = frames
        self.links = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End every connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            end.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            self.links += 1
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open += (near, far)
            for source, sink, back in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._relay, args=(source, sink, back), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        left_to_join = self._frames
        try:
            with source.makefile("rb") as stream:
                left = GREETING
                while left:  # in pieces: each side waits for the first bytes of the other
                    piece = _exactly(stream.read1(left), 1)
                    sink.sendall(piece)
                    left -= len(piece)
                while True:
                    flags = _exactly(stream.read(1), 1)[0]
                    size = _exactly(stream.read(8 if flags & LONG else 1), 1)
                    body = _exactly(stream.read(int.from_bytes(size, "big")), 0)
                    if self.armed[back].is_set() and not flags & COMMAND and len(body) not in PINGS:
                        flags |= MORE
                        left_to_join -= 1
                        if not left_to_join:
                            left_to_join = self._frames
                            self.joined += 1
                            self.armed[back].clear()
                    sink.sendall(bytes((flags,)) + size + body)
        except (OSError, EOFError):
            for end in (source, sink):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    end.close()  # the other side was faster


def _exactly(got: bytes, least: int) -> bytes:
    if len(got) < least:
        raise EOFError
    return got
