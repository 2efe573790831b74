"""A peer with a valid key and bad manners: a bare socket that sends whatever a test wants."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

from zfarm import __version__
from zfarm.brokershell import own_versions
from zfarm.edge import wire
from zfarm.edge.security import Access, load_connection
from zfarm.edge.sockets import close_context, connect, new_context, new_socket
from zfarm.messages import Call, Hello, Join, Message, Payload, Submit, Versions

__all__ = ["Raw", "hello", "join", "submit"]

ANSWER_S = 10.0


class Raw:
    """A DEALER with the keys of a connection file."""

    def __init__(
        self,
        connection: Path,
        role: Any,
        access: Access | None = None,
        identity: bytes = b"",
        plain: bool = False,
    ) -> None:
        self.access = access or load_connection(connection).access(role)
        self._context = new_context()
        self.socket = new_socket(self._context, zmq.DEALER, self.access.address, -1, held=100_000)
        self.socket.setsockopt(zmq.SNDTIMEO, int(3 * ANSWER_S * 1000))
        if identity:
            self.socket.setsockopt(zmq.IDENTITY, identity)
        if plain:
            self.socket.connect(self.access.address)
        else:
            connect(self.socket, self.access.address, self.access.server, self.access.keys)
        self._decoder: wire.Decoder[Any] = wire.to_worker if role == "worker" else wire.to_client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close_context(self._context)

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def say(self, message: Message, payload: Payload = ()) -> None:
        self.socket.send_multipart([bytes(frame) for frame in wire.encode(message, payload)])

    def hear(self, within_s: float = ANSWER_S) -> Any:
        """The next message and its payload; None when there is none in time."""
        if not self.socket.poll(int(within_s * 1000)):
            return None
        return self._decoder.decode(self.socket.recv_multipart())

    def hear_a(self, kind: type[Message]) -> Any:
        """The next message of a kind, passing over others."""
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            heard = self.hear(deadline - time.monotonic())
            if heard is not None and isinstance(heard[0], kind):
                return heard[0]
        raise AssertionError(f"no {kind.__name__} within {ANSWER_S} s")


def versions() -> Versions:
    assert __version__
    return own_versions()


def hello(session: str, job: str = "", life: str = "") -> Hello:
    life = life or (session if job else "")
    return Hello(session, versions(), host="h", pid=1, name="raw", job=job, life=life)


def join(session: str, slots: int = 1, **more: Any) -> Join:
    return Join(session=session, versions=versions(), slots=slots, host="h", pid=1, **more)


def submit(*tasks: int, body: bytes = b"body", name: str = "f") -> tuple[Submit, list[bytes]]:
    """A Submit of tasks that only a worker would find out to be nonsense."""
    calls = [Call(task=task, function=0, setup=0) for task in tasks]
    return Submit(calls=calls, names=[name], setups=1), [name.encode(), b"setup", *[body] * len(tasks)]
