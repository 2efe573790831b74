"""What happened in a simulated farm: a hash of all of it, its last lines, and counts of rare branches.

It knows messages and actions and nothing of the farm; lines are kept as facts and become text only when read.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
from collections import Counter, deque
from typing import Any

import msgspec

from zfarm.messages import Message, RunCalls, Send, Tell

encode = msgspec.msgpack.Encoder(enc_hook=bytes).encode  # a function with a name is bytes of its own kind
_time = struct.Struct("<d").pack
_NUMBERS = re.compile(r"\d+")


class Story:
    """The trace of one farm. ``keep``: how many lines stay readable (None: all)."""

    def __init__(self, keep: int | None = 200) -> None:
        self.lines: deque[tuple[float, str, str, Any]] = deque(maxlen=keep)
        self.count = 0
        self.probes: Counter[str] = Counter()
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        """The hash of everything told so far."""
        return self._hash.hexdigest()

    def tell(self, now: float, who: str, verb: str, thing: Any = "") -> None:
        """Something happened: it counts for the hash and can be read later."""
        self.count += 1
        self._hash.update(_time(now) + who.encode() + verb.encode() + encode(thing))
        self.lines.append((now, who, verb, thing))

    def probe(self, kind: str) -> None:
        """A rare branch was taken."""
        self.probes[kind] += 1

    def probe_tell(self, action: Tell) -> None:
        """Count a Tell by its text with names and numbers taken out."""
        text = _NUMBERS.sub("#", action.text)
        again = text.find(" runs again: ")
        self.probes["tell: " + (text if again < 0 else "a task" + text[again:])] += 1

    def text(self, last: int | None = None) -> str:
        """The story as text, or its ``last`` lines."""
        skipped = max(0, len(self.lines) - last) if last is not None else 0
        return "\n".join(_line(*line) for line in itertools.islice(self.lines, skipped, None))


def _line(now: float, who: str, verb: str, thing: Any) -> str:
    return f"{now:12.6f} {who:<9} {verb:<9} {_readable(thing)}"


def _readable(thing: Any) -> str:
    if isinstance(thing, Send):
        return f"to {thing.peer}: {_short(thing.message)}"
    if isinstance(thing, RunCalls):
        return f"RunCalls(child={thing.child}, {_short(thing.run)})"
    if isinstance(thing, tuple):
        return " ".join(_readable(part) for part in thing)
    if isinstance(thing, Message):
        return _short(thing)
    return str(thing)


def _short(message: Any) -> str:
    """A message without what is the same in all of them."""
    fields = []
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if name in ("versions", "vitals", "names", "setups", "functions", "expected_us"):
            continue
        if isinstance(value, list | tuple) and value and isinstance(value[0], Message):
            more = "" if len(value) <= 12 else f" +{len(value) - 12}"
            value = "[" + " ".join(_short(part) for part in value[:12]) + more + "]"
        fields.append(f"{name}={value}")
    return f"{type(message).__name__}({' '.join(fields)})"
