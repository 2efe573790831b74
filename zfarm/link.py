"""One client's link to its farm: a thread that drives the client's machine and settles what users hold.

Users' threads only append to queues and wake the loop; everything else here happens in the link's own thread,
so the machine, the books of open tokens and the road need no lock. A *token* is what waits for an outcome: a
Future, or a Batch of a map. The link does not know its executor, so that one can be collected while its calls
go on.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from zfarm import exits
from zfarm.core.client import Client
from zfarm.core.oversize import most_of
from zfarm.edge.cargo import Cargo
from zfarm.edge.loop import Loop
from zfarm.edge.outcomes import add_note, decode_batch, decode_outcome
from zfarm.endings import ending, tries
from zfarm.errors import (
    ConfigurationError,
    FarmBroken,
    FarmClosed,
    FarmError,
    ForkError,
    InitializerFailed,
    TransferError,
)
from zfarm.futures import FINISHED, Future, gate
from zfarm.harbour import Harbour
from zfarm.identity import our_versions, program_name
from zfarm.messages import (
    BROKEN,
    BROKER,
    CANCELLED,
    LOST,
    MEMORY,
    MISSING,
    MIXED,
    OVERSIZED,
    REFUSED,
    TIMEOUT,
    VALUE,
    Action,
    Advanced,
    Arrived,
    Connected,
    Dial,
    Ended,
    Explained,
    Give,
    HangUp,
    Heard,
    Looked,
    Message,
    Missed,
    Outcome,
    Payload,
    Rejected,
    Resolve,
    Running,
    Safe,
    Send,
    StreamOver,
    TakenOver,
    Tell,
    Welcome,
)
from zfarm.parties import Feeder, Road, Token
from zfarm.reasons import Questions, Reason
from zfarm.settings import settings
from zfarm.terms import FORWARD, PLAIN, Terms

if TYPE_CHECKING:
    from zfarm.arrivals import Arrivals
    from zfarm.channels import Channels
    from zfarm.edge.bales import Bale
    from zfarm.edge.stowage import Stowage
    from zfarm.gathering import Gathering
    from zfarm.givers import Giver
    from zfarm.handles import FileHandle
    from zfarm.outputs import Outputs
    from zfarm.syncing import Shipped

__all__ = ["Link", "Road", "Token"]

log = logging.getLogger("zfarm")
log.addHandler(logging.NullHandler())

CLOSED: Final = "cannot schedule new futures after shutdown"
CANCEL_WAIT_S: Final = 5.0
"""How long Future.cancel waits for the farm's answer before it says that it knows of no cancelled call."""


FLUSH_WAIT_S: Final = 2.0
"""How long the end of a task may wait for its submits to leave."""


class Link:
    """The loop thread of one client, and what users' threads may ask of it."""

    bytes_max: float = settings.payload_bytes_max
    """Of one call: what is larger is not taken here, or by the broker that answered last."""

    def __init__(
        self,
        road: Road,
        session: str,
        expected_slots: int = 1,
        job: str = "",
        attach: bool = False,
        stowage: Stowage | None = None,
    ) -> None:
        """``job`` names the tasks of this client, so that they outlive it; with ``attach`` they are those of
        an earlier one, and ``taken_over`` holds their futures once ``reached`` is set."""
        self.road = road
        self.taken_over: list[Future[Any]] = []
        self.booked = threading.Event()
        """Set whenever the broker has written more tasks to its journal; for one who waits to clear."""
        self._job = job
        self.waits = road.waits
        """In a child: says that the running task waits while the context is open."""
        self.loop = Loop()
        self.inbox: deque[tuple[Future[Any], str, bytes, bytes, bytes]] = deque()
        """What was submitted and not taken yet: (future, name, function, setup, body)."""
        self.refusal: Callable[[], FarmError] | None = None
        """Makes the error of a submit; None: submits are welcome."""
        self.ended = False
        """The loop has stopped: whoever puts something into a queue after that sweeps it."""
        self.failure: FarmError | None = None
        """Why the link is of no use any more."""
        self.reached = threading.Event()
        """The broker has answered, or never will."""
        self.feeders: set[Feeder] = set()
        self.program = program_name()
        """What dashboards call this client."""
        self._executor: weakref.ref[object] | None = None
        self._pid = os.getpid()
        self._forked = False
        self._over = threading.Event()
        self._open: dict[int, Any] = {}
        self._asks: deque[tuple[Future[Any], threading.Lock, bool, int]] = deque()
        self.named: dict[bytes, tuple[FileHandle | Bale, ...]] = {}
        """The files that functions need, by their pickles."""
        self._handles: dict[int, tuple[FileHandle | Bale, ...]] = {}  # those that tasks need
        self._giver: Giver | None = None
        self.shipped: Shipped | None = None
        """The code that its calls need."""
        self._forced: set[int] = set()  # tasks that are being stopped
        self._asked: dict[int, list[threading.Lock]] = {}
        self._streams: Channels | None = None
        self._outputs: Outputs | None = None
        self.output = settings.output or (FORWARD if road.remote or "ipykernel" in sys.modules else "")
        """Where what tasks print goes unless their terms say something else."""
        self._arrivals: Arrivals | None = None
        self._gathering: Gathering | None = None
        self.harbour: Harbour | None = None if stowage is None else Harbour(self, stowage)
        self._holds: dict[int, Any] = {} if self.harbour is None else self.harbour.holds
        self._welcome: Welcome | None = None
        self._closing = False
        self._expected_slots = expected_slots
        self._slots = 0
        self._machine = Client(
            session,
            our_versions(),
            platform.node(),
            self._pid,
            self.program,
            time.monotonic(),
            job=job,
            attach=attach,
        )
        self.questions = Questions(self._machine, road)
        self._machine.inflow.files = True
        self._thread = threading.Thread(target=self._run, name="zfarm-client", daemon=True)

    # ------------------------------------------------------------ from any thread

    @property
    def slots(self) -> int:
        """Of the farm, as last heard; never 0."""
        return self._machine.slots or self._expected_slots

    @property
    def open(self) -> int:
        """How many calls and batches have no outcome yet."""
        return len(self._open) + len(self.inbox)

    @property
    def streams(self) -> Channels:
        """The streams that are read over this link. Raises ForkError in a forked process."""
        if self._forked:
            raise self.fork_error()
        with gate:
            if self._streams is None:
                from zfarm.channels import Channels

                self._streams = Channels(self, self._machine)
                self.call(self._subscribe)
            return self._streams

    @property
    def arrivals(self) -> Arrivals:
        """Where the files of tasks arrive. Raises ForkError in a forked process."""
        if self._forked:
            raise self.fork_error()
        with gate:
            if self._arrivals is None:
                from zfarm.arrivals import Arrivals

                self._arrivals = Arrivals(self, self._machine)
                self.call(self._subscribe)
            return self._arrivals

    @property
    def machine(self) -> Client:
        """What decides here; the link's thread only."""
        return self._machine

    def start(self) -> None:
        """Start the thread."""
        exits.alive(self)
        self._thread.start()

    def serve(self, executor: object) -> None:
        """Close when ``executor`` is collected."""
        self._executor = weakref.ref(executor, lambda _: self.close())

    @property
    def executor(self) -> Callable[[], Any]:
        """Gives the executor that it serves, while that is there."""
        return self._executor or (lambda: None)

    def call(self, fn: Callable[[], None]) -> None:
        """Call ``fn`` in the link's thread, soon; never after the end."""
        self.loop.call_soon(fn)

    def check_open(self) -> None:
        """Raise why nothing can be submitted, if so."""
        if self.refusal is not None:
            raise self.refusal()

    def check_files(self, handles: Sequence[FileHandle | Bale]) -> None:
        """Raise if the calls of this link cannot need these files."""
        if not self._job:
            return
        for handle in handles:
            if not handle._need.archived:
                raise TransferError(
                    f"{handle.name!r} cannot be given to a call of job {self._job!r}: a job outlives its "
                    "program, which has the file; have the farm keep it: farm.put(path, name=...)"
                )

    def ship(self) -> Shipped:
        """Where the code is kept that its calls need."""
        if self._forked:
            raise self.fork_error()
        with gate:
            if self.shipped is None:
                from zfarm.syncing import Shipped

                self.shipped = Shipped()
            return self.shipped

    def refused(self) -> FarmError:
        """Why nothing can be submitted any more."""
        return _closed() if self.refusal is None else self.refusal()

    def check_waiting(self) -> None:
        """Raise if this thread or process would wait for ever."""
        if self._forked:
            raise self.fork_error()
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError(
                "a callback of a future must not wait for another future: it runs in the thread that "
                "brings the outcomes"
            )

    def cancel(self, future: Future[Any], force: bool = False, grace_us: int = 0) -> bool:
        """Cancel a call that the link has taken, if it has not started, or stop it. See Future.cancel."""
        if self._forked:
            raise self.fork_error()
        if threading.get_ident() == self._thread.ident:
            self._ask_cancel(future, None, force, grace_us)
            return future.cancelled()  # the answer comes through this thread: it cannot wait for it
        answer = threading.Lock()
        answer.acquire()
        self._asks.append((future, answer, force, grace_us))
        self.loop.wake()
        if self.ended:
            self.sweep()
        answer.acquire(timeout=CANCEL_WAIT_S + grace_us / 1e6)
        return future.cancelled()

    def why(self, future: Future[Any]) -> Reason:
        """Why a future is not done; see Future.why."""
        if self._forked:
            raise self.fork_error()
        if self.failure is not None:
            return Reason("broken", f"nothing can go on here: {self.failure}")
        if not future._task:
            self.flush()  # it may have been submitted a moment ago
        if not future._task or self.ended or threading.get_ident() == self._thread.ident:
            return Reason("unsent", "this process has not sent it yet, or is in no position to ask now")
        return self.questions.ask(future._task, self.call, time.monotonic)

    def close(self, cancel: bool = False) -> None:
        """Take no more; end when everything has its outcome. With ``cancel``: cancel what has not started."""
        self._refuse(_closed)
        self.call(lambda: self._close(cancel))

    def abandon(self) -> None:
        """Cancel everything, running calls included, and end at once."""
        self._refuse(_closed)
        self.call(self._abandon)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end, but not in the link's own thread. False: it has not ended in time."""
        if self._forked or threading.get_ident() == self._thread.ident:
            return self.ended
        # not Thread.join, which a KeyboardInterrupt makes believe that the thread has ended (bpo-45274)
        if not self._over.wait(timeout_s):
            return False
        self._thread.join()
        _see_off(self._thread)
        return True

    def flush(self) -> None:
        """Wait until what was submitted is on its way to the broker; within bounds, and not in the link's
        thread."""
        if self._forked or threading.get_ident() == self._thread.ident:
            return
        sent = threading.Event()
        if self.reached.wait(FLUSH_WAIT_S):
            self.call(lambda: self.call(sent.set))  # in the turn after the one that takes and sends
            sent.wait(FLUSH_WAIT_S)

    def sweep(self) -> None:
        """After the end: answer what came into the queues too late. From any thread, several at once too."""
        while self.inbox or self._asks:
            try:
                if self.inbox:
                    self.inbox.popleft()[0]._fail(self.refused())
                if self._asks:
                    self._asks.popleft()[1].release()
            except IndexError:  # another thread was faster
                continue

    def fork_error(self) -> ForkError:
        """Why this process may not use the link."""
        return ForkError(
            f"this executor belongs to process {self._pid}; process {os.getpid()} was forked from it "
            "afterwards and needs an Executor of its own"
        )

    def after_fork(self) -> None:
        """In a process forked from ours: be of no use, and hold nothing open."""
        self._forked = True
        self.refusal = self.fork_error
        self.road.disown()
        if self.harbour is not None:
            self.harbour.stowage.disown()

    def _refuse(self, refusal: Callable[[], FarmError]) -> None:
        if self.refusal is None:
            self.refusal = refusal

    # ------------------------------------------------------------ the link's thread: the machine

    def _run(self) -> None:
        try:
            self.loop.on_wake(self.take)
            self.loop.add_machine(self._machine, self._perform)
            self.road.open(self)
            self.loop.run()
        except FarmError as error:
            self._break(error)
        except BaseException as error:
            log.critical("the client's loop failed", exc_info=True)
            broken = FarmBroken(f"the client's loop failed, which is a bug of zfarm: {error!r}")
            broken.__cause__ = error
            self._break(broken)
        self._end()

    def _end(self) -> None:
        self._refuse(_closed)
        self.ended = True
        self._fail_open()
        if self._streams is not None:
            self._streams.cut()
        if self._arrivals is not None:
            self._arrivals.cut()
        if self._gathering is not None:
            self._gathering.cut()
        self.sweep()
        if self._giver is not None:
            self._giver.close()
        if self.shipped is not None:
            self.shipped.close()
        self.questions.end()
        self.reached.set()
        if self._outputs is not None:
            self._outputs.close()
        try:
            if self.harbour is not None:
                self.harbour.close()
                self.harbour.stowage.close()
            self.road.close()
        except Exception:
            log.exception("the way to the farm cannot be closed")
        finally:
            self.loop.close()
            self._executor = None
            exits.gone(self)
            self._over.set()

    def receive(self, message: Message, payload: Payload) -> None:
        """A message of the broker."""
        if type(message) is Ended:
            self.road.outcome_arrived()
            if self.harbour is not None:
                message, payload = self.harbour.land(message, payload)
        self._machine.receive(BROKER, message, payload, self.loop.now)

    def submit(
        self,
        token: Token | Future[Any],
        name: str,
        function: bytes,
        setup: bytes,
        body: Any,
        items: int,
        terms: Terms | None = None,
    ) -> None:
        """Submit for a token; in the link's thread only."""
        terms = terms or PLAIN
        handles = terms.handles
        if self.shipped is not None:
            handles = (*handles, *self.shipped.needed(setup))
        if self.harbour is not None and isinstance(body, Cargo):
            handles = (*handles, *self.harbour.needs(body))
        needs = tuple(dict.fromkeys(one._need for one in handles))
        number = self._machine.submit(
            token, name, function, setup, body, items, terms.max_attempts, terms.timeout_us,
            terms.priority, terms.memory_bytes, terms.demand, needs,
        )  # fmt: skip
        token._task = number
        if handles:
            self._handles[number] = handles
            if isinstance(token, Future) and token._terms is not None:  # it may live longer than its call
                token._terms = replace(token._terms, handles=())
        self._open[number] = token
        if self.harbour is not None:
            self.harbour.loaded(number, body)
            if terms.keep:
                self.harbour.keeping.add(number)

    def is_open(self, task: int) -> bool:
        """Whether this task has no outcome yet."""
        return task in self._open

    def open_tasks(self) -> list[int]:
        """The tasks that have no outcome yet."""
        return list(self._open)

    def cancel_task(self, task: int) -> None:
        """Cancel a task, if it has not started or shall be stopped then too; what becomes of it is its
        outcome. The link's thread only."""
        token = self._open.get(task)
        if token is not None:
            self._machine.cancel(task, token._force)

    def take(self) -> None:
        """Give the machine what users have submitted."""
        inbox = self.inbox
        if inbox:
            submit, books, attempts = self._machine.submit, self._open, settings.max_attempts
            take = inbox.popleft
            with gate:
                for _ in range(len(inbox)):
                    future, name, function, setup, body = take()
                    if future._task:  # withdrawn
                        continue
                    if future._terms is not None or self.shipped is not None or type(body) is not bytes:
                        self.submit(future, name, function, setup, body, 0, future._terms)
                        continue
                    future._task = number = submit(future, name, function, setup, body, 0, attempts)
                    books[number] = future
        while self._asks:
            self._ask_cancel(*self._asks.popleft())
        if self._closing:
            self.leave_when_done()

    def _perform(self, actions: list[Action]) -> None:
        send, forget = self.road.send, self._open.pop
        for action in actions:
            if type(action) is Resolve:
                if self._gathering is not None:
                    action = self._gathering.resolved(action)
                token, outcome = action.token, action.outcome
                forget(outcome.task, None)
                if self._holds and self.harbour is not None:
                    self.harbour.resolved(outcome, action.blob)
                if self._handles:
                    self._handles.pop(outcome.task, None)
                if outcome.emitted and isinstance(token, Future):
                    token._emitted = outcome.emitted
                if outcome.kind == VALUE and type(token) is Future:  # nearly always
                    token._settle(FINISHED, *decode_outcome(VALUE, action.blob))
                else:
                    self._resolve(token, outcome, action.blob)
                if self._asked:
                    self._answer_cancel(outcome.task)
            elif type(action) is Send:
                send(action.message, action.payload)
            else:
                self._others[type(action)](self, action)
        if self._machine.slots != self._slots:
            self._slots = self._machine.slots
            for feeder in list(self.feeders):
                feeder.feed()
        if self._closing:
            self.leave_when_done()

    def _resolve(self, token: Any, outcome: Outcome, blob: Any) -> None:
        kind = outcome.kind
        if kind == BROKEN:
            self._initializer_failed(token, blob)
        elif type(token) is not Future:
            token._resolve(outcome, blob)
        elif kind == CANCELLED:
            token._stop()
        elif kind == MIXED:  # of a map whose job was taken over: its first error stands for the batch
            failed = decode_batch(MIXED, blob, len(decode_outcome(VALUE, blob)[0][0]))[1]
            token._settle(FINISHED, None, failed[min(failed)])
        elif kind in (LOST, REFUSED, TIMEOUT, MEMORY, MISSING, OVERSIZED):
            token._fail(ending(token._name, outcome))
        else:
            value, error = decode_outcome(kind, blob)
            if error is not None and outcome.tries:
                add_note(error, tries(outcome))
            if outcome.task in self._forced and isinstance(error, KeyboardInterrupt):
                token._stop()
            else:
                token._settle(FINISHED, value, error)
        self._forced.discard(outcome.task)

    def _running(self, action: Running) -> None:
        token = action.token
        if type(token) is Future:
            token._start()
        if self._asked:
            self._answer_cancel(token._task)

    def _give(self, action: Give) -> None:
        if self._giver is None:
            from zfarm.givers import Giver

            self._giver = Giver(lambda chunks, payload: self.call(lambda: self.road.send(chunks, payload)))
        self._giver.give(action, self._handles.get(action.task, ()))

    def _safe(self, action: Safe) -> None:
        action.token._accepted = True
        self.booked.set()

    def _taken_over(self, action: TakenOver) -> None:
        from zfarm.jobs import stand_ins

        pairs = stand_ins(self, action.tasks)
        self.taken_over = [future for _, future in pairs]
        self._open.update((task.task, future) for task, future in pairs)
        self._machine.adopt(action.session, pairs)

    def _streamed(self, action: Arrived | Missed | StreamOver) -> None:
        if action.files:
            self._filed(action)
            return
        assert self._streams is not None, "nothing comes of streams that nobody reads"
        if type(action) is Arrived:
            self._streams.arrived(action)
        elif type(action) is Missed:
            self._streams.missed(action)
        else:
            self._streams.over(action.token._task)

    def _filed(self, action: Arrived | Missed | StreamOver) -> None:
        rest: Arrived | Missed | StreamOver | None = action
        if self._gathering is None:
            from zfarm.gathering import Gathering, in_pieces

            if in_pieces(action):
                self._gathering = Gathering(self, self._machine)
                self._subscribe()
        if self._gathering is not None:
            rest = self._gathering.sift(action)
        if rest is not None:
            self.arrivals.arrived(rest)

    def _advanced(self, action: Advanced) -> None:
        if isinstance(action.token, Future):
            from zfarm.streams import Progress

            said = action.progress
            action.token._progress = Progress(said.done, said.total, said.note)

    def _heard(self, action: Heard) -> None:
        if self._outputs is None:
            from zfarm.outputs import Outputs

            self._outputs = Outputs()
        self._outputs.heard(action, self.output)

    def subscribed(self, up: bool) -> None:
        """Items that are published reach us from now on, or do not any more."""
        self._machine.subscribe(up)

    def _subscribe(self) -> None:
        reads = self._streams or self._arrivals or self._gathering
        if self._welcome is not None and reads is not None:
            self.road.subscribe(self._welcome)

    def _connected(self, action: Connected) -> None:
        self._welcome = action.welcome
        self.bytes_max = min(settings.payload_bytes_max, most_of(action.welcome))
        self._subscribe()
        if self._job and not action.welcome.journal:
            self.fail(
                ConfigurationError("this broker keeps no journal: the tasks of a job would not outlive it")
            )
        self.reached.set()

    def _rejected(self, action: Rejected) -> None:
        self.fail(FarmError.named(action.code, action.text))

    def _tell(self, action: Tell) -> None:
        log.log(logging.getLevelNamesMapping()[action.level.upper()], "%s", action.text)

    _others: ClassVar[dict[type, Callable[[Link, Any], None]]] = {
        Running: _running,
        Give: _give,
        Safe: _safe,
        TakenOver: _taken_over,
        Connected: _connected,
        Rejected: _rejected,
        Tell: _tell,
        Arrived: _streamed,
        Missed: _streamed,
        StreamOver: _streamed,
        Advanced: _advanced,
        Explained: lambda link, action: link.questions.answered(action.reason),
        Looked: lambda link, action: link.questions.looked(action.picture),
        Heard: _heard,
        Dial: lambda link, action: link.road.dial(action),
        HangUp: lambda link, action: link.road.dial(action),
    }

    def _ask_cancel(
        self, future: Future[Any], answer: threading.Lock | None, force: bool, grace_us: int
    ) -> None:
        """``answer`` is released as soon as it is known what becomes of the call; None: nobody waits."""
        task = future._task
        if task in self._open:
            if answer is not None:
                self._asked.setdefault(task, []).append(answer)
            if force:
                self._forced.add(task)
            self._machine.cancel(task, force, grace_us)
        elif answer is not None:
            answer.release()

    def _answer_cancel(self, task: int) -> None:
        for answer in self._asked.pop(task, ()):
            answer.release()

    # ------------------------------------------------------------ the link's thread: ends, good and bad

    def fail(self, error: FarmError) -> None:
        """Nothing can go on: everything open fails with ``error``, and so does every later submit."""
        self._break(error)
        self._fail_open()
        self._leave()

    def _break(self, error: FarmError) -> None:
        if self.failure is None:
            self.failure = error
            self.refusal = lambda: _again(error)
        self.reached.set()

    def _initializer_failed(self, token: Any, blob: Any) -> None:
        cause = decode_outcome(BROKEN, blob)[1]
        if isinstance(cause, InitializerFailed):  # it did not raise: it exited or died
            failure = cause
        else:
            failure = InitializerFailed(f"the initializer raised {cause!r}; no call can run on this farm")
            failure.__cause__ = cause
        token._fail(_again(failure))
        self.fail(failure)

    def _close(self, cancel: bool) -> None:
        self._closing = True
        if cancel:
            for feeder in list(self.feeders):
                feeder.forget(None)
            self._drop_inbox()
            for task in list(self._open):
                self.cancel_task(task)
        self.leave_when_done()

    def _drop_inbox(self) -> None:
        while self.inbox:
            future = self.inbox.popleft()[0]
            if future._withdraw():
                future._drop()

    def leave_when_done(self) -> None:
        """Leave if we shall and all is done. The link's thread only."""
        busy = self._open or self.inbox or self.feeders or (self._streams is not None and self._streams.busy)
        busy = busy or self._machine.inflow.filing or (self._arrivals is not None and self._arrivals.busy)
        if self._closing and not busy and self.road.is_settled():
            self._leave()

    def _abandon(self) -> None:
        for feeder in list(self.feeders):
            feeder.forget(None)
        self._drop_inbox()
        tokens = list(self._open.values())
        self._open.clear()
        for token in tokens:
            token._abandon()
        self._leave()

    def _leave(self) -> None:
        """Say Bye in this turn, and stop after it."""
        self._machine.leave()
        self.loop.stop()

    def _fail_open(self) -> None:
        for feeder in list(self.feeders):
            feeder.forget(self.refused())
        tokens = list(self._open.values())
        self._open.clear()
        for token in tokens:
            token._fail(self.refused())
        for task in list(self._asked):
            self._answer_cancel(task)


def _see_off(thread: threading.Thread) -> None:
    """Let the system's thread end, too: Python's join returns a moment earlier than that before 3.13."""
    path = f"/proc/self/task/{thread.native_id}"
    end = time.monotonic() + 0.1
    while os.path.exists(path) and time.monotonic() < end:
        os.sched_yield()


def _closed() -> FarmClosed:
    return FarmClosed(CLOSED)


def _again(error: FarmError) -> FarmError:
    """The same error as a new object: each that is raised gets a traceback of its own."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
