"""The Future that a client holds: the standard library's, but light until somebody waits for it.

A farm may have millions of futures open, and most are never waited for while they are pending. So the
condition and the lists of a future are made when somebody first looks at them; until then a change of state
is guarded by one lock that all futures share. Once a future has its condition, that guards it, as it does in
the standard library.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, InvalidStateError
from concurrent.futures import Future as StandardFuture
from concurrent.futures._base import (
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    LOGGER,
    PENDING,
    RUNNING,
)
from contextlib import AbstractContextManager
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from zfarm.arguments import end_of, grace_of

if TYPE_CHECKING:
    from zfarm.arrivals import Arrivals
    from zfarm.channels import Channels
    from zfarm.files import Files
    from zfarm.outputs import Tail
    from zfarm.pending import Pending
    from zfarm.reasons import Reason
    from zfarm.streams import Item, Progress, Stream
    from zfarm.terms import Terms

__all__ = ["FINISHED", "Future", "Home", "gate"]

T = TypeVar("T")

gate = threading.RLock()
"""Guards every future that has no condition of its own, and decides whether a link or a cancel gets a future
first.

Reentrant: a finalizer or signal handler that cancels may come in between at any point.
"""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gate._at_fork_reinit)  # type: ignore[attr-defined]

WITHDRAWN = -1
"""In place of a task's number: cancelled before the link took it."""

_DONE = frozenset((CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED))
_WORDS = {
    PENDING: "pending",
    RUNNING: "running",
    CANCELLED: "cancelled",
    CANCELLED_AND_NOTIFIED: "cancelled",
    FINISHED: "finished",
}


class Home(Protocol):
    """What a future needs of the link that it was submitted over."""

    @property
    def waits(self) -> Callable[[], AbstractContextManager[object]] | None:
        """In a child: says that the running task waits for nested ones while the context is open."""

    def check_waiting(self) -> None:
        """Raise if this thread or process may not wait for a pending future."""

    @property
    def streams(self) -> Channels:
        """The streams that are read over this link."""

    @property
    def arrivals(self) -> Arrivals:
        """Where the files of this link's tasks arrive."""

    def why(self, future: Future[Any]) -> Reason:
        """Why a future that is in the farm's hands is not done."""

    def cancel(self, future: Future[Any], force: bool = False, grace_us: int = 0) -> bool:
        """Cancel a future that is already in the farm's hands, if it has not started or with ``force``."""


class _Settled:
    """The condition of a future whose state will not change any more: nothing to guard, nobody to notify."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *exc_info: object) -> None:
        return None

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None

    def notify_all(self) -> None:
        return None

    def wait(self, timeout: float | None = None) -> bool:
        return True


_settled = _Settled()


class _Condition:
    """``future._condition``, made when it is first looked at; then the instance's own attribute hides
    this."""

    def __get__(self, future: Future[Any] | None, owner: type) -> Any:
        if future is None:
            return self
        condition = threading.Condition()
        with gate:
            if future._armed:  # by another thread, just now
                return future.__dict__["_condition"]
            if future._state == FINISHED or future._state == CANCELLED_AND_NOTIFIED:
                return _settled
            future._condition = condition
            future._armed = True  # last: from now on it is the condition that guards
            return condition


class _LazyList:
    """``future._waiters`` or ``future._done_callbacks``, made when it is first looked at."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, future: Future[Any] | None, owner: type) -> Any:
        if future is None:
            return self
        waits = future._home.waits if future._home is not None and self._name == "_waiters" else None
        fresh = [] if waits is None else _FreeingWaiters(waits)
        with gate:
            return future.__dict__.setdefault(self._name, fresh)


class _FreeingWaiters(list[Any]):
    """The waiters of a future made inside a task: whoever waits on one of them gives its slot away
    meanwhile."""

    def __init__(self, waits: Callable[[], AbstractContextManager[object]]) -> None:
        super().__init__()
        self._waits = waits

    def append(self, waiter: Any) -> None:
        if not isinstance(waiter.event, _FreeingEvent):
            waiter.event = _FreeingEvent(waiter.event, self._waits)
        super().append(waiter)


class _FreeingEvent:
    """An event whose ``wait`` says that the task waits."""

    def __init__(self, event: threading.Event, waits: Callable[[], AbstractContextManager[object]]) -> None:
        self._event = event
        self._waits = waits
        self.set = event.set
        self.clear = event.clear
        self.is_set = event.is_set

    def wait(self, timeout: float | None = None) -> bool:
        if self._event.is_set():
            return True
        with self._waits():
            return self._event.wait(timeout)


class Future(StandardFuture[T], Generic[T]):
    """The outcome of one call, now or later: a ``concurrent.futures.Future`` in every respect.

    ``cancel`` asks the farm and returns its exact answer, within a few seconds: True means that the call did
    not start and never will. Only a callback of a future, or one who cancels while the broker is away, does
    not get an answer: the call is then cancelled as soon as the farm hears of it, unless it has started.
    """

    # Instances begin with what differs from these; the standard library's __init__ is not called on purpose.
    _state: str = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _armed = False
    _task = 0
    _accepted = False
    _terms: Terms | None = None
    _force = False
    _emitted = 0
    _progress: Progress | None = None
    _tails: tuple[Tail, Tail] | None = None
    _files: Files | None = None
    _awaits: Pending | None = None
    _condition: Any = _Condition()
    _waiters: Any = _LazyList()
    _done_callbacks: Any = _LazyList()

    @property
    def accepted(self) -> bool:
        """Whether the call is in the journal of a broker that keeps one: it survives whatever happens to the
        broker. Without a journal it stays False; this client then submits again what a broker has lost."""
        return self._accepted

    def __init__(self, home: Home | None = None, name: str = "") -> None:
        """Only executors make futures."""
        self._home = home
        self._name = name

    def __repr__(self) -> str:
        about = _WORDS[self._state]
        if self._state == FINISHED:
            verb, thing = (
                ("returned", self._result) if self._exception is None else ("raised", self._exception)
            )
            about += f" {verb} {type(thing).__name__}"
        name = f" {self._name}" if self._name else ""
        return f"<{type(self).__name__} at {id(self):#x}{name} state={about}>"

    # ------------------------------------------------------------ asking

    def cancelled(self) -> bool:
        """True when the call was cancelled."""
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """True when the call is known to run: calls that take less than about 10 ms are never seen doing
        so."""
        return self._state == RUNNING

    def done(self) -> bool:
        """True when the call has ended or was cancelled."""
        return self._state in _DONE

    def result(self, timeout: float | None = None) -> T:
        """Wait for the call to end, for at most ``timeout`` seconds, and return its value or raise its
        exception.

        Raises:
            TimeoutError: it has not ended in time.
            CancelledError: it was cancelled.
            TaskLost: children or workers died under it too often.
            ForkError: this process was forked after the call was submitted, and it had not ended by then.
        """
        try:
            if self._state not in _DONE:
                self._wait(timeout)
            if self._state != FINISHED:
                raise CancelledError
            if self._exception is not None:
                raise self._exception
            value: T = self._result
            return value
        finally:
            del self  # the exception's traceback holds this frame: no cycle

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait as ``result`` does; return the exception that the call raised, None if it raised none."""
        if self._state not in _DONE:
            self._wait(timeout)
        if self._state != FINISHED:
            raise CancelledError
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        if self._home is None:
            self._wait_done(timeout)
            return
        self._home.check_waiting()
        if self._home.waits is None or (timeout is not None and timeout <= 0):
            self._wait_done(timeout)
        else:
            with self._home.waits():
                self._wait_done(timeout)

    def _wait_done(self, timeout: float | None) -> None:
        end = end_of(timeout)
        condition = self._condition
        with condition:
            while self._state not in _DONE:
                remaining = None if end is None else end - monotonic()
                if remaining is not None and remaining <= 0:
                    raise TimeoutError
                condition.wait(remaining)

    def why(self) -> Reason:
        """Why the call is where it is: a sentence with a ``code``, for people who wonder why it does not run.

        The broker is asked, for at most ``reasons.WHY_WAIT_S`` seconds; that it does not answer is a reason,
        too.

        Raises:
            ForkError: this process was forked after the call was submitted, and it had not ended by then.
        """
        from zfarm.reasons import Reason

        awaits = self._awaits
        if awaits is not None and self._state not in _DONE and not self._task:
            return awaits.why()
        reason = None if self._state in _DONE or self._home is None else self._home.why(self)
        if self._state not in _DONE:
            return reason or Reason("unsent", "no farm has it")
        return Reason("ended" if self._state == FINISHED else "cancelled", f"it is done: {self!r}")

    # ------------------------------------------------------------ while it runs

    @property
    def progress(self) -> Progress | None:
        """What the call has last said with ``zfarm.progress``; None: nothing yet."""
        return self._progress

    @property
    def stdout(self) -> str:
        """The last of what the call has printed so far, where it is forwarded or kept: see ``options``. At
        most ``settings.output_tail_bytes`` bytes, of all its attempts."""
        return "" if self._tails is None else self._tails[0].text()

    @property
    def stderr(self) -> str:
        """The same of its standard error."""
        return "" if self._tails is None else self._tails[1].text()

    def stream(self) -> Stream[Any]:
        """What the call emits, as it comes, to iterate over with ``for`` or ``async for``: see Stream.

        The call's past comes first, as far as it is kept: ``settings.stream_buffer_items`` items and
        ``settings.stream_buffer_bytes`` bytes while it runs, until ``settings.stream_kept_s`` seconds after
        its end. Readers of one future share it: one that comes when others have read on is told what it
        missed. Best read before the executor is shut down: that does not wait for readers.

        Raises:
            ForkError: this process was forked after the call was submitted.
        """
        return self._channels().open(self)

    def on_item(self, callback: Callable[[Item[Any] | BaseException], object]) -> None:
        """Call ``callback`` with each Item that the call emits, in order, in the thread that brings outcomes.

        With a StreamGap in place of items that cannot be had, with a NotPortable in place of one that cannot
        be unpickled. What it raises is logged. ``shutdown`` waits until all items were brought.

        Raises:
            ForkError: this process was forked after the call was submitted.
        """
        self._channels().open(self, callback)

    @property
    def files(self) -> Files:
        """The files that the call sends with ``zfarm.send_file`` and ``zfarm.outdir``: see Files. They come
        by themselves, and ``shutdown`` waits for them.

        Raises:
            ForkError: this process was forked after the call was submitted.
        """
        if self._home is None:
            raise RuntimeError("only a call that was submitted to a farm sends files")
        return self._home.arrivals.files_of(self)

    def _channels(self) -> Channels:
        if self._home is None:
            raise RuntimeError("only a call that was submitted to a farm has a stream")
        return self._home.streams

    # ------------------------------------------------------------ cancelling

    def cancel(self, force: bool = False, grace: float = 0.0) -> bool:
        """Cancel the call unless it has started; True: it is cancelled, and will not run. False: it runs or
        has ended, or the farm has not answered within five seconds, or this is a callback of a future and
        cannot wait for the answer; then the call is cancelled as soon as the farm hears of it, if it has not
        started by then.

        With ``force`` stop it even if it runs; True: it is cancelled. Its child is killed with all that it
        has started, and the slot is back within two seconds, also if the call holds the interpreter. With a
        ``grace`` in seconds the call first gets a KeyboardInterrupt, in the main thread of its child: what
        it returns or raises within that time is its outcome, and then this returns False; it waits as long.
        A call that lets the KeyboardInterrupt through is cancelled. Without ``force``, here or in the
        options of the call, a ``grace`` means nothing.

        Raises:
            TypeError: ``force`` is no bool.
            TypeError, ValueError: ``grace`` is no number, negative, or more than ten years.
        """
        if not isinstance(force, bool):
            raise TypeError(f"force must be True or False, not {type(force).__name__}")
        grace_us = grace_of(grace)
        force = force or self._force
        if self._state == FINISHED or (self._state == RUNNING and not force):
            return False
        if self._state in _DONE:
            return True
        if self._home is None or self._withdraw():
            return self._drop()
        return self._home.cancel(self, force, grace_us if force else 0)

    def _withdraw(self) -> bool:
        """True: the link has not taken this yet, and never will."""
        with gate:
            if self._task == 0:
                self._task = WITHDRAWN
            return self._task == WITHDRAWN

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Future stays where it is: as an argument of submit itself it is waited for; in a list or any "
            "other object, or in a map, pass its result(), or submit from within the call through "
            "zfarm.current_farm()"
        )

    def _abandon(self) -> None:
        """Become cancelled even if the call runs: its result has nowhere to go."""
        self._stop()

    def _fail(self, error: BaseException) -> None:
        """End with an error of ours, unless done."""
        self._settle(FINISHED, None, error)

    def _drop(self) -> bool:
        """Become cancelled, notify and call back. False: it runs or has ended; True also if cancelled
        before."""
        if self._settle(CANCELLED_AND_NOTIFIED, None, None):
            return True
        return self.cancelled()

    def _stop(self) -> bool:
        """Become cancelled even if the call was known to run: it does not any more."""
        with gate:
            if not self._armed and self._state == RUNNING:
                self._state = PENDING
        if self._armed:
            with self._condition:
                if self._state == RUNNING:
                    self._state = PENDING
        return self._drop()

    # ------------------------------------------------------------ settling

    def set_running_or_notify_cancel(self) -> bool:
        """Become running; False when cancelled. Only executors call this."""
        if self._start():
            return True
        if self.cancelled():
            return False
        raise RuntimeError(f"Future in unexpected state: {self!r}")

    def set_result(self, result: T) -> None:
        """End with this value. Only executors call this."""
        if not self._settle(FINISHED, result, None):
            raise InvalidStateError(f"{self._state}: {self!r}")

    def set_exception(self, exception: BaseException | None) -> None:
        """End with this exception. Only executors call this."""
        if not self._settle(FINISHED, None, exception):
            raise InvalidStateError(f"{self._state}: {self!r}")

    def _start(self) -> bool:
        """Become running; False: not pending any more."""
        with gate:
            if not self._armed:
                return self._change(RUNNING, None, None)
        with self._condition:
            return self._change(RUNNING, None, None)

    def _settle(self, state: str, result: Any, exception: BaseException | None) -> bool:
        """Become done, notify and call back; False: it was done before, or runs and shall be cancelled."""
        with gate:
            if not self._armed:  # the way of nearly all, and so without a call
                if self._state in _DONE or (self._state == RUNNING and state != FINISHED):
                    return False
                self._result = result
                self._exception = exception
                self._state = state  # last: those who look without a lock see the rest when they see this
                return True
        with self._condition:
            if not self._change(state, result, exception):
                return False
            for waiter in self._waiters:
                if state != FINISHED:
                    waiter.add_cancelled(self)
                elif exception is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            self._condition.notify_all()
        self._invoke_callbacks()
        return True

    def _change(self, state: str, result: Any, exception: BaseException | None) -> bool:
        if self._state in _DONE or (self._state == RUNNING and state != FINISHED):
            return False  # what runs can only finish
        self._result = result
        self._exception = exception
        self._state = state
        return True

    def _invoke_callbacks(self) -> None:
        for callback in self._done_callbacks:
            try:
                callback(self)
            except BaseException:  # SystemExit too: it must not end the thread that resolves everything
                LOGGER.exception("exception calling callback for %r", self)
