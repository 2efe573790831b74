"""Adapters of the systems that are measured; each is imported only when its turn has come."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

__all__ = ["PEERS", "Peer", "available", "load"]

PEERS = {
    "zfarm": "zfarm",
    "tcp": "zfarm",
    "durable": "zfarm",
    "ppe": "concurrent.futures",
    "pool": "multiprocessing",
    "loky": "loky",
    "joblib": "joblib",
    "dask": "distributed",
}
"""Name of the adapter's module (``*_peer``), and what must be installed for it."""


class Peer(Protocol):
    """One running system with so many workers."""

    title: str
    """As it is called in tables."""
    lambdas: bool
    """Whether it takes functions that cannot be imported."""
    durable: bool
    """Whether ``handle.accepted`` tells that a call will not be lost whatever dies."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Ask for one call; a handle for ``gather``."""

    def gather(self, handles: list[Any]) -> None:
        """Wait for all of them."""

    def map(self, function: Callable[..., Any], items: Iterable[Any]) -> int:
        """Call over all items as its documentation would first show it; how many results there were."""

    def map_tuned(self, function: Callable[..., Any], items: Iterable[Any]) -> int:
        """The same with the batch size that suits no-ops, where it has one."""

    def close(self) -> None:
        """Leave nothing."""


def available(name: str) -> bool:
    """Whether what the peer needs is installed."""
    return find_spec(PEERS[name].split(".")[0]) is not None


def load(name: str) -> Callable[[int], Peer]:
    """The class of that peer; its constructor takes the number of workers."""
    made: Callable[[int], Peer] = import_module(f"benchmarks.peers.{name}_peer").Peer
    return made
