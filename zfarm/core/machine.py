"""The shape shared by broker, worker and client: receive, advance, deadline. It knows messages and nothing
else.

A loop (or the simulator) drives a machine in turns:

    poll until deadline -> receive for each message -> advance -> perform the actions, in their order

``receive`` and the local inputs of a machine only note what happened; ``advance`` decides, once for all
that the
turn brought. So what one turn has for one peer goes in one message, and a trace of inputs and times tells
it all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from zfarm.messages import Action, Blob, Message, Payload, Peer

__all__ = ["NOW", "Indexed", "Machine", "batches"]

NOW = 0.0
"""A deadline that has passed: the machine has something to do at once."""


class Machine(Protocol):
    """A pure state machine; one thread drives it."""

    deadline: float
    """Monotonic seconds by which ``advance`` must be called even if nothing arrives; infinity: never."""

    def receive(self, peer: Peer, message: Message, payload: Payload, now: float) -> None:
        """Note a message that came from ``peer``; never raises on what a peer can send."""

    def advance(self, now: float) -> list[Action]:
        """Decide, and say what to do."""
        ...

    def check(self) -> None:
        """Raise AssertionError when the books contradict themselves; for tests and the simulator."""


Key = TypeVar("Key")


class Indexed(Generic[Key]):
    """Numbers things in the order they are first seen; so that one message carries each of them once."""

    __slots__ = ("index",)

    def __init__(self) -> None:
        self.index: dict[Key, int] = {}

    def __getitem__(self, key: Key) -> int:
        index = self.index
        number = index.get(key)
        if number is None:
            number = index[key] = len(index)
        return number

    def __iter__(self) -> Iterator[Key]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)


Item = TypeVar("Item")


def batches(
    items: list[tuple[Item, Blob]], calls_max: int, bytes_max: int, words: Callable[[Item], int] | None = None
) -> Iterator[list[tuple[Item, Blob]]]:
    """Cut (item, blob) pairs into lists of at most ``calls_max`` pairs and, unless a single one is larger,
    ``bytes_max`` bytes. ``words`` tells how much text an item has in the header, if that can be much."""
    sizes = [len(blob) for _, blob in items]
    if words is not None:
        sizes = [size + words(item) for size, (item, _) in zip(sizes, items, strict=True)]
    if len(items) <= calls_max and sum(sizes) <= bytes_max:
        if items:
            yield items
        return
    batch: list[tuple[Item, Blob]] = []
    size = 0
    for pair, length in zip(items, sizes, strict=True):
        if batch and (len(batch) >= calls_max or size + length > bytes_max):
            yield batch
            batch, size = [], 0
        batch.append(pair)
        size += length
    if batch:
        yield batch
