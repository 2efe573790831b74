"""Real children without a farm: calls go straight to a child and their outcomes come back; for tests and
scripts."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

from zfarm.edge import wire
from zfarm.edge.callables import Portable
from zfarm.edge.children import Children
from zfarm.edge.loop import Loop
from zfarm.edge.nursery import Nursery
from zfarm.edge.outcomes import decode_batch, decode_outcome
from zfarm.edge.taps import Piece
from zfarm.messages import ChildCall, Left, Payload, Progress, Run, Setup

DEADLINE_S = 20.0


class Rig:
    """A nursery, its children, and everything that was heard of them."""

    def __init__(self, initializer: Callable[..., Any] | None = None, initargs: tuple[Any, ...] = ()) -> None:
        self.nursery = Nursery.start()
        self.loop = Loop()
        self.children = Children(self.nursery, self, self.loop)
        self.loop.add_machine(self.children, lambda actions: None)
        self.portable = Portable()
        blob = self.portable.encode_initializer(initializer, initargs) if initializer else b""
        self.setup = wire.encode_setup(
            Setup("realm", os.getcwd(), tuple(sys.path), sys.prefix, platform.node(), blob)
        )
        self.setup_is_new = False
        self.seqs: dict[int, int] = {}
        self.outcomes: dict[tuple[int, int], tuple[Any, bytes]] = {}
        self.started: list[int] = []
        self.order: list[tuple[int, int]] = []
        self.deaths: dict[int, tuple[int, int, int, str]] = {}
        self.left: dict[int, Left] = {}
        self.unborn: dict[int, str] = {}
        self.took_back: dict[int, int] = {}
        self.waits: list[tuple[int, bool]] = []
        self.starts: list[tuple[int, int]] = []
        self.emitted: dict[tuple[int, int], list[bytes]] = {}
        self.deliveries: list[tuple[int, int, bool]] = []
        self.progress: list[Progress] = []
        self.printed: list[tuple[int, Piece]] = []
        self.tunnels: list[tuple[int, list[bytes]]] = []
        self.tunnels_closed: list[int] = []
        self.nursery_deaths = 0

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.children.close()
        self.loop.close()

    # what is heard

    def child_started(self, child, now):
        self.started.append(child)

    def child_reported(self, child, dones, payload, now):
        for done, blob in zip(dones, payload, strict=True):
            assert (child, done.seq) not in self.outcomes, "told twice"
            self.outcomes[child, done.seq] = (done, bytes(blob))
            self.order.append((child, done.seq))

    def child_starts(self, child, seq, now):
        self.starts.append((child, seq))

    def child_delivers(self, child: int, seq: int, whole: bool, now: float) -> None:
        self.deliveries.append((child, seq, whole))

    def child_emitted(
        self, child: int, seq: int, blobs: Payload, latest: bool, files: bool, now: float
    ) -> None:
        self.emitted.setdefault((child, seq), []).extend(map(bytes, blobs))

    def child_advanced(self, child: int, progress: Progress, now: float) -> None:
        self.progress.append(progress)

    def child_printed(self, child: int, piece: Piece, now: float) -> None:
        self.printed.append((child, piece))

    def child_waits(self, child, waiting, now):
        self.waits.append((child, waiting))

    def child_took_back(self, child, started_seq, now):
        self.took_back[child] = started_seq

    def child_died(self, child, started_seq, signal, exit_code, text, now, left):
        self.left[child] = left
        self.deaths[child] = (started_seq, signal, exit_code, text)

    def child_unborn(self, child, text, now):
        self.unborn[child] = text

    def tunnel_frames(self, child, frames):
        self.tunnels.append((child, [bytes(frame) for frame in frames]))

    def tunnel_closed(self, child):
        self.tunnels_closed.append(child)

    def nursery_died(self, now):
        self.nursery_deaths += 1

    # what is asked

    def send(self, *calls: tuple[Any, ...], child: int = 1, items: int = 0) -> list[int]:
        """Send calls ``(function, *args)`` in one message; their numbers."""
        encoded = [
            (self.portable.encode_function(call[0]), self.portable.encode_arguments(call[1:], {}))
            for call in calls
        ]
        return self.send_blobs(encoded, child, items)

    def send_blobs(self, encoded: list[tuple[bytes, bytes]], child: int = 1, items: int = 0) -> list[int]:
        """Send calls that are pickled already."""
        first = child not in self.seqs
        if first:
            self.children.start(child)
        first |= self.setup_is_new
        self.setup_is_new = False
        functions = list(dict.fromkeys(function for function, _ in encoded))
        begin = self.seqs.get(child, 0) + 1
        parts = [
            ChildCall(begin + n, functions.index(function), items) for n, (function, _) in enumerate(encoded)
        ]
        self.seqs[child] = begin + len(parts) - 1
        run = Run(parts, len(functions), first)
        self.children.run(
            child, run, [*functions, *([self.setup] if first else []), *[body for _, body in encoded]]
        )
        return [part.seq for part in parts]

    def change_setup(self, setup: Setup) -> None:
        """The next message to a child brings this setup."""
        self.setup = wire.encode_setup(setup)
        self.setup_is_new = True

    def until(self, condition: Callable[[], Any]) -> None:
        """Turn the loop until that is so."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"not in time: outcomes {self.outcomes}, deaths {self.deaths}"
            self.loop.turn(0.1)

    def outcome(self, seq: int, child: int = 1) -> tuple[Any, BaseException | None]:
        """Wait for the outcome of one call: its value and its exception."""
        self.until(lambda: (child, seq) in self.outcomes or child in self.deaths)
        if (child, seq) not in self.outcomes:
            raise RuntimeError(f"child {child} died: {self.deaths[child]}")
        done, blob = self.outcomes[child, seq]
        return decode_outcome(done.kind, blob)

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call in child 1 and return the value, or raise the exception."""
        blobs = (self.portable.encode_function(function), self.portable.encode_arguments(args, kwargs))
        value, error = self.outcome(self.send_blobs([blobs])[0])
        if error is not None:
            raise error
        return value

    def batch(
        self, function: Callable[..., Any], items: Any, star: bool = False
    ) -> tuple[Any, dict[int, BaseException]]:
        """Run a batch in child 1."""
        blobs = (self.portable.encode_function(function), self.portable.encode_batch(star, items))
        seq = self.send_blobs([blobs], items=len(items))[0]
        self.outcome(seq)
        done, blob = self.outcomes[1, seq]
        return decode_batch(done.kind, blob, len(items))
