"""The processes behind a worker's slots: their pipes, pages and ends; what they shall do, others decide.

Nothing here waits: what a child does not read stays in its outbox, and a child that does nothing disturbs
nobody. A death is reported once its exit status is known and its pipe has been read to the end, after the
results that it left in its page.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from math import inf
from typing import Final

from msgspec import structs

from zfarm.edge import wire
from zfarm.edge.descriptors import allow_descriptors
from zfarm.edge.fates import bereaved, failure_of, fate_of, starved, unborn
from zfarm.edge.kid import Kid
from zfarm.edge.lender import Lender
from zfarm.edge.listener import Listener, Sources
from zfarm.edge.nursery import Forked, Gone, Nursery, Report
from zfarm.edge.ooms import Ooms
from zfarm.edge.pipe import READ_BYTES, Frames
from zfarm.edge.tails import Speaker, Tail
from zfarm.edge.taps import RECORDS, Taps
from zfarm.edge.told import as_text
from zfarm.edge.wire import Malformed
from zfarm.messages import (
    Action,
    Blob,
    Borrow,
    Delivers,
    Done,
    Dones,
    Emits,
    Left,
    Lent,
    Message,
    Progress,
    Released,
    Run,
    Starts,
    Unshare,
    Waits,
)
from zfarm.settings import Settings, settings

__all__ = ["Children"]

_NOTHING: Final = Left()
_PIPE_BYTES: Final = 1024 * 1024
"""What a child may have written that is not read yet, where the system allows it (Linux takes it twice, and
counts what it needs itself): a piece of a file, so that nobody wakes up for parts of it."""
_PIPE_READS: Final = 16
"""Readings that certainly take all that a pipe can hold: it is smaller than what one reading may take."""
_MUTED_LOOK_S: Final = 0.05
_STDOUT: Final = 1
_SETTLE_S: Final = 0.0015
"""Between the two steps of taking calls back; zfarm.edge.page says why."""


class Children:
    """All children of one worker."""

    def __init__(
        self,
        nursery: Nursery,
        listener: Listener,
        sources: Sources,
        clock: Callable[[], float] = time.monotonic,
        limits: Settings = settings,
    ) -> None:
        self._nursery = nursery
        self._listener = listener
        self._sources = sources
        self._clock = clock
        self._limits = limits
        self._kids: dict[int, Kid] = {}
        self._unborn: dict[int, str] = {}  # those that could not be started, and why
        self._scratch = bytearray(READ_BYTES)
        self._speaker = Speaker()
        self._muted: list[Kid] = []  # they say more on stderr than is taken off us
        self.ooms = Ooms()
        self.lender: Lender | None = None
        """Who lends them shared memory for results; None: nobody."""
        self._closed = False
        self.deadline = inf
        allow_descriptors()
        sources.add_source(nursery.fileno(), self._hear)

    # ------------------------------------------------------------ what the worker wants

    def start(self, child: int) -> None:
        """Start a child under this number; ``child_started`` or ``child_died`` will tell."""
        try:
            pipes = socket.socketpair()
            with ExitStack() as undo:
                for sock in pipes:
                    undo.enter_context(sock)
                pipes[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIPE_BYTES)
                tunnels = socket.socketpair()
                for sock in tunnels:
                    undo.enter_context(sock)
                stderr = os.pipe()
                for fd in stderr:
                    undo.callback(os.close, fd)
                taps = Taps(self._limits, self._clock())
                undo.callback(taps.close)
                tail = Tail(stderr[0], self._speaker)
                kid = Kid(child, pipes[0], tunnels[0], tail, taps, self._scratch)
                undo.pop_all()
        except OSError as error:
            self._unborn[child] = unborn(error.errno or 0)
            self.deadline = -inf
            return
        self._kids[child] = kid
        with pipes[1], tunnels[1], suppress(OSError):  # the end of the nursery is told in its own time
            self._nursery.fork(
                child,
                (pipes[1].fileno(), tunnels[1].fileno(), kid.page.fd, stderr[1], *taps.theirs),
            )
        kid.page.close_fd()
        os.close(stderr[1])
        taps.close_theirs()
        for source in taps.sources:
            self._sources.add_source(source, lambda: self._hear_output(kid))
        self._sources.add_source(kid.pipe.fileno(), lambda: self._hear_pipe(kid), lambda: self._flush(kid))
        self._sources.add_source(
            kid.tunnel.fileno(), lambda: self._hear_tunnel(kid), lambda: self._flush_tunnel(kid)
        )
        self._sources.add_source(kid.tail.fd, lambda: self._hear_stderr(kid))

    def run(self, child: int, run: Run, payload: Sequence[Blob]) -> None:
        """Send calls to a child; a child that is gone is told as dead, with them."""
        kid = self._kids.get(child)
        if kid is None:
            return
        assert kid.settle_at == inf, "calls for a child that is giving some back"
        if kid.last_done == kid.last_seq:
            kid.tail.forget()
        kid.last_seq = run.calls[-1].seq
        if not kid.open:
            return
        try:
            if not kid.outbox.add(wire.encode(run, payload)):
                self._watch(kid)
        except OSError:
            self._expect_end(kid)

    def take_back(self, child: int) -> None:
        """Void what a child has not started; ``child_took_back`` tells what it has."""
        kid = self._kids.get(child)
        if kid is None:
            return
        kid.page.void(kid.last_seq)
        kid.mark = kid.page.mark()
        kid.settle_at = self._clock() + _SETTLE_S
        self.deadline = min(self.deadline, kid.settle_at)

    def stop(self, child: int, kill: bool) -> None:
        """End a child: let it leave once it is idle, or kill it with its process group at once."""
        kid = self._kids.get(child)
        if kid is None:
            return
        if kill:
            self._kill(kid, "killed on request")
            return
        kid.stopping = True
        self._set_due(kid)
        if kid.outbox.waiting == 0:
            self._close_ours(kid)

    def pause(self, child: int, paused: bool) -> None:
        """Read nothing more from a child, so that it waits when it emits; or read on."""
        kid = self._kids.get(child)
        if kid is not None:
            kid.paused = paused
            self._watch(kid)

    def _watch(self, kid: Kid) -> None:
        if kid.open:
            self._sources.watch(kid.pipe.fileno(), readable=not kid.paused, writable=kid.outbox.waiting > 0)

    def interrupt(self, child: int) -> None:
        """Send SIGINT to a child, for the call that runs in it."""
        if child in self._kids:
            with suppress(OSError):  # the end of the nursery is told in its own time
                self._nursery.interrupt(child)

    def tunnel_send(self, child: int, frames: Sequence[Blob]) -> None:
        """Give frames to the client in a child; dropped if that is gone, as ZeroMQ would."""
        kid = self._kids.get(child)
        if kid is None or not kid.tunnel_open:
            return
        try:
            if not kid.tunnel_outbox.add(frames):
                self._sources.watch(kid.tunnel.fileno(), writable=True)
        except OSError:
            self._close_tunnel(kid)

    def pids(self) -> dict[int, int]:
        """The pid of every child that has one, by its number. From any thread."""
        return {number: kid.pid for number, kid in list(self._kids.items()) if kid.pid}

    def pid(self, child: int) -> int:
        """Of a child; 0: it has none (any more)."""
        kid = self._kids.get(child)
        return kid.pid if kid is not None else 0

    def last_words(self, child: int) -> str:
        """The last lines that a child has written to its stderr so far."""
        kid = self._kids.get(child)
        return kid.tail.last_words(self._limits.stderr_kept) if kid is not None else ""

    def close(self) -> None:
        """Kill all children and end the nursery. Nobody is told any more."""
        if self._closed:
            return
        self._closed = True
        self._sources.remove_source(self._nursery.fileno())
        kids = list(self._kids.values())
        for kid in kids:
            self._release(kid)
        self._nursery.close()
        for kid in kids:
            kid.tail.close()
        self._speaker.close()
        self.deadline = inf

    # ------------------------------------------------------------ the turn

    def advance(self, now: float) -> list[Action]:
        """Do what is due; there is nothing that anybody else must perform."""
        if now < self.deadline:
            return []
        self.deadline = inf
        while self._unborn:
            child, text = self._unborn.popitem()
            self._listener.child_unborn(child, text, now)
        if self._muted and not self._speaker.behind:
            muted, self._muted = self._muted, []
            for kid in muted:
                self._watch_stderr(kid, True)
        elif self._muted:
            self.deadline = now + _MUTED_LOOK_S
        for kid in list(self._kids.values()):
            if kid.settle_at <= now:
                self._settle(kid, now)
            if kid.due <= now:
                why = "did not leave" if kid.stopping else "closed its pipe and did not leave"
                kid.due = inf
                self._kill(kid, f"killed: it {why} within {self._limits.stop_grace_s:g} s")
            self.deadline = min(self.deadline, kid.settle_at, kid.due)
        return []

    def _settle(self, kid: Kid, now: float) -> None:
        kid.settle_at = inf
        started = kid.page.settle()
        self._drain(kid, _PIPE_READS)  # what it sent comes before what it kept
        self._hear_output(kid, whole=True)
        self._report(kid, kid.page.unsent(kid.mark), now)
        self._listener.child_took_back(kid.number, started, now)

    def _set_due(self, kid: Kid) -> None:
        kid.due = min(kid.due, self._clock() + self._limits.stop_grace_s)
        self.deadline = min(self.deadline, kid.due)

    # ------------------------------------------------------------ the pipe

    def _hear_pipe(self, kid: Kid) -> None:
        self._read(kid)

    def _read(self, kid: Kid) -> bool:
        """Read once; False when there is nothing more to read for now."""
        try:
            found = kid.reader.read(kid.pipe)
        except BlockingIOError:
            return False
        except OSError:
            found = None
        except Malformed as error:
            self._kill(kid, f"killed: {error}")
            self._expect_end(kid)
            return False
        if found is None:
            self._expect_end(kid)
            return False
        try:
            for frames in found:
                self._take(kid, frames)
        except Malformed as error:
            self._kill(kid, f"killed: it sent a message that is none: {error}")
            self._expect_end(kid)
            return False
        return True

    def _take(self, kid: Kid, frames: Frames) -> None:
        message, payload = wire.from_child.decode(frames)
        now = self._clock()
        if isinstance(message, Dones):
            dones = message.dones
            if message.printed:
                self._hear_output(kid, whole=True)
            if dones and dones[0].seq <= kid.last_done:
                self._report(kid, list(zip(dones, payload, strict=True)), now)
                return
            if dones:
                kid.last_done = dones[-1].seq
            self._listener.child_reported(kid.number, dones, self._laden(kid, payload), now)
        elif isinstance(message, Starts):
            self._listener.child_starts(kid.number, message.seq, now)
        elif isinstance(message, Emits):
            emitted = self._listener.child_emitted
            emitted(kid.number, message.seq, payload, message.latest, message.files, now)
        elif isinstance(message, Progress):
            self._listener.child_advanced(kid.number, message, now)
        elif isinstance(message, Delivers):
            self._listener.child_delivers(kid.number, message.seq, message.whole, now)
        elif isinstance(message, Borrow):
            self._lend(kid, message)
        elif isinstance(message, Released):
            if self.lender is not None:
                self.lender.note(message.notes)
        elif isinstance(message, Waits):
            self._listener.child_waits(kid.number, message.waiting, now)
        else:
            raise Malformed(f"{type(message).__name__} on the pipe of a child")

    def _hear_output(self, kid: Kid, whole: bool = False) -> None:
        """Tell what it has printed; with ``whole`` what its last line has so far, too."""
        before = kid.taps.sources
        now = self._clock()
        for piece in kid.taps.read(kid.page.started(), now, whole):
            if piece.source != _STDOUT:
                kid.tail.note(as_text(piece.text) if piece.source == RECORDS else piece.text)
            self._listener.child_printed(kid.number, piece, now)
        for source in before:
            if source not in kid.taps.sources:
                self._sources.remove_source(source)

    def _report(self, kid: Kid, results: Sequence[tuple[Done, Blob]], now: float) -> None:
        """Tell those that have not been told."""
        new = [(done, blob) for done, blob in results if kid.last_done < done.seq <= kid.last_seq]
        if new:
            kid.last_done = new[-1][0].seq
            blobs = self._laden(kid, [blob for _, blob in new])
            self._listener.child_reported(kid.number, [done for done, _ in new], blobs, now)

    def unshare(self, key: bytes) -> None:
        """Tell all children that nobody refers to this shared object any more."""
        for kid in list(self._kids.values()):
            if kid.open:
                self._say(kid, Unshare(key))

    def tell(self, child: int, message: Message) -> None:
        """Say this to a child, if it is there."""
        kid = self._kids.get(child)
        if kid is not None and kid.open:
            self._say(kid, message)

    def _laden(self, kid: Kid, payload: Sequence[Blob]) -> Sequence[Blob]:
        return payload if self.lender is None else self.lender.reported(kid.number, payload)

    def _lend(self, kid: Kid, asked: Borrow) -> None:
        lent = Lent([]) if self.lender is None else self.lender.lend(kid.number, asked.sizes)
        self._say(kid, lent)

    def _say(self, kid: Kid, message: Message) -> None:
        try:
            if not kid.outbox.add(wire.encode(message)):
                self._watch(kid)
        except OSError:
            self._expect_end(kid)

    def _drain(self, kid: Kid, most: float = inf) -> None:
        """Read all that is there; ``most`` readings of a child that may go on writing."""
        while kid.open and most > 0 and self._read(kid):
            most -= 1

    def _flush(self, kid: Kid) -> None:
        try:
            if not kid.outbox.flush():
                return
        except OSError:
            self._expect_end(kid)
            return
        self._watch(kid)
        if kid.stopping:
            self._close_ours(kid)

    def _close_ours(self, kid: Kid) -> None:
        with suppress(OSError):  # it is gone already
            kid.pipe.shutdown(socket.SHUT_WR)

    def _expect_end(self, kid: Kid) -> None:
        """The pipe is at its end, or broken: its process is ending, or it never answers again."""
        if kid.open:
            kid.open = False
            self._sources.remove_source(kid.pipe.fileno())
            self._set_due(kid)

    # ------------------------------------------------------------ the tunnel

    def _hear_tunnel(self, kid: Kid) -> None:
        self._read_tunnel(kid)

    def _read_tunnel(self, kid: Kid) -> bool:
        try:
            found = kid.tunnel_reader.read(kid.tunnel)
        except BlockingIOError:
            return False
        except OSError:
            found = None
        except Malformed as error:
            self._kill(kid, f"killed: {error} (tunnel)")
            found = None
        if found is None:
            self._close_tunnel(kid)
            return False
        for frames in found:
            kid.tunnel_used = True
            self._listener.tunnel_frames(kid.number, frames)
        return True

    def _flush_tunnel(self, kid: Kid) -> None:
        try:
            if kid.tunnel_outbox.flush():
                self._sources.watch(kid.tunnel.fileno(), writable=False)
        except OSError:
            self._close_tunnel(kid)

    def _close_tunnel(self, kid: Kid) -> None:
        if kid.tunnel_open:
            kid.tunnel_open = False
            self._sources.remove_source(kid.tunnel.fileno())
            if kid.tunnel_used and not self._closed:
                self._listener.tunnel_closed(kid.number)

    # ------------------------------------------------------------ stderr

    def _hear_stderr(self, kid: Kid) -> None:
        if not kid.tail.read():
            self._watch_stderr(kid, False)  # it has closed it
        elif self._speaker.behind:
            self._watch_stderr(kid, False)
            self._muted.append(kid)
            self.deadline = min(self.deadline, self._clock() + _MUTED_LOOK_S)

    def _watch_stderr(self, kid: Kid, readable: bool) -> None:
        if kid.number in self._kids:
            self._sources.watch(kid.tail.fd, readable=readable)

    # ------------------------------------------------------------ the nursery

    def _hear(self) -> None:
        reports = self._nursery.read()
        if reports is None:
            self._lose_nursery()
            return
        for report in reports:
            self._note(report)

    def _note(self, report: Report) -> None:
        kid = self._kids.get(report.child)
        if kid is None:
            return
        if isinstance(report, Forked):
            kid.pid = report.pid
            self._listener.child_started(kid.number, self._clock())
        elif isinstance(report, Gone):
            evidence = self.ooms.evidence()
            text = fate_of(report, kid.reason, kid.stopping, evidence)
            unasked = report.signal == signal.SIGKILL and not (kid.reason or report.doomed)
            left = Left("", report.peak_bytes, evidence.text if unasked else "", doomed=report.doomed)
            self._end(kid, report.signal, report.exit_code, text, left)
        else:
            self._release(kid)
            kid.tail.close()
            self._listener.child_unborn(kid.number, failure_of(report), self._clock())

    def _end(self, kid: Kid, number: int, exit_code: int, text: str, left: Left = _NOTHING) -> None:
        self._drain(kid)
        for _ in range(_PIPE_READS):  # a process that it has left behind may go on writing
            self._hear_output(kid)
        self._hear_output(kid, whole=True)
        while kid.tunnel_open and self._read_tunnel(kid):
            pass
        now = self._clock()
        self._report(kid, kid.page.unsent(kid.page.mark()), now)
        started = kid.page.started()
        words = kid.tail.last_words(self._limits.stderr_kept)
        left = structs.replace(left, stderr=words, starved=starved(words))
        self._release(kid)
        kid.tail.close()
        self._listener.child_died(kid.number, started, number, exit_code, text, now, left)

    def _lose_nursery(self) -> None:
        self._sources.remove_source(self._nursery.fileno())
        evidence = self.ooms.evidence()
        for kid in list(self._kids.values()):
            left = Left("", 0, evidence.text)
            self._end(kid, signal.SIGKILL, 0, bereaved(evidence), left)
        self._listener.nursery_died(self._clock())

    def _kill(self, kid: Kid, reason: str) -> None:
        kid.reason = kid.reason or reason
        with suppress(OSError):  # the end of the nursery is told in its own time
            self._nursery.kill(kid.number)

    def _release(self, kid: Kid) -> None:
        del self._kids[kid.number]
        if kid.open:
            kid.open = False
            self._sources.remove_source(kid.pipe.fileno())
        self._sources.remove_source(kid.tail.fd)
        self._close_tunnel(kid)
        for source in kid.taps.sources:
            self._sources.remove_source(source)
        if self.lender is not None:
            self.lender.died(kid.number)
        kid.taps.close()
        kid.pipe.close()
        kid.tunnel.close()
        kid.page.close()
