"""What a journal promises, as a dict: the records that replay must give after any sequence of records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zfarm.messages import (
    VALUE,
    Accepted,
    Begun,
    Dropped,
    Enrolled,
    Fate,
    Forgotten,
    Outcome,
    Payload,
    Record,
    Retried,
    Settled,
    Struck,
)

Pairs = Sequence[tuple[Record, Payload]]


@dataclass
class ModelTask:
    accepted: Accepted
    payload: Payload
    attempts: list[Retried | Struck] = field(default_factory=list)
    begun: Begun | None = None
    settled: tuple[Settled, Payload] | None = None


@dataclass
class ModelClient:
    enrolled: Enrolled
    tasks: dict[int, ModelTask] = field(default_factory=dict)


class Model:
    """Clients and their tasks."""

    def __init__(self) -> None:
        self.clients: dict[str, ModelClient] = {}

    def apply(self, pairs: Pairs) -> None:
        for record, payload in pairs:
            client = self.clients.get(record.client)
            if isinstance(record, Enrolled):
                if client is None:
                    self.clients[record.client] = ModelClient(record)
                else:
                    client.enrolled = record
            elif client is None:
                assert not isinstance(record, Accepted)
            elif isinstance(record, Accepted):
                client.tasks.setdefault(record.task, ModelTask(record, payload))
            elif isinstance(record, Dropped):
                del self.clients[record.client]
            elif isinstance(record, Forgotten):
                for task in record.tasks:
                    client.tasks.pop(task, None)
            else:
                self._ended(client, record, payload)

    def _ended(
        self, client: ModelClient, record: Begun | Retried | Struck | Settled, payload: Payload
    ) -> None:
        number = record.outcome.task if isinstance(record, Settled) else record.task
        task = client.tasks.get(number)
        if task is None or task.settled is not None:
            return
        if isinstance(record, Retried | Struck):
            task.attempts.append(record)
        elif isinstance(record, Begun):
            task.begun = record if record.lease else None
        else:
            task.settled = (record, payload)

    def expected(self) -> dict[str, list[tuple[Record, tuple[bytes, ...]]]]:
        """Per client, the records of a replay in their order."""
        found = {}
        for name, client in self.clients.items():
            records: list[tuple[Record, Payload]] = [(client.enrolled, ())]
            for _number, task in sorted(client.tasks.items()):
                ended = task.settled is not None
                records.append((task.accepted, (b"", b"", b"") if ended else task.payload))
                records += [(attempt, ()) for attempt in task.attempts]
                if task.begun is not None and not ended:
                    records.append((task.begun, ()))
                if task.settled is not None:
                    records.append(task.settled)
            found[name] = [as_bytes(pair) for pair in records]
        return found


def as_bytes(pair: tuple[Record, Payload]) -> tuple[Record, tuple[bytes, ...]]:
    return pair[0], tuple(bytes(blob) for blob in pair[1])


def per_client(pairs: Iterable[tuple[Record, Payload]]) -> dict[str, list[tuple[Record, tuple[bytes, ...]]]]:
    """A replay, sorted by client; every client's Enrolled must come before anything else of it."""
    found: dict[str, list[tuple[Record, tuple[bytes, ...]]]] = {}
    for record, payload in pairs:
        if isinstance(record, Enrolled):
            assert record.client not in found, "a client is enrolled once"
            found[record.client] = []
        found[record.client].append(as_bytes((record, payload)))
    return found


FATE = Fate(host="h", worker="w", signal=9, text="killed by SIGKILL")


def enrolled(client: str = "c", **facts: Any) -> tuple[Record, Payload]:
    return Enrolled(client, **facts), ()


def accepted(
    task: int, client: str = "c", function: bytes = b"f", body: bytes = b"b"
) -> tuple[Record, Payload]:
    return Accepted(client, task, "module.name", items=task % 3, max_attempts=5), (function, b"setup", body)


def struck(task: int, client: str = "c") -> tuple[Record, Payload]:
    return Struck(client, task, FATE), ()


def retried(task: int, client: str = "c", delay_us: int = 100) -> tuple[Record, Payload]:
    return Retried(client, task, 5 << 32 | 2, delay_us), ()


def begun(task: int, client: str = "c", lease: int = 5 << 32 | 1) -> tuple[Record, Payload]:
    return Begun(client, task, lease), ()


def settled(task: int, client: str = "c", blob: bytes = b"r") -> tuple[Record, Payload]:
    return Settled(client, Outcome(task, VALUE, 12, (FATE,))), (blob,)


def forgotten(*tasks: int, client: str = "c") -> tuple[Record, Payload]:
    return Forgotten(client, list(tasks)), ()


def dropped(client: str = "c") -> tuple[Record, Payload]:
    return Dropped(client), ()
