"""The client's state machine: what was asked and is not yet answered.

Rules of this file:
  1. A task is in ``_tasks`` from submit to its one outcome; that is the memory which makes a broker without a
     journal safe: whatever has no outcome is asked for again, and submitted again when the broker does not
     know it.
  2. Everything is repaired by one path: a new Welcome makes the client ask for all that is open.
  3. It never learns what a token is, nor what a pickle says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from math import inf
from typing import Any

import msgspec

from zfarm.core.asked import EARLIER, Asked
from zfarm.core.direct import Direct
from zfarm.core.giving import Giving
from zfarm.core.inflow import Inflow
from zfarm.core.machine import NOW, Indexed
from zfarm.core.named import Told, name_of
from zfarm.core.oversize import most_of, why_unsent
from zfarm.core.pinning import Pinning
from zfarm.messages import (
    BROKER,
    CANCELLED,
    LOST,
    OVERSIZED,
    Action,
    Advanced,
    Ask,
    Attach,
    Attached,
    Began,
    Blob,
    Booked,
    Bye,
    Call,
    Cancel,
    Connected,
    Demand,
    Echo,
    Ended,
    Explained,
    Fate,
    Forget,
    Heard,
    Hello,
    Items,
    JobTask,
    Look,
    Looked,
    Message,
    Need,
    Outcome,
    Payload,
    Peer,
    Picture,
    Pinned,
    Printed,
    Progress,
    Pulse,
    Reason,
    Refused,
    Rejected,
    Resolve,
    Running,
    Safe,
    Send,
    Sent,
    Stranger,
    Streams,
    Submit,
    TakenOver,
    Unknown,
    Versions,
    Want,
    Welcome,
    Why,
)
from zfarm.settings import Settings, settings

__all__ = ["Client"]

FORGETS_AT_ONCE = 256
"""Forgets wait for something to travel with, or for the next beat: alone they would wake the broker for
nothing. Unless an outcome was large, which the broker holds until it is forgotten."""


class Client(Direct):
    """Submits tasks to one broker and resolves each of them once."""

    def __init__(
        self,
        session: str,
        versions: Versions,
        host: str,
        pid: int,
        name: str,
        now: float,
        limits: Settings = settings,
        job: str = "",
        attach: bool = False,
    ) -> None:
        """``job`` names this client's tasks, so that they outlive it; with ``attach`` they are those of an
        earlier client, and TakenOver will ask for ``adopt``."""
        self.session = session
        self.deadline = NOW
        self.slots = 0
        life = session if job else ""
        self._hello = Hello(session, versions, host, pid, name, job, life)
        self._attach = Attach(job, versions, life) if attach else None
        # what was heard so far of the tasks to be taken over; None: there are none, or all are known
        self._inherited: dict[int, JobTask] | None = {} if attach else None
        self._limits = limits
        self._tasks: dict[int, Asked] = {}
        self._unsent: deque[Asked] = deque()
        self._next_task = 1
        self._submits = 0
        self._told = Told()  # functions that this link's broker has been sent
        self._welcome: Welcome | None = None
        self._hello_at = now
        self._pulse_at = inf
        self._pulse = 0
        self._heard_at = now
        self._over = False
        self._leaving = False
        # what this turn has for the broker and for the shell
        self._asks: list[int] = []
        self._cancels: list[int] = []
        self._forced: dict[int, int] = {}  # tasks to be stopped even if they run, with their grace
        self._forgets: list[int] = []
        self._forget_now = False
        # what was said about arrived outcomes since the last Pulse, and before each Pulse not answered yet
        self._forgot: list[int] = []
        self._unconfirmed: dict[int, list[int]] = {}
        self._actions: list[Action] = []
        self._whys: list[Why | Look] = []
        self.inflow = self._inflow = Inflow(limits)
        self.giving = self._giving = Giving(limits)
        self._pinning = Pinning(limits)
        self._handlers: dict[type, Callable[[Any, Payload, float], None]] = {
            Welcome: self._on_welcome,
            Stranger: self._on_stranger,
            Refused: self._on_refused,
            Attached: self._on_attached,
            Booked: self._on_booked,
            Ended: self._on_ended,
            Began: self._on_began,
            Unknown: self._on_unknown,
            Echo: self._on_echo,
            Streams: lambda message, *_: self._inflow.streams(message, self._tasks),
            Items: self._inflow.items,
            Sent: lambda message, _, now: self._inflow.sent(message, now),
            Want: lambda message, _, now: self._giving.want(message, self._tasks, now),
            Pinned: lambda message, _, now: self._pinning.pinned(message, now),
            Progress: self._on_progress,
            Reason: lambda message, *_: self._actions.append(Explained(message)),
            Picture: lambda message, *_: self._actions.append(Looked(message)),
            Printed: self._on_printed,
        }

    # ------------------------------------------------------------ local inputs

    @property
    def open(self) -> int:
        """How many tasks have no outcome yet."""
        return len(self._tasks)

    def submit(
        self,
        token: object,
        name: str,
        function: bytes,
        setup: bytes,
        body: Blob,
        items: int = 0,
        max_attempts: int = 3,
        timeout_us: int = 0,
        priority: int = 0,
        memory_bytes: int = 0,
        demand: Demand | None = None,
        needs: tuple[Need, ...] = (),
    ) -> int:
        """Note a call to be run and return its task number; ``token`` comes back with its outcome."""
        number = self._next_task
        self._next_task = number + 1
        asked = Asked(
            number, token, name, function, setup, body, items,
            max_attempts, timeout_us, priority, memory_bytes, demand, needs,
        )  # fmt: skip
        self._tasks[number] = asked
        self._unsent.append(asked)
        self._speak()
        return number

    def cancel(self, task: int, force: bool = False, grace_us: int = 0) -> None:
        """Cancel ``task`` unless it has started; its Resolve or Running says what became of it. Unknown
        tasks are ignored. With ``force`` stop it even so, ``grace_us`` after a KeyboardInterrupt: its Resolve
        says how it ended."""
        asked = self._tasks.get(task)
        if asked is None:
            return
        self.deadline = NOW
        if asked.sent:
            asked.cancelling = True
            if force:
                self._forced[task] = grace_us
            self._cancels.append(task)
        else:
            self._resolve(asked, Outcome(task=task, kind=CANCELLED), b"")

    def why(self, number: int, task: int) -> None:
        """Ask why ``task`` is where it is; Explained answers, if there is a link to ask over."""
        if self._welcome is not None and not self._over:
            self._whys.append(Why(number, task))
            self.deadline = NOW

    def look(self) -> None:
        """Ask for a picture of the farm; Looked brings it, if there is a link to ask over."""
        if self._welcome is not None and not self._over:
            self._whys.append(Look(0))
            self.deadline = NOW

    def heard(self, now: float) -> tuple[bool, float]:
        """Whether there is a link to the broker, and for how long nothing was heard of it."""
        return self._welcome is not None and not self._over, max(0.0, now - self._heard_at)

    def listen(self, task: int) -> bool:
        """Read the stream of ``task`` from where it stands; False: of that nothing is known any more."""
        asked = self._tasks.get(task)
        if known := not self._over and self._inflow.listen(task, asked.token if asked is not None else None):
            self._speak()
        return known

    def took(self, task: int, attempt: int, number: int) -> None:
        """The reader of ``task`` has used all items of this attempt up to this number."""
        self._inflow.took(task, attempt, number)
        self.deadline = NOW

    def unlisten(self, task: int) -> None:
        """Nobody reads the stream of ``task`` any more."""
        self._inflow.unlisten(task)
        self.deadline = NOW

    def subscribe(self, subscribed: bool) -> None:
        """Items are (not) to be published for this client."""
        self._inflow.subscribe(subscribed)
        self.deadline = NOW

    def adopt(self, session: str, tasks: Sequence[tuple[JobTask, object]]) -> None:
        """Continue ``session``, a job's, with these tasks of it and the tokens that stand for them here."""
        self._attach = None
        self.session = session
        self._hello = msgspec.structs.replace(self._hello, session=session)
        self._hello_at = NOW
        for task, token in tasks:
            asked = Asked(task.task, token, task.name, b"", b"", b"", task.items, 1)
            asked.sent = EARLIER
            self._tasks[task.task] = asked
        self.deadline = NOW

    def hold(self, at: str, digest: bytes, size: int, birth: bytes) -> None:
        """A handle names this part of a kept result from now on, in the store of worker ``at``."""
        self._pinning.hold(at, digest, size, birth)
        self._speak()

    def let_go(self, at: str, digest: bytes, size: int) -> None:
        """That handle is gone, and the calls that were given it have ended."""
        self._pinning.let_go(at, digest, size)
        self.deadline = NOW

    def leave(self) -> None:
        """Say Bye at the next advance: the broker cancels what is open, running calls included."""
        self._leaving = True
        self.deadline = NOW

    # ------------------------------------------------------------ the machine

    def receive(self, peer: Peer, message: Message, payload: Payload, now: float) -> None:
        """Note a message of the broker."""
        self._heard_at = now
        handler = self._handlers.get(type(message))
        if handler is not None and not self._over:
            handler(message, payload, now)
            self.deadline = NOW

    def advance(self, now: float) -> list[Action]:
        """Send what this turn has; beat; give up on a broker that is away for too long."""
        actions, self._actions = self._actions, []
        if self._over:
            self.deadline = inf
            return actions
        if self._leaving:
            self._over = True
            self.deadline = inf
            while self._forgets and self._welcome is not None:  # or those of a job would be kept for nothing
                actions.append(Send(BROKER, Forget(tasks=self._take_forgets())))
            actions.append(Send(BROKER, Bye()))
            return actions
        if self._heard_at == inf and self._hello_at < inf:
            self._heard_at = now  # for as long as it kept silent it waited for nothing
        if self._welcome is None:
            if now >= self._hello_at:
                self._hello_at = now + self._limits.beat_interval_s
                self._hello = msgspec.structs.replace(self._hello, number=self._hello.number + 1)
                actions.append(Send(BROKER, self._hello if self._attach is None else self._attach))
        else:
            self._send_all(actions, now >= self._pulse_at)
            if now >= self._pulse_at:
                self._pulse += 1
                if self._forgot:
                    self._unconfirmed[self._pulse] = self._forgot
                    self._forgot = []
                self._pulse_at = now + self._limits.beat_interval_s
                actions.append(Send(BROKER, Pulse(number=self._pulse, open=len(self._tasks))))
                self._inflow.pulse(self._pulse, now)
        if now >= self._inflow.deadline:
            self._inflow.advance(now, self._welcome is not None, actions)
        if now >= self._pinning.deadline and self._welcome is not None:
            self._pinning.advance(now, actions)
        if now >= self._giving.deadline:
            self._giving.advance(now, self._tasks, actions)
        away_at = self._heard_at + self._limits.broker_away_max_s
        if now >= away_at:
            away = self._limits.broker_away_max_s
            self._reject(actions, "BrokerUnreachable", f"the broker has not answered for {away:g} s")
            return actions
        beat_at = self._hello_at if self._welcome is None else self._pulse_at
        pin_at = inf if self._welcome is None else self._pinning.deadline
        self.deadline = min(away_at, beat_at, pin_at, self._inflow.deadline, self._giving.deadline)
        return actions

    def check(self) -> None:
        """Every unsent task is open, and every open task is either sent or in the queue to be sent."""
        waiting = {asked.number for asked in self._unsent}
        for number, asked in self._tasks.items():
            assert number == asked.number < self._next_task
            assert asked.sent or number in waiting, f"task {number} is neither sent nor waiting to be sent"
        self._inflow.check()
        self._giving.check()
        self._pinning.check()

    # ------------------------------------------------------------ messages of the broker

    def _on_welcome(self, message: Welcome, payload: Payload, now: float) -> None:
        self._welcome = message
        self.slots = message.slots
        self._pulse_at = now + self._limits.beat_interval_s
        self._actions.append(Connected(message))
        self._inflow.welcome()
        self._pinning.welcome()
        self._told.clear()
        # Whatever was on the old link may be lost in either direction: ask for all that was sent, and say
        # again what has arrived, or the broker would keep those outcomes for ever.
        self._forgets = [*chain(*self._unconfirmed.values()), *self._forgot, *self._forgets]
        self._forgot, self._unconfirmed = [], {}
        for number, asked in self._tasks.items():
            if asked.sent:
                asked.sent = EARLIER
                self._asks.append(number)
        self._cancels += [n for n, asked in self._tasks.items() if asked.sent and asked.cancelling]

    def _on_stranger(self, message: Stranger, payload: Payload, now: float) -> None:
        if self._welcome is not None:
            self._welcome = None
            self._hello_at = now
        if message.later and not (self._tasks or self._pinning.busy):
            self._hello_at = self._heard_at = inf
            self._inflow.give_up()

    def _speak(self) -> None:
        """There is something to ask: the end of a silence, if there was one."""
        if self._hello_at == inf:
            self._hello_at = NOW
        self.deadline = NOW

    def _on_refused(self, message: Refused, payload: Payload, now: float) -> None:
        self._reject(self._actions, message.code, message.text)

    def _on_ended(self, message: Ended, payload: Payload, now: float) -> None:
        tasks = self._tasks
        forgets = self._forgets
        large = self._limits.frame_share_max
        for outcome, blob in zip(message.outcomes, payload, strict=True):
            forgets.append(outcome.task)
            if len(blob) > large:
                self._forget_now = True
            if (asked := tasks.get(outcome.task)) is not None:
                self._resolve(asked, outcome, blob)

    def _on_booked(self, message: Booked, payload: Payload, now: float) -> None:
        for number in message.tasks:
            if (asked := self._tasks.get(number)) is not None:
                self._actions.append(Safe(asked.token))

    def _on_attached(self, message: Attached, payload: Payload, now: float) -> None:
        if self._inherited is None:
            return  # a second answer: it was asked again meanwhile
        self._inherited.update((task.task, task) for task in message.tasks)
        if len(self._inherited) == message.total:
            self._next_task = message.first
            self._actions.append(TakenOver(message.session, list(self._inherited.values())))
            self._inherited = None

    def _on_began(self, message: Began, payload: Payload, now: float) -> None:
        for number in message.tasks:
            asked = self._tasks.get(number)
            if asked is not None and number not in self._forced:
                asked.cancelling = False
                self._actions.append(Running(asked.token))

    def _on_unknown(self, message: Unknown, payload: Payload, now: float) -> None:
        self._told.lacked(message.lacks, message.seen)
        for number in message.tasks:
            asked = self._tasks.get(number)
            if asked is None or not asked.sent or asked.sent > message.seen:
                continue  # a late answer: meanwhile it was submitted (again)
            if asked.cancelling and not (asked.max_attempts == 1 and self._may_have_begun(asked)):
                self._resolve(asked, Outcome(task=number, kind=CANCELLED), b"")
            elif not asked.function:  # of a job that was taken over: nobody here knows the call
                fate = Fate(host="", worker="", text="the broker has lost the job that it belonged to")
                self._resolve(asked, Outcome(task=number, kind=LOST, deaths=(fate,)), b"")
            else:
                asked.sent = 0
                self._unsent.append(asked)
                if asked.cancelling:
                    self._cancels.append(number)

    def _may_have_begun(self, asked: Asked) -> bool:
        """A call that may begin once only, or run in one place, was given to books that are no more: nobody
        knows what became of it, unless a worker comes back with it."""
        if not asked.counts_books or not asked.books:
            return False
        return self._welcome is None or self._welcome.books != asked.books

    def _on_echo(self, message: Echo, payload: Payload, now: float) -> None:
        self.slots = message.slots
        self._inflow.echo(message.number)
        if message.written:
            self._unconfirmed = {at: told for at, told in self._unconfirmed.items() if at > message.number}

    def _on_progress(self, message: Progress, payload: Payload, now: float) -> None:
        if (asked := self._tasks.get(message.number)) is not None:
            self._actions.append(Advanced(asked.token, message))

    def _on_printed(self, message: Printed, payload: Payload, now: float) -> None:
        if (asked := self._tasks.get(message.number)) is not None:
            self._actions.append(Heard(asked.token, asked.name, message, payload[0]))

    # ------------------------------------------------------------ sending

    def _resolve(self, asked: Asked, outcome: Outcome, blob: Blob) -> None:
        del self._tasks[asked.number]
        self._inflow.ended(asked.number, asked.token, outcome)
        if asked.needs:
            self._giving.ended(asked.number)
        if self._forced:
            self._forced.pop(asked.number, None)
        self._actions.append(Resolve(asked.token, outcome, blob))

    def _reject(self, actions: list[Action], code: str, text: str) -> None:
        self._over = True
        self._tasks.clear()
        self._unsent.clear()
        self._inflow.clear()
        self._giving.clear()
        self.deadline = inf
        actions.append(Rejected(code, text))

    def _send_all(self, actions: list[Action], beat: bool) -> None:
        calls_max = self._limits.batch_calls_max
        if self._asks:
            for start in range(0, len(self._asks), calls_max):
                actions.append(Send(BROKER, Ask(tasks=self._asks[start : start + calls_max])))
            self._asks = []
        while self._unsent:
            self._send_submit(actions)
        actions.extend(Send(BROKER, asked) for asked in self._whys)  # after the submits, too
        self._whys = []
        if self._cancels:  # after the submits: FIFO makes the broker know what is cancelled
            self._send_cancels(actions)
        if self._forgets and (beat or self._forget_now or len(self._forgets) >= FORGETS_AT_ONCE):
            while self._forgets:
                actions.append(Send(BROKER, Forget(tasks=self._take_forgets())))
            self._forget_now = False

    def _send_cancels(self, actions: list[Action]) -> None:
        calls_max = self._limits.batch_calls_max
        alike: dict[int | None, list[int]] = {}
        for task in self._cancels:
            alike.setdefault(self._forced.get(task), []).append(task)
        self._cancels = []
        for grace_us, tasks in alike.items():
            for start in range(0, len(tasks), calls_max):
                part = tasks[start : start + calls_max]
                actions.append(Send(BROKER, Cancel(part, grace_us is not None, grace_us or 0)))

    def _take_forgets(self) -> list[int]:
        """Those that the next message shall say; until an Echo confirms them they are remembered."""
        most = self._limits.batch_calls_max
        forgets, self._forgets = self._forgets[:most], self._forgets[most:]
        self._forgot += forgets
        return forgets

    def _send_submit(self, actions: list[Action]) -> None:
        functions: Indexed[tuple[bytes, str]] = Indexed()
        setups: Indexed[bytes] = Indexed()
        names: list[str] = []
        calls: list[Call] = []
        demands: Indexed[Demand] = Indexed()
        needs: Indexed[tuple[Need, ...]] = Indexed()
        bodies: list[Blob] = []
        unsent = self._unsent
        tasks = self._tasks
        calls_max = self._limits.batch_calls_max
        room = self._limits.batch_bytes_max
        last_function = last_setup = last_name = None
        function = setup = 0
        books, most = self._welcome.books if self._welcome is not None else 0, most_of(self._welcome)
        while unsent and len(calls) < calls_max:
            asked = unsent[0]
            body = asked.body
            size = len(body)
            if asked.function is not last_function and (asked.function, asked.name) not in functions.index:
                size += 0 if name_of(asked.function) in self._told else len(asked.function)
            if asked.setup is not last_setup and asked.setup not in setups.index:
                size += len(asked.setup)
            if calls and size > room:
                break
            unsent.popleft()
            if asked.number not in tasks:  # cancelled before it was sent
                continue
            if size > most and (fate := why_unsent(asked, most)):
                self._resolve(asked, Outcome(task=asked.number, kind=OVERSIZED, deaths=(fate,)), b"")
                actions.append(self._actions.pop())
                continue
            room -= size
            if asked.function is not last_function or asked.name is not last_name:
                last_function, last_name = asked.function, asked.name
                function = functions[last_function, last_name]
                if function == len(names):
                    names.append(asked.name)
            if asked.setup is not last_setup:
                last_setup = asked.setup
                setup = setups[last_setup]
            asked.sent = self._submits + 1
            calls.append(asked.call(function, setup))
            if asked.counts_books:
                if self._may_have_begun(asked):
                    calls[-1] = msgspec.structs.replace(calls[-1], begun=True)
                asked.books = asked.books or books
            if asked.demand is not None:
                calls[-1] = msgspec.structs.replace(calls[-1], demand=demands[asked.demand] + 1)
            if asked.needs:
                calls[-1] = msgspec.structs.replace(calls[-1], needs=needs[asked.needs] + 1)
            bodies.append(body)
        if calls:
            self._submits += 1
            names_of = [name_of(blob) for blob, _ in functions]
            carried, digests = self._told.carry([blob for blob, _ in functions], names_of, self._submits)
            payload: list[Blob] = [*carried, *setups, *bodies]
            tables = list(demands), list(needs), digests
            submit = Submit(calls, names, len(setups), self._take_forgets(), self._submits, *tables)
            actions.append(Send(BROKER, submit, payload))
