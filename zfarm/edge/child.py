"""What runs in a child: reads calls from its pipe, runs them one by one, and answers; it decides nothing.

Answers are sent together, after each message of calls, when the last answer is 2 ms old, when they are large,
and before a call that is not known to be short. Until then they stand in the shared page, where the worker
finds them if this process dies.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Generator
from time import perf_counter
from types import GeneratorType
from typing import Any, Final

from zfarm.edge import inside, shared, upbringing, wire
from zfarm.edge.callables import Function
from zfarm.edge.capture import Capture
from zfarm.edge.delivery import check_item
from zfarm.edge.fence import Fence
from zfarm.edge.hatch import Hatch
from zfarm.edge.homes import PROTOCOL
from zfarm.edge.inside import Inside, Pipe, TunnelPort, current
from zfarm.edge.larder import LONG_S, Larder
from zfarm.edge.outcomes import ATOMS, encode_error, encode_value, encode_values, forget_frames
from zfarm.edge.page import ChildPage
from zfarm.edge.pipe import PIPE_LOST, Frames
from zfarm.edge.realm import Realm, unfit
from zfarm.edge.records import Records
from zfarm.edge.ways import ITEM_MAX
from zfarm.edge.wire import Malformed
from zfarm.errors import NotPortable
from zfarm.messages import (
    AGAIN,
    BROKEN,
    ERROR,
    VALUE,
    Blob,
    ChildCall,
    Delivered,
    Done,
    Dones,
    Lent,
    Run,
    Starts,
    Unshare,
)
from zfarm.settings import settings

__all__ = ["TunnelPort", "current", "main"]

INTERRUPTED: Final = 130
"""Exit code of a child that SIGINT has met while no call ran."""
_ANSWER_AFTER_S: Final = 0.002
_ANSWER_BYTES: Final = 256 * 1024
_SHORT_S: Final = 0.001
_PICKLE_FIRST: Final = 0x80
_PAYLOAD_MAX: Final = settings.payload_bytes_max
_loads: Final = pickle.loads
_dumps: Final = pickle.dumps


class Child:
    """One child."""

    def __init__(self, pipe: Pipe, page: ChildPage, here: Inside, capture: Capture, records: Records) -> None:
        self.forked = False
        self._pipe = pipe
        self._page = page
        self._here = here
        self._realm = Realm()
        self._capture = capture
        self._larder = Larder()
        self._hatch = Hatch(pipe, here.filer, self._larder)
        self._delivery = self._hatch.delivery
        self._records = records
        self._fence = Fence()
        self._flush = here.finish
        self._dones: list[Done] = []
        self._blobs: list[bytes] = []

    def serve(self) -> int:
        """Run what comes until the worker closes the pipe; the exit code."""
        try:
            while True:
                messages, self._hatch.early = self._hatch.early or self._receive(), []
                if messages is None:
                    return 0
                for frames in messages:
                    self._take(frames)
                if self._fence.too_fat:
                    return 0  # its call will go to a fresh child
        except KeyboardInterrupt:  # for a call that has just ended
            return INTERRUPTED
        except (OSError, Malformed) as error:
            if not self.forked:
                _say(f"zfarm child {os.getpid()}: lost its pipe: {error}\n")
            return PIPE_LOST

    def _receive(self) -> list[Frames] | None:
        larder = self._larder
        if (larder.full or larder.moorings.left) and self._pipe.is_quiet(settings.child_warm_s):
            larder.clear()
        return self._pipe.receive()

    def forks(self) -> None:
        """A task forks this process."""
        self._hatch.forked()

    def _take(self, frames: Frames) -> None:
        message, blobs = wire.to_child.decode(frames)
        if isinstance(message, Lent | Delivered):
            return  # to a call that was interrupted while it waited for it
        if isinstance(message, Unshare):
            shared.forget(message.key)
            self._larder.moorings.forget(message.key)
            return
        if not isinstance(message, Run):
            raise Malformed(f"{type(message).__name__} on the pipe of a child")
        first_body = message.functions
        self._here.blob_max = message.blob_bytes or _PAYLOAD_MAX
        if message.store:
            self._here.store, self._here.worker = message.store, message.worker
        if message.setup:
            self._realm.adopt(blobs[message.functions], self._here.store)
            self._fence.settle()
            self._here.setup = self._realm.setup
            self._hatch.open = self._realm.setup is not None and self._realm.setup.segments
            if self._realm.setup is not None:
                self._records.obey(self._realm.setup.attention)
                self._delivery.way = self._realm.setup.results
            first_body += 1
        else:
            self._realm.return_home()
        if self._realm.broken is not None:
            self._dones = [Done(call.seq, BROKEN, 0) for call in message.calls]
            self._blobs = [self._realm.broken] * len(self._dones)
        else:
            functions = self._realm.functions(message, blobs[: message.functions])
            bodies = list(blobs[first_body:])
            del blobs
            self._run(message.calls, functions, bodies)
        self._answer()
        if self._larder.full:
            self._larder.stir()

    def _run(self, calls: list[ChildCall], functions: list[Function], bodies: list[Blob]) -> None:
        start, keep = self._page.start, self._page.keep
        dones, blobs = self._dones, self._blobs
        bodies.reverse()
        left, size = len(calls), 0
        began = perf_counter()
        due = began + _ANSWER_AFTER_S
        for call in calls:
            left -= 1
            seq = call.seq
            function = functions[call.function]
            if dones and not function.short:
                dones, blobs, size = self._answer()
                began = perf_counter()
                due = began + _ANSWER_AFTER_S
            if (call.memory_bytes > 0) is not self._larder.heap.strict:
                self._larder.limit(call.memory_bytes > 0)
            if call.memory_bytes and self._fence.raise_to(call.memory_bytes, used=seq > 1):
                return
            if not start(seq):
                bodies.pop()
                continue
            if call.timed:
                self._pipe.send(Starts(seq))
            kind, blob = self._call(function, bodies.pop(), call.items)
            if call.memory_bytes:
                self._fence.lift()
            if self._capture.printed:
                self._capture.settle()
            if self._hatch.busy:
                blob = self._hatch.finish(blob)
                size = _ANSWER_BYTES  # it is answered now
                self._larder.full = True
            now = perf_counter()
            spent = now - began
            began = now
            function.short = spent < _SHORT_S * (call.items or 1)
            if spent > LONG_S:
                self._larder.full = True
            run_us = int(spent * 1e6)
            dones.append(Done(seq, kind, run_us))
            blobs.append(blob)
            size += len(blob)
            if self.forked:
                return
            if left and (now > due or size > _ANSWER_BYTES or not keep(seq, kind, run_us, blob)):
                dones, blobs, size = self._answer()
                began = perf_counter()
                due = began + _ANSWER_AFTER_S
            blob = b""

    def _call(self, function: Function, body: Any, items: int) -> tuple[int, bytes]:
        """Run one call: kind and blob of its outcome. Nothing that it used is referred to afterwards."""
        try:
            target: Any = function.ready()
            if function.output != self._capture.mode:
                self._capture.become(function.output)
                self._records.install()
            if function.placing is not None:
                from zfarm.edge.workplace import enter

                enter(self._here, function.placing)
            args = _loads(body) if body[0] == _PICKLE_FIRST else self._hatch.arguments(body)
        except BaseException as error:
            return self._failed(self._fence.judged(error) or self._realm.opened(error))
        del body
        self._here.emitter.muted = items > 0
        try:
            self._here.batch = items > 0
            if items:
                kind, blob = _run_batch(function, self._fence, self._realm, self._hatch, target, *args)
            else:
                if type(args) is tuple:
                    value = target(*args)
                else:
                    value = target(*args[0], **args[1])
                del args
                if type(value) is GeneratorType:
                    value = self._emit_all(value)
                if type(value) in ATOMS:
                    kind, blob = VALUE, _dumps(value, PROTOCOL)
                elif function.placing is not None and function.placing.keep:
                    from zfarm.edge.keeping import keep

                    kind, blob = VALUE, keep(self._here, encode_value, value)
                else:
                    kind, blob = VALUE, self._hatch.encode(encode_value, value)
                del value
            self._flush()  # what it emitted comes before its end
            if self._delivery.way:
                kind, blob = self._delivery.ended(self._here.seq, kind, blob)
        except BaseException as error:  # sys.exit() and KeyboardInterrupt are outcomes of a task
            args = value = target = None
            if (over := self._fence.judged(error)) is not None:
                return self._failed(over)
            self._realm.note(error)
            kind, blob = self._failed(error)
            return (AGAIN if function.retry_on and function.retries(error) else kind), blob
        if len(blob) > self._here.blob_max:
            return ERROR, unfit("result", len(blob), self._here.blob_max)
        return kind, blob

    def _emit_all(self, items: Generator[Any, Any, Any]) -> Any:
        """Emit what a generator yields; what it returns."""
        emit, seq = self._here.emitter.emit, self._here.seq
        try:
            while True:
                blob = encode_value(next(items))
                if len(blob) > ITEM_MAX or len(blob) > self._here.blob_max:
                    check_item(blob, self._delivery.way, self._here.blob_max)
                emit(seq, blob)
        except StopIteration as stop:
            return stop.value
        finally:
            items.close()

    def _failed(self, error: BaseException) -> tuple[int, bytes]:
        blob = encode_error(error, skip=0 if isinstance(error, NotPortable) else 1)
        forget_frames(error)
        self._flush()  # what it emitted comes before its end
        if len(blob) > _PAYLOAD_MAX:
            blob = unfit("exception", len(blob), _PAYLOAD_MAX)
        if self._delivery.way:
            self._delivery.forget()
            blob = self._delivery.ended(self._here.seq, ERROR, blob)[1]
        if len(blob) > self._here.blob_max:
            blob = unfit("exception", len(blob), self._here.blob_max)
        return ERROR, blob

    def _answer(self) -> tuple[list[Done], list[bytes], int]:
        """Send what is done; room for what comes next."""
        upbringing.flush_output()
        if self._capture.mode:
            self._capture.mend()
        if self.forked:
            os._exit(0)  # a process that a task forked came back here: the answer is not its business
        dones, blobs = self._dones, self._blobs
        self._dones, self._blobs = [], []
        if dones:
            self._pipe.send(Dones(dones, self._capture.used), blobs)
            self._page.clear()
        return self._dones, self._blobs, 0


def _run_batch(
    retrying: Function, fence: Fence, realm: Realm, hatch: Hatch, function: Any, star: bool, items: Any
) -> tuple[int, bytes]:
    """Run a function over items; an item that fails costs the loop one restart. One that is alone may be run
    again."""
    alone = len(items) == 1
    again = False
    values: list[Any] = []
    errors: dict[int, bytes] = {}
    append = values.append
    rest = iter(items)
    while True:
        try:
            if star:
                for item in rest:
                    append(function(*item))
            else:
                for item in rest:
                    append(function(item))
            break
        except BaseException as error:
            over = fence.judged(error)
            realm.note(error)
            errors[len(values)] = encode_error(over or error, skip=1)
            again = alone and over is None and retrying.retries(error)
            forget_frames(error)
            append(None)
    item = rest = items = None
    kind, blob = hatch.encode(encode_values, values, errors)
    return (AGAIN if again else kind), blob


def _say(text: str) -> None:
    try:
        sys.stderr.write(text)
    except (AttributeError, ValueError, OSError):
        return  # a task closed it: the exit code says the same


def main(
    parent: int, pipe_fd: int, tunnel_fd: int, page_fd: int, out_fd: int, err_fd: int, records_fd: int
) -> int:
    """Be a child until the worker closes the pipe; the exit code. ``parent`` has forked us."""
    upbringing.bring_up(parent)
    page = ChildPage(page_fd)
    os.close(page_fd)  # the mapping stays
    moved = upbringing.move_high([pipe_fd, tunnel_fd, out_fd, err_fd, records_fd])
    pipe_fd, tunnel_fd, out_fd, err_fd, records_fd = moved
    pipe = Pipe(socket.socket(fileno=pipe_fd))
    tunnel = TunnelPort(socket.socket(fileno=tunnel_fd))
    here = Inside(pipe, tunnel, page)
    capture = Capture(out_fd, err_fd, lambda: page.entered)
    child = Child(pipe, page, here, capture, Records(records_fd, capture))
    inside.become(here)

    def leave() -> None:
        """In a process that a task forks: it is no child, and must not keep the pipe open."""
        child.forked = True
        inside.become(None)
        pipe.close()
        tunnel.close()

    os.register_at_fork(after_in_child=leave, after_in_parent=child.forks)
    return child.serve()
