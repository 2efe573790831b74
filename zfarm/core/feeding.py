"""How a worker's queued calls become messages to its children; pure functions over the queue and the
children's books.

Calls that are known to be short are put together until a message is worthwhile; a call of unknown or long
run time
travels alone, and only to a child that is idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from msgspec import structs

from zfarm.core.kids import Duty, Kid
from zfarm.core.machine import Indexed
from zfarm.core.named import name_of
from zfarm.messages import Blob, ChildCall, Run, RunCalls
from zfarm.settings import Settings

__all__ = ["NOWHERE", "RUNS_AHEAD", "Place", "feed", "feed_ahead"]

Place: TypeAlias = tuple[str, str]
"""The store of a worker, and the worker itself."""
NOWHERE: Final[Place] = "", ""

RUNS_AHEAD = 2
"""Messages that a child may have in its pipe: it reads the next one while the worker reads its answer to
the last."""


def feed_ahead(
    kids: Iterable[Kid], queue: deque[Duty], limits: Settings, now: float, place: Place = NOWHERE
) -> Iterator[RunCalls]:
    """Let short calls wait in the pipes of busy children, the least busy first."""
    for kid in sorted(kids, key=lambda kid: kid.expected_us):
        while queue and kid.accepts_ahead(queue[0], limits.short_call_us, RUNS_AHEAD):
            if not 0 < queue[0].expected_us <= limits.short_call_us:
                return
            yield feed(kid, queue, limits, now, share=1, place=place)


def feed(
    kid: Kid, queue: deque[Duty], limits: Settings, now: float, share: int, place: Place = NOWHERE
) -> RunCalls:
    """Send the head of the queue, and as many like it as make one worthwhile message, to ``kid``.

    ``share`` children are to share the queue: none takes more than its part. ``place`` is where its files
    are, if it needs some.
    """
    duties = _take(kid, queue, limits, share)
    new_setup = kid.adopt(duties[0])
    if not kid.calls:
        kid.goes(now)
    functions: Indexed[bytes] = Indexed()
    last = None
    function = 0
    calls: list[ChildCall] = []
    for duty in duties:
        if duty.function is not last:
            last = duty.function
            function = functions[last]
        calls.append(ChildCall(kid.take(duty), function, duty.items))
    if duties[0].timeout_us or duties[0].memory_bytes:
        calls = [structs.replace(calls[0], timed=True, memory_bytes=duties[0].memory_bytes)]
    kid.runs.append(calls[-1].seq)
    setup = [duties[0].setup] if new_setup else []
    where = place if any(duty.needy for duty in duties) else NOWHERE
    run = Run(calls, len(functions), new_setup, *where)
    carried: list[Blob] = list(functions)
    if any(map(name_of, functions)):
        carried, digests, drops = _named(kid, functions, limits.named_kept_bytes)
        run = structs.replace(run, digests=digests, drops=drops)
    return RunCalls(kid.number, run, [*carried, *setup, *[duty.body for duty in duties]])


def _named(kid: Kid, functions: Iterable[bytes], most: int) -> tuple[list[Blob], list[bytes], list[bytes]]:
    """What of these functions is carried, the digests that they go by, and what the child drops for them."""
    carried: list[Blob] = []
    digests: list[bytes] = []
    for function in functions:
        digest = name_of(function) if len(function) <= most else b""  # else it is freed after its calls
        told = digest and not kid.given.give(digest, len(function))
        carried.append(b"" if told else function)
        digests.append(digest)
    return carried, digests, kid.given.shrink(most)


def _take(kid: Kid, queue: deque[Duty], limits: Settings, share: int) -> list[Duty]:
    duties = [queue.popleft()]
    first = duties[0]
    expected = first.expected_us
    if not expected:
        return duties
    most = min(max(1, len(queue) // share), limits.batch_calls_max)
    if first.tasks_max:
        most = min(most, first.tasks_max - kid.used)
    while queue and expected < limits.run_us and len(duties) < most:
        duty = queue[0]
        if duty.setup is not first.setup and duty.setup != first.setup:
            break
        if not 0 < duty.expected_us <= limits.short_call_us:
            break
        expected += duty.expected_us
        duties.append(queue.popleft())
    return duties
