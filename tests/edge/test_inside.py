"""What a child says over its pipe while its garbage is collected, which comes in between anywhere."""

from __future__ import annotations

import socket
from typing import Any

from zfarm.edge import wire
from zfarm.edge.inside import Inside, Pipe
from zfarm.edge.pipe import Reader
from zfarm.messages import Released

NOTHING: Any = None


class Collecting:
    """A socket in whose first ``sendall`` something is collected."""

    def __init__(self, sock, collect):
        self._sock = sock
        self._collect = [collect]

    def sendall(self, data):
        self._sock.sendall(data[:5])
        while self._collect:
            self._collect.pop()()
        self._sock.sendall(data[5:])


def heard(sock):
    reader, found = Reader(), []
    while (messages := reader.read(sock)) is not None:
        found += [wire.from_child.decode(frames)[0] for frames in messages]
    return found


def test_what_a_finalizer_sends_goes_after_what_is_being_sent():
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            sock: Any = Collecting(ours, lambda: pipe.send(Released(b"b")))
            pipe: Pipe = Pipe(sock)
            pipe.send(Released(b"a"))
            pipe.send(Released(b"c"))
        assert [message.notes for message in heard(theirs)] == [b"a", b"b", b"c"]


def test_a_wait_that_begins_and_ends_while_another_is_told():
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            sock: Any = Collecting(ours, lambda: other.__enter__())
            inside = Inside(Pipe(sock), NOTHING, NOTHING)
            other: Any = inside.waits()
            with inside.waits():
                pass
            other.__exit__(None, None, None)
        assert [message.waiting for message in heard(theirs)] == [True, False]
