"""The virtual children of a worker: like real ones they start late, run calls in order, and die.

What a child says travels in order through its pipe; that it is gone is learned last. User code may wait for
nested calls, which a client inside the child submits through the worker's tunnel. Times and deaths come
from the workload.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from tests.simulation.bulk import deliver
from tests.simulation.handles import outcome_of
from tests.simulation.lane import Lane
from tests.simulation.leaving import let_stay
from tests.simulation.listeners import chatter
from tests.simulation.meter import Meter
from tests.simulation.people import Item, Run, Task, new_task
from zfarm.core.brood import NOTHING
from zfarm.core.greeting import bare, principal_of
from zfarm.messages import AGAIN, BROKEN, ChildCall, Done, Left, Message, Payload, Setup, Tunnel, TunnelClosed
from zfarm.messages import Run as RunMessage

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.processes import ClientProcess, WorkerProcess

SIGKILL, SIGSEGV = 9, 11
DOOMED = Left(doomed=True)
_SETUPS = msgspec.msgpack.Decoder(Setup)


class Child:
    """One child process."""

    def __init__(self, owner: Children, number: int) -> None:
        self.owner = owner
        self.farm: Farm = owner.farm
        self.number = number
        self.alive = True
        self.ready = False
        self.closed = False
        """Its pipe was closed: it leaves when the running call has ended."""
        self.setup = b""
        self.realm = ""
        self.place = "", ""  # its store and its worker, as far as it was told
        self.named: dict[bytes, bytes] = {}
        """Functions that it has by name."""
        self.calls: deque[tuple[ChildCall, Task]] = deque()
        self.started_seq = 0
        self.stillborn = False  # it died before its first call
        self.sent_seq = 0
        self.void_to = 0
        self.taking_back = False
        self.running: Run | None = None
        self.waiting = False
        self.has_waited = False
        self.client: ClientProcess | None = None
        self.unsent: list[tuple[Done, bytes]] = []
        self.paused = False
        """Nobody reads what it emits."""
        self.blocked: Callable[[], object] | None = None
        """How it goes on once somebody reads."""
        self.delivered: Callable[[], object] | None = None
        """How it goes on once its client has the result of its call."""
        self.flushed_at = 0.0
        self.flushes = 0
        self.down = Lane(owner.farm)
        self.up = Lane(owner.farm)
        self.meter = Meter(self)
        self.doomed_at: float | None = None
        self._nested_left = 0

    # ------------------------------------------------------------ what the worker does to it

    def take(self, run: RunMessage, payload: Payload) -> None:
        """Calls have arrived in its pipe."""
        if not self.alive:
            return
        bodies = len(payload) - len(run.calls)
        functions = self._functions(run, payload[: run.functions])
        if run.setup:
            assert not self.realm or self.realm == _SETUPS.decode(payload[run.functions]).realm, (
                "two realms in a child"
            )
            self.setup = bytes(payload[run.functions])
            self.realm = _SETUPS.decode(self.setup).realm
        self.place = (run.store, run.worker) if run.store else self.place
        for n, call in enumerate(run.calls):
            task = self.farm.tasks[int(bytes(payload[bodies + n]))]
            assert functions[call.function] == task.function, f"{task.token} would run another function"
            assert self.setup == task.setup, f"{task.token} would run in the realm of another"
            assert call.items == task.items
            assert not task.needs or self.place == self.owner.worker.shelf.place, "it knows no store"
            self.meter.check(call, task)
            if call.seq > self.void_to:
                self.calls.append((call, task))
        self._go_on()

    def _functions(self, run: RunMessage, blobs: Payload) -> list[bytes]:
        """What it runs: a body, or what came before under that name."""
        functions: list[bytes] = []
        for digest, blob in zip(run.digests or [b""] * run.functions, blobs, strict=True):
            if digest and len(blob):
                assert digest not in self.named, "a child was sent a function twice"
                self.named[digest] = bytes(blob)
            elif digest:
                assert digest in self.named, "a child was told the name of a function that it does not have"
                self.farm.story.probe("a child has the function already")
            functions.append(self.named[digest] if digest else bytes(blob))
        for digest in run.drops:
            del self.named[digest]
            self.farm.story.probe("a child drops a function")
        most = self.farm.mix.settings.named_kept_bytes
        assert sum(map(len, self.named.values())) <= most, "a child has too many functions"
        return functions

    def void(self) -> None:
        """What has not started will never run; a millisecond later it is safe to say what has."""
        if self.alive:
            if self.calls:
                self.farm.story.probe("calls taken back")
            self.void_to = self.sent_seq
            self.calls.clear()
            mark = self.flushes, len(self.unsent)
            self.farm.after(1e-3 + self.owner.pause(), partial(self._took_back, *mark))

    def _took_back(self, flushes: int, ended: int) -> None:
        if self.alive:
            if flushes == self.flushes:  # what had ended by then is read from the shared page
                self._say_ended(self.unsent[:ended])
                del self.unsent[:ended]
            self.say("child_took_back", self.started_seq)
            self.taking_back = False

    def close(self) -> None:
        self.closed = True
        if self.running is None:
            self.die(0, 0)
        else:
            grace = self.farm.mix.settings.stop_grace_s
            self.farm.after(grace, lambda: self.die(SIGKILL, 0))

    def meet_doom(self, at: float) -> None:
        """Its time is over, unless it was put off."""
        if self.alive and self.doomed_at == at:
            self.farm.story.probe("killed by its nursery")
            self.die(SIGKILL, 0, stopped=True, left=DOOMED)

    def die(self, signal: int, exit_code: int, stopped: bool = False, left: Left = NOTHING) -> None:
        """The process ends, whatever it is doing; the pipe is read to its end, then the worker learns of it.

        ``stopped``: its worker wanted that, or is gone itself, so nobody is to be blamed.
        """
        if not self.alive:
            return
        self._flush()  # what has ended is read from the shared page
        self.alive = False
        self.farm.books.child_died(self, stopped)
        if self.client is not None:
            self.client.die()
            self.farm.books.client_died(self.client)
            self.owner.tell(self, "tunnel", TunnelClosed(self.number), ())
        text = f"killed by signal {signal}" if signal else f"exited with code {exit_code}"
        self.say("child_died", self.started_seq, signal, exit_code, text, left)

    # ------------------------------------------------------------ what it does

    def say(self, name: str, *arguments: Any) -> None:
        """Say something to the worker through the pipe."""
        self.owner.tell(self, "call", name, self.number, *arguments)

    def begin(self) -> None:
        """The process has come up."""
        if self.alive:
            self.ready = True
            self.say("child_started")
            self._go_on()

    def _go_on(self) -> None:
        """Start the next call, unless one runs."""
        if not (self.ready and self.alive) or self.running is not None:
            return
        if self.closed:
            self.die(0, 0)
        elif self.calls:
            call, task = self.calls.popleft()
            if self.meter.leaves_it_to_another(call):
                self.farm.story.probe("too fat for a call with a limit")
                self.die(0, 0, stopped=True)
                return
            setup = _SETUPS.decode(self.setup)
            if setup.initializer == b"dies":
                self.die(SIGSEGV, 0)
                return
            self.started_seq = call.seq
            if setup.initializer == b"fails":
                self._ended(call, BROKEN, b"b%d" % task.token, 0.0)
                return
            self.has_waited = False
            self.meter.begun()
            if call.timed:
                self.say("child_starts", call.seq)
            self.farm.books.started(self, task)
            self._work(call, task)

    def _work(self, call: ChildCall, task: Task) -> None:
        rng = self.farm.rng
        chatter(self, call.seq, task)
        passed = 0.0
        emits = min(sum(item.emits for item in task.parts), 200)
        if emits:
            assert self.running is not None
            for item in task.parts:
                if item.deadly and rng.random() < item.deadly:
                    self.farm.after(rng.random() * item.run_s, partial(self._die_in, self.running))
            self._emit(call, task, self.running, emits)
            return
        for item in task.parts:
            if item.deadly and rng.random() < item.deadly:
                signal, code = rng.choice(((SIGSEGV, 0), (SIGKILL, 0), (0, 1), (0, 0)))
                self.farm.after(passed + rng.random() * item.run_s, partial(self.die, signal, code))
                return
            passed += item.run_s
        nested = [calls for item in task.parts for calls in item.nested]
        if nested:
            self.farm.after(passed / 2, partial(self._call_nested, call, task, nested))
        else:
            self.farm.after(passed, partial(self.finish, call, task))

    def _die_in(self, run: Run) -> None:
        if self.running is run:
            self.die(SIGSEGV, 0)

    def _emit(self, call: ChildCall, task: Task, run: Run, left: int) -> None:
        """Emit some items, and the rest later; then the call ends."""
        if not self.alive or self.running is not run:
            return
        if self.paused:
            self.farm.story.probe("waits in emit")
            self.blocked = partial(self._emit, call, task, run, left)
            return
        if not left:
            nested = [calls for item in task.parts for calls in item.nested]
            if nested:
                self._call_nested(call, task, nested)
            else:
                self.finish(call, task)
            return
        count = self.farm.rng.randint(1, min(left, 8))
        number = task.runs.index(run)
        share = self.farm.mix.files_share
        files = share > 0 and self.farm.rng.random() < share
        gauge = self.farm.mix.gauge_share > 0 and self.farm.rng.random() < self.farm.mix.gauge_share
        latest = gauge and not files
        if latest:
            count, run.gauged = 1, run.gauged + 1
            blobs = [b"%d/%d/%d" % (task.token, number, -run.gauged)]
        else:
            token, before = (-task.token, run.filed) if files else (task.token, run.plain)
            blobs = [b"%d/%d/%d" % (token, number, before + n + 1) for n in range(count)]
        if files:
            run.filed += count
        else:
            run.emitted += count
            run.plain += 0 if latest else count
        self.say("child_emitted", call.seq, blobs, latest, files)
        pause = self.farm.rng.random() * 2 * task.run_s * count / (left + run.emitted + run.filed)
        self.farm.after(pause, partial(self._emit, call, task, run, left - count))

    def pause(self, paused: bool) -> None:
        """Its worker reads no more from it, or reads on."""
        self.paused = paused
        if not paused and self.blocked is not None:
            blocked, self.blocked = self.blocked, None
            self.farm.after(self.owner.pause(), blocked)

    def told_delivered(self, seq: int) -> None:
        """The client has the result of this call."""
        assert self.delivered is not None or not self.alive, "a result that nobody delivers has come"
        assert seq == self.started_seq, "the result of another call has come"
        delivered, self.delivered = self.delivered, None
        if delivered is not None:
            self.farm.story.probe("a result was delivered")
            delivered()

    def finish(self, call: ChildCall, task: Task) -> None:
        """The call has come to its end."""
        if task.endless:
            return
        if self.alive and task.pieces and self.running is not None and not self.running.result_at:
            deliver(self, call, task, self.running)
        elif self.alive:
            chatter(self, call.seq, task)
            self.owner.worker.shelf.check(task)
            kind, blob = outcome_of(self.owner.worker.shelf, task)
            run, self.running = self.running, None
            assert run is not None
            run.finished = True
            self.meter.ended(run)
            if task.flaky and self.farm.rng.random() < task.flaky:
                run.raised = True
                self.farm.books.raised(task)
                kind, blob = AGAIN, task.raised_blob
            run.ended_at = self.farm.now
            self.farm.books.busy -= 1
            self.farm.books.changed()
            self._ended(call, kind, blob, run.ended_at - run.started_at)

    def _ended(self, call: ChildCall, kind: int, blob: bytes, run_s: float) -> None:
        self.unsent.append((Done(call.seq, kind, int(run_s * 1e6)), blob))
        now = self.farm.now
        if not self.calls or now - self.flushed_at > 1e-3 or self.farm.rng.random() < 0.1:
            self._flush()
        self.farm.after(self.farm.rng.random() * 5e-6, self._go_on)

    def _flush(self) -> None:
        self.flushed_at = self.farm.now
        self.flushes += 1
        unsent, self.unsent = self.unsent, []
        self._say_ended(unsent)

    def _say_ended(self, ended: list[tuple[Done, bytes]]) -> None:
        if ended:
            self.say("child_reported", [done for done, _ in ended], [blob for _, blob in ended])

    # ------------------------------------------------------------ nested calls

    def _call_nested(self, call: ChildCall, task: Task, nested: list[list[Item]]) -> None:
        if not self.alive:
            return
        self._flush()  # nobody shall wait for what has ended
        client = self._client()
        self._nested_left = len(nested)
        for parts in nested:
            ended = partial(self._nested_ended, call, task)
            child = new_task(
                self.farm, client.name, "nested", b"function nested", self.setup, parts, 3, ended
            )
            let_stay(child, self.owner.worker)
            client.hand("submit", child)
        self.waiting = self.has_waited = True
        self.farm.books.busy -= 1
        self.farm.books.changed()
        self.say("child_waits", True)

    def _nested_ended(self, call: ChildCall, task: Task, _nested: Task) -> None:
        self._nested_left -= 1
        if self._nested_left == 0 and self.alive:
            self.waiting = False
            self.farm.books.busy += 1
            self.farm.books.changed()
            self.say("child_waits", False)
            self.farm.after(task.run_s / 2, partial(self.finish, call, task))

    def _client(self) -> ClientProcess:
        if self.client is None:
            self.client = self.owner.new_client(self)
        return self.client


class Children:
    """All children of one worker, and the pipes between."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.farm: Farm = worker.farm
        self.mix = worker.farm.mix
        self.all: dict[int, Child] = {}

    def pause(self) -> float:
        """How long a pipe or a look at a shared page takes."""
        return 20e-6 + self.farm.rng.random() * 80e-6

    def start(self, number: int) -> None:
        assert number not in self.all, f"child {number} was started twice"
        if self.mix.unborn_share and self.farm.rng.random() < self.mix.unborn_share:
            self.farm.story.probe("a child could not be started")
            text = "could not be started"
            self.farm.after(self.pause(), partial(self.worker.hand, "call", "child_unborn", number, text))
            return
        child = self.all[number] = Child(self, number)
        self.farm.after(self.farm.rng.uniform(0.5, 1.5) * self.mix.fork_s, child.begin)
        if self.farm.chaos and self.farm.rng.random() < self.mix.stillborn_share:
            self.farm.after(self.farm.rng.random() * self.mix.fork_s, lambda: child.die(SIGKILL, 0))

    def run(self, number: int, run: RunMessage, payload: Payload) -> None:
        for body in payload[len(payload) - len(run.calls) :]:
            task = self.farm.tasks[int(bytes(body))]
            task.sent = True
            self.farm.books.may_be_fed(self.worker, task)
            self.worker.shelf.check(task)
        child = self.all.get(number)
        if child is not None:
            assert not child.taking_back, "calls for a child whose take-back is not answered"
            assert run.calls[0].seq == child.sent_seq + 1, "the calls of a child are counted"
            child.sent_seq = run.calls[-1].seq
            child.down.push(self.pause(), partial(child.take, run, payload))

    def take_back(self, number: int) -> None:
        child = self.all.get(number)
        if child is not None:
            assert not child.taking_back, "a take-back is asked for once"
            child.taking_back = True
            child.void()

    def limit(self, number: int, memory_bytes: int) -> None:
        """Watch the memory of this child, or do so no more."""
        child = self.all.get(number)
        if child is not None:
            child.meter.set(memory_bytes)

    def doom(self, number: int, at: float | None) -> None:
        """The nursery kills this child then, whatever its worker does meanwhile."""
        child = self.all.get(number)
        if child is None:
            return
        child.doomed_at = at
        if at is not None:
            when = max(self.farm.now, self.worker.when(at)) + 1e-9
            self.farm.at(when, partial(child.meet_doom, at))

    def pause_child(self, number: int, paused: bool) -> None:
        """Read nothing more from this child, or read on."""
        child = self.all.get(number)
        if child is not None:
            child.pause(paused)

    def delivered(self, number: int, seq: int) -> None:
        """Tell this child that the client of its call has the result."""
        child = self.all.get(number)
        if child is not None:
            child.down.push(self.pause(), partial(child.told_delivered, seq))

    def heard_delivery(self, number: int) -> None:
        """Their worker hears that this child delivers a result."""
        child = self.all.get(number)
        if child is not None and child.running is not None and child.running.result_at:
            child.running.delivery_heard = True

    def interrupt(self, number: int) -> None:
        """SIGINT: some calls end by that, and take their child along."""
        child = self.all.get(number)
        if child is not None and self.farm.rng.random() < 0.3:
            self.farm.story.probe("child interrupted")
            child.die(0, 130)

    def stop(self, number: int, kill: bool) -> None:
        child = self.all.get(number)
        if child is None:
            return
        if kill:
            self.farm.story.probe("child killed")
            child.die(SIGKILL, 0, stopped=True)
        else:
            child.down.push(self.pause(), child.close)

    def tell(self, child: Child, *entry: Any) -> None:
        """Something for the worker from this child; in order."""
        child.up.push(self.pause(), partial(self._told, child, entry))

    def _told(self, child: Child, entry: tuple[Any, ...]) -> None:
        if entry[1] == "child_died":
            self.all.pop(child.number, None)
            if child.stillborn:
                self.farm.books.stillborn(self.worker)
        self.worker.hand(*entry)

    def die(self) -> None:
        """The worker is gone: so are they."""
        for child in list(self.all.values()):
            child.die(SIGKILL, 0, stopped=True)
        self.all.clear()

    def tunnel(self, channel: int, message: Message, payload: Payload) -> None:
        """A message of the broker for the client in a child."""
        child = self.all.get(channel)
        if child is not None and child.alive and child.client is not None:
            child.client.hand("message", message, payload)

    def new_client(self, child: Child) -> ClientProcess:
        from tests.simulation.processes import ClientProcess

        name = f"{bare(self.worker.session)}.{child.number}"
        principal = principal_of(self.worker.machine.owner_of(child.number))
        return ClientProcess(self.farm, name, name, partial(self._send_up, child), principal=principal)

    def _send_up(self, child: Child, message: Message, payload: Payload) -> None:
        if child.alive:
            self.tell(child, "tunnel", Tunnel(child.number), (message, payload))

    @property
    def busy(self) -> int:
        """Children that run a call."""
        return sum(child.running is not None for child in self.all.values() if child.alive)
