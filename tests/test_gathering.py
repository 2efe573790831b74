"""How many results a client has come at once, and that none waits for one which does not come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.face.processes import wait_until
from zfarm import gathering
from zfarm.edge.pieces import take_apart
from zfarm.gathering import Gathering
from zfarm.messages import Arrived, StreamOver
from zfarm.settings import settings

MOST = settings.results_at_once
PIECES: list[bytes] = []
take_apart(memoryview(b"a result"), PIECES.append)


class Token:
    """A call that gives something large."""

    _files = None

    def __init__(self, task: int) -> None:
        self._task = task


class Client:
    """A link and its machine, as far as they matter: what was told of which task."""

    def __init__(self) -> None:
        self.took_of: list[int] = []

    def call(self, fn: Callable[[], None]) -> None:
        fn()

    def leave_when_done(self) -> None:
        """It stays."""

    def took(self, task: int, attempt: int, number: int) -> None:
        self.took_of.append(-task)


@contextmanager
def gather() -> Iterator[tuple[Gathering, Client]]:
    client: Any = Client()
    gathered = Gathering(client, client)
    try:
        yield gathered, client
    finally:
        gathered.cut()


def begin(gathered: Gathering, *tasks: int) -> None:
    for task in tasks:
        assert gathered.sift(Arrived(Token(task), 1, 1, PIECES[:1], True)) is None


def test_a_few_results_come_at_once_and_the_next_when_one_has_come() -> None:
    with gather() as (gathered, client):
        begin(gathered, *range(1, MOST + 3))
        wait_until(lambda: len(client.took_of) == MOST, "the first have their turn")
        assert gathered.sift(Arrived(Token(1), 1, 2, PIECES[1:], True)) is None
        wait_until(lambda: len(client.took_of) == MOST + 1, "more of the first one")
        assert client.took_of == [*range(1, MOST + 1), 1]
        assert gathered.sift(StreamOver(Token(1), True)) is None

        wait_until(lambda: client.took_of[-1] == MOST + 1, "the next")
        assert len(client.took_of) == MOST + 2


def test_what_does_not_come_gives_way_and_has_another_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "STALLED_S", 0.01)
    with gather() as (gathered, client):
        begin(gathered, *range(1, MOST + 2))

        wait_until(lambda: client.took_of == [*range(1, MOST + 2)], "all have had a turn")
        begin(gathered, 1)
        wait_until(lambda: client.took_of[-1] == 1, "the first one goes on")


def test_files_are_left_to_others_and_what_comes_with_a_result_is_parted() -> None:
    with gather() as (gathered, client):
        token = Token(1)
        files = Arrived(token, 1, 1, [b"S file"], True)

        assert gathered.sift(files) is files
        assert gathered.sift(Arrived(token, 1, 2, [b"D", *PIECES], True)) == Arrived(
            token, 1, 2, [b"D"], True
        )
        wait_until(lambda: client.took_of == [1], "the result")
        assert gathered.sift(StreamOver(token, True)) is None
        over = StreamOver(token, True)
        assert gathered.sift(over) is over
