"""What must hold in a simulated farm: facts noted as they happen, and judged at once or at the end.

They are kept from what passes between processes and what children do, never from what a machine believes;
only whether the broker counts somebody as lost is asked of the broker, and checked against its silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.simulation.charges import Charges
from tests.simulation.exclusion import Exclusion
from tests.simulation.fullness import Fullness
from tests.simulation.inheritance import Inheritance
from tests.simulation.leaving import Leaving
from tests.simulation.narrow import JUDGED, judge_oversized
from tests.simulation.needs import Known, Needs
from tests.simulation.people import Run, Task
from tests.simulation.promptness import Promptness
from tests.simulation.readers import Readers
from tests.simulation.revocation import Revocation
from tests.simulation.rogues import ROGUES
from zfarm import messages as m
from zfarm.core.greeting import book_key

if TYPE_CHECKING:
    from tests.simulation.children import Child
    from tests.simulation.farm import Farm
    from tests.simulation.processes import ClientProcess, WorkerProcess

NEWCOMERS = (m.Join, m.Hello)  # a tuple: a union would be made anew each time


class Books(Exclusion, Needs, Fullness, Inheritance, Revocation, Leaving, Charges, Readers, Promptness):
    """Every task, run and lease of a farm as an onlooker sees them."""

    def __init__(self, farm: Farm) -> None:
        super().__init__()
        self.farm = farm
        self.numbers: dict[tuple[str, int], Task] = {}
        self.known: dict[str, Known] = {}
        self.by_peer: dict[Any, str] = {}
        self.granted: dict[int, tuple[Task, str]] = {}
        """Every lease ever granted by the present broker: its task and its worker's session."""
        self.living: dict[int, int] = {}
        """Token to the one lease of it that the present broker counts on."""
        self.holds: dict[str, dict[int, Task]] = {}
        """Leases granted to a worker's life and neither reported nor returned to any broker."""
        self.unstarted: dict[str, set[int]] = {}
        """Tokens granted to a worker's life that have neither started there nor been returned."""
        self.again: dict[int, Task] = {}
        """Leases that were heard to have ended in an error to be run again for, and not thanked for yet."""
        self.pending: set[int] = set()
        """Tokens submitted and neither resolved nor abandoned."""
        self.waiting = 0
        """Tasks submitted that have neither started nor ended."""
        self.choosy: dict[int, Task] = {}
        """Those of them that do not run anywhere."""
        self.busy = 0
        """Children that run a call and do not wait for nested ones."""
        self._idle_since: float | None = None
        self._asked_alone: Task | None = None
        self._able_since: float | None = None
        self._broker_born = 0.0
        self.ended_at = 0.0  # when the last task was resolved
        self.quiet_kinds: set[str] | None = None

    # ------------------------------------------------------------ clients

    def submitted(self, client: ClientProcess, number: int, task: Task) -> None:
        task.number = number
        task.asked_by = client
        self.numbers[client.session, number] = task
        self.pending.add(task.token)
        self.is_prompt(client, task)
        self.waiting += 1
        if task.demand is not None:
            self.choosy[task.token] = task
        if not self.farm.keys.admits(client.principal):
            self.abandon(task)
        self.changed()

    def resolved(self, client: ClientProcess, task: Task, outcome: m.Outcome, blob: m.Blob) -> None:
        """A client was shown an outcome: it is the only one, it belongs to that task, and it is true."""
        what = f"task {task.token} ({task.name})"
        assert task.outcome is None, f"{what} was resolved twice: {task.outcome}, {outcome}"
        assert outcome.task == task.number, f"{what} got the outcome of another"
        self.waits_no_more(task)
        task.outcome = outcome
        self.ended_at = self.farm.now
        task.shown_to.append(client)
        self.pending.discard(task.token)
        self.changed()
        kind = outcome.kind
        attempts = len(outcome.deaths) + outcome.tries
        self.judge_causes(what, task, outcome)
        assert outcome.tries <= sum(run.raised for run in task.runs), f"{what} did not raise so often"
        doubted = self._doubted(client, what, task, outcome)
        own = (
            doubted or kind in (m.BROKEN, m.REFUSED) or len(outcome.deaths) - (kind in JUDGED) <= task.blames
        )
        assert own, f"{what} is blamed for deaths that were not its own: {outcome}"
        if kind == m.ERROR and bytes(blob) == task.raised_blob:
            assert any(run.raised for run in task.runs), f"{what} has not raised"
            spent = attempts + 1 >= task.max_attempts or task.cancel_asked_at is not None
            assert spent, f"{what} has attempts left: {outcome}"
            self.farm.story.probe("raised, all attempts")
        elif kind in (m.VALUE, m.ERROR, m.MIXED):
            assert (kind, bytes(blob).partition(b"@")[0]) == task.outcome_of_run(), (
                f"{what} got a wrong value: {outcome} {blob!r}"
            )
            done = any(run.finished and not run.raised for run in task.runs)
            assert done, f"{what} has a value and never came to its end"
            if outcome.tries:
                self.farm.story.probe("a value after an error")
        elif kind == m.BROKEN:
            self.farm.story.probe("broken realm")
            assert b"/99" in task.setup, f"{what} is in a sound realm"
        elif kind == m.TIMEOUT:
            longest = max((run.ended_at - run.started_at for run in task.runs), default=0.0)
            unheard = any(run.interrupted for run in task.runs)  # it died, and its worker had not heard of it
            unheard |= self.farm.mix.turn_messages < 200 and self.farm.mix.chatty  # nor of its end
            long_enough = task.timeout_s > 0 and (unheard or longest + 1e-3 >= 0.97 * task.timeout_s)
            assert long_enough, f"{what} was stopped after {longest} s"
            self.farm.story.probe("timed out")
        elif kind == m.MEMORY:
            assert any(run.overshot_at is not None for run in task.runs), f"{what} had not too much memory"
            assert outcome.deaths, f"{what} was stopped, and nobody knows where"
            self.farm.story.probe("had too much memory")
        elif kind in (m.REFUSED, m.MISSING, m.OVERSIZED):
            {m.REFUSED: self.judge_refused, m.MISSING: self.missing}.get(kind, judge_oversized)(what, task)
        elif kind == m.LOST:
            most = 1 if task.items > 1 else task.max_attempts
            assert attempts == most, f"{what} was given up after {outcome.deaths}"
            self.farm.story.probe("lost, a batch" if task.items else "lost, all attempts")
        else:
            assert kind == m.CANCELLED
            assert task.cancel_asked_at is not None, f"{what} was cancelled by nobody"
            self._cancelled(what, task)
        if task.cancel_asked_at is not None:
            self.farm.story.probe("cancelled" if kind == m.CANCELLED else "cancel came too late")

    def _doubted(self, client: ClientProcess, what: str, task: Task, outcome: m.Outcome) -> bool:
        """It was given up because nobody knows whether it had begun: is there a reason for doubt?"""
        text = outcome.deaths[0].text if outcome.deaths else ""
        if outcome.kind != m.LOST or not text.startswith("the broker was started anew"):
            return False
        lost_at = max(self._broker_born, self.new_books_at.get(client.name, 0.0))
        reason = task.unsure or task.submitted_at < lost_at
        assert task.once, f"{what} was given up, and may run again: {outcome}"
        assert reason, f"{what} was given up for no reason: {outcome}"
        self.farm.story.probe(f"lost with the broker, {'had' if task.runs else 'had not'} begun")
        return True

    def _cancelled(self, what: str, task: Task) -> None:
        """Cancelled means: it never started, or where it did nobody can know any more."""
        task.cancelled_at = self.farm.now
        if task.grace_s is not None:
            self.living.pop(task.token, None)
            self.farm.story.probe("stopped" if task.runs else "cancelled with force, and had not started")
            return
        assert not (task.once and task.runs), f"{what} was cancelled, and had started"
        for run in task.runs:
            excused = run.raised or run.interrupted or not run.worker.alive or run.worker.lost or task.unsure
            assert excused, f"{what} was cancelled, and had started at {run.started_at:.6f}"

    def cancel_asked(self, task: Task) -> None:
        """A client asks whether this task may still be cancelled: where nothing goes wrong it hears soon."""
        task.cancel_asked_at = self.farm.now
        if self.farm.mix.calm:
            bound = self.farm.mix.cancel_bound_s + (task.grace_s or 0.0)
            self.farm.after(bound, partial(self._answered, task))

    def _answered(self, task: Task) -> None:
        answered = task.outcome is not None or task.running_told or task.abandoned
        assert answered, f"task {task.token} was to be cancelled at {task.cancel_asked_at}: no answer"

    def running(self, task: Task) -> None:
        """A client was told that this task runs."""
        task.running_told = True
        # a worker that reports it broken, its children as stillborn, or a file missing, held it as started
        ended_unsent = b"/99" in task.setup or bool(task.needs) or self.farm.mix.stillborn_share > 0
        assert task.sent or ended_unsent, f"task {task.token} is said to run, and no child has it"
        self.farm.story.probe("running told")

    def client_left(self, client: ClientProcess) -> None:
        self.farm.story.probe("client left")
        if not client.job:  # else the tasks go on without it
            self._abandon(client)

    def client_died(self, client: ClientProcess) -> None:
        self._abandon(client)

    def _abandon(self, client: ClientProcess) -> None:
        for token in sorted(self.pending):
            task = self.farm.tasks[token]
            if task.client == client.name:
                self.abandon(task)
        self.reader_gone(client.name)
        self.changed()

    def abandon(self, task: Task) -> None:
        """Nobody waits for it any more."""
        self.waits_no_more(task)
        task.abandoned = True
        self.pending.discard(task.token)

    # ------------------------------------------------------------ the broker

    def heard(self, peer: Any, message: m.Message, principal: str) -> None:
        """The broker is about to note this message of a peer with this key."""
        if peer in ROGUES:
            return
        self.asks(peer, message)
        clock = self.farm.broker.clock
        if isinstance(message, m.Attach):
            self.attaches(message, principal)
            return
        if isinstance(message, NEWCOMERS):
            key = book_key(principal, message.session)
            if self.comes_late(key, message):
                return
            if isinstance(message, m.Hello) and not self.may_speak(key, message.life):
                return
            if isinstance(message, m.Join) and self.must_wait(key):
                self.farm.story.probe("a worker waits until another one of its key is lost")
                return
            known = self.known.get(key)
            if known is None:
                known = self.known[key] = Known(peer, clock)
            else:
                self.by_peer.pop(known.peer, None)
                known.peer, known.heard_at = peer, clock
                self.farm.story.probe("joins again" if isinstance(message, m.Join) else "says hello again")
            self.by_peer[peer] = key
            known.beat = message.beat if isinstance(message, m.Join) else message.number
            self.holds_still(key, message)
            self.says_room(key, message)
            return
        session = self.by_peer.get(peer) or self.leaves_late(peer, message)
        if session is None:
            return
        self.known[session].heard_at = clock
        self.says_room(session, message)
        if isinstance(message, m.Beat):
            self.known[session].beat = max(self.known[session].beat, message.beat)
        if isinstance(message, m.Reports):
            for report in message.reports:
                if report.lease >> 32 != self.farm.broker.epoch:
                    self.farm.story.probe("a lease from before the broker's restart is reported")
                self.tells_of_deaths(session, report)
                if report.kind == m.AGAIN:
                    self._raises(session, report.lease)
                self._lease_ends(session, report.lease, started=True)
        elif isinstance(message, m.Return):
            if message.lacks:
                self.farm.story.probe("a worker lacks a function")
            for lease in message.leases:
                if message.seen >= self.known[session].numbers.get(lease, 0):  # else granted again since
                    self._lease_ends(session, lease, started=False)
        elif isinstance(message, m.Bye | m.Leave):
            self.known[session].leaves(message)
            if isinstance(message, m.Leave) and message.leases:
                self.farm.story.probe("stopped at once")

    def gone(self, peer: Any) -> None:
        """The broker is told that this peer's link is dead, and so are the tunnels through it."""
        for other in [*self.by_peer]:
            if other == peer or (isinstance(other, tuple) and other[0] == peer):
                del self.by_peer[other]

    def raised(self, task: Task) -> None:
        """A run of it has ended in an error for which it wants to be run again."""
        self._excuse(task)

    def _raises(self, session: str, lease: int) -> None:
        """The broker hears that this lease ended so."""
        task, holder = self.granted.get(lease, (None, ""))
        if task is not None and holder == session and self.living.get(task.token) == lease:
            task.raised_at = self.farm.now
            self.again[lease] = task

    def _lease_ends(self, session: str, lease: int, started: bool) -> None:
        task, holder = self.granted.get(lease, (None, ""))
        if task is None or holder != session:
            self.farm.story.probe("a stale lease is reported or returned")
            return
        self.holds[session].pop(lease, None)
        if not started:
            self.unstarted.get(session, set()).discard(task.token)
            self.farm.story.probe("returned")
        if self.living.get(task.token) == lease:
            del self.living[task.token]
        elif started:
            self.farm.story.probe("a report twice, or of a lease that was given up")

    def broker_advanced(self) -> None:
        """Whom did the broker give up in this turn, and was it right to?"""
        broker = self.farm.broker.machine
        settings = self.farm.mix.settings
        clock = self.farm.broker.clock
        self.judge_aside()
        self.judge_owners()
        for session, known in self.known.items():
            stays = known.said_goodbye and (session in broker.workers or session in broker.clients)
            stays = stays and not self.goes_on(session)
            assert not stays, f"{session} said goodbye, and the broker keeps it"
        for session in [s for s in self.known if s not in broker.workers and s not in broker.clients]:
            known = self.known.pop(session)
            self.by_peer.pop(known.peer, None)
            worker = self.farm.lives.get(session)
            limit = settings.worker_lost_after_s
            if worker is None:
                limit = settings.client_lost_after_s + settings.client_grace_s
                self._client_lost(session, known)
                self.departed[session] = self.speaker_of(session), known.beat
            else:
                self._worker_lost(worker, known)
            if not self.knows(session):
                continue
            # who reads three messages a turn, of one peer maybe, need not know that another has just spoken
            unheard = self.farm.mix.turn_messages >= 200 and self.farm.broker.waits_from(known.peer)
            assert known.said_goodbye or not unheard, f"{session} was given up before what it said was read"
            silent = clock - known.heard_at
            assert known.said_goodbye or silent >= limit, f"{session} was given up after {silent} s"

    def _worker_lost(self, worker: WorkerProcess, known: Known) -> None:
        """Its leases move: each of its tasks may run once more, and on it as well if it is only cut off."""
        if not known.said_goodbye:
            self.farm.story.probe("worker lost while it lives" if worker.alive else "worker lost")
        worker.lost = True
        for lease, task in self.holds.get(worker.session, {}).items():
            if self.living.get(task.token) == lease:
                del self.living[task.token]
            ran = any(run.worker is worker for run in task.runs)
            moved = not known.said_goodbye or lease in known.went_with
            task.blames += moved and (ran or task.sent or task.once)
            self._excuse(task)

    def _client_lost(self, session: str, known: Known) -> None:
        """Its tasks were cancelled, running ones as well; if it comes back, it submits them anew."""
        if not known.said_goodbye:
            self.farm.story.probe("client given up")
        for (owner, _), task in self.numbers.items():
            if owner == session:
                self.living.pop(task.token, None)
                task.unsure = True
                if not known.said_goodbye:  # it was cancelled: who submits it anew may be refused
                    task.safe, task.given_up = False, True
                task.raised_at = None
                self._doubt(task)
                self._excuse(task)

    def _doubt(self, task: Task) -> None:
        """Of a task that may begin once only nobody knows any more whether it has: it may end as lost."""
        if task.once and not task.runs:
            self.farm.story.probe("at most once, in doubt, not started")

    def broker_died(self) -> None:
        """It remembers nothing; what runs may run again before the broker hears of it."""
        for memory in (self.known, self.departed, self.by_peer):
            memory.clear()
        self.living.clear()
        self.again.clear()
        self.aside_again()
        self.lives_again()
        self.owes_nothing()
        for lease, (task, session) in self.granted.items():
            if task.outcome is None:  # what was reported to this broker may be held for the next one
                self.holds.setdefault(session, {})[lease] = task
        for task in self.farm.tasks.values():
            if task.outcome is None:  # a journal may keep also what nobody waits for any more
                task.unsure = True
                task.raised_at = None
                self._doubt(task)
                self._excuse(task)

    def broker_born(self) -> None:
        """It has started, for the first time or anew."""
        self._broker_born = self.farm.now

    def restored(self, sessions: Iterable[str], clock: float) -> None:
        """A broker with a journal knows these clients from before, and waits for them as for others."""
        for session in sessions:
            if session not in ROGUES:
                self.known[session] = Known(None, clock)

    def broker_says(self, peer: Any, message: m.Message) -> None:
        """The broker sends this now."""
        if self.quiet_kinds is not None:
            self.quiet_kinds.add(type(message).__name__)
        self.may_hear(peer, self.by_peer.get(peer), message)
        if self.farm.disk is not None and peer in self.by_peer:
            self.farm.disk.check_said(self.by_peer[peer], message)
        if isinstance(message, m.Grants):
            session = self.by_peer[peer]
            for lease in message.leases:
                self.known[session].numbers[lease.lease] = message.number
                task = self.numbers[message.owners[lease.owner], lease.task]
                self._grants(session, task, lease.lease)
        elif isinstance(message, m.Thanks):
            for thanked in message.leases:
                self._thanked(thanked)
        elif isinstance(message, m.Unknown | m.Refused):
            self.is_put_off(peer, message)
        elif isinstance(message, m.Revoke):
            self.farm.story.probe("revoke by force" if message.force else "revoke")

    def _thanked(self, lease: int) -> None:
        """From now on only the broker knows how that lease ended."""
        task, disk = self.again.pop(lease, None), self.farm.disk
        if task is not None and disk is not None:
            owner = next(key for key, found in self.numbers.items() if found is task)
            assert lease in disk.raised or owner not in disk.open, f"thanked for {lease}, and not on the disk"

    def _grants(self, session: str, task: Task, lease: int) -> None:
        living = self.living.get(task.token)
        if lease in self.granted:
            assert self.granted[lease] == (task, session), f"lease {lease} changed hands"
            self.farm.story.probe("grant repeated")
        elif lease >> 32 != self.farm.broker.epoch:
            self.farm.story.probe("adopted lease granted again")
        else:
            waited = (task.once or task.exclusive) and self.farm.disk is not None and self.farm.disk.was_full
            aside = session in self.aside and not waited  # else it was granted before, and that had to wait
            assert not aside, f"{session} is set aside, and is granted lease {lease}"
            if not waited:
                self.may_be_granted(session, task, lease)
        assert living is None or living == lease, f"task {task.token} gets lease {lease} while {living} lives"
        new = lease not in self.granted
        self.granted[lease] = (task, session)
        self.living[task.token] = lease
        self.holds.setdefault(session, {})[lease] = task
        if new or not any(run.worker.session == session for run in task.runs):
            self.unstarted.setdefault(session, set()).add(task.token)

    # ------------------------------------------------------------ workers and children

    def worker_says(self, worker: WorkerProcess, message: m.Message) -> None:
        self.speaks_of_itself(worker, message)
        if self.quiet_kinds is not None:
            self.quiet_kinds.add(type(message).__name__)

    def worker_died(self, worker: WorkerProcess) -> None:
        for token in sorted(self.unstarted.pop(worker.session, ())):
            self._excuse(self.farm.tasks[token])

    def child_died(self, child: Child, stopped: bool) -> None:
        """Blame falls on the call that ran, and on no other."""
        self.farm.story.tell(self.farm.now, child.owner.worker.name, "child gone", child.number)
        run, child.running = child.running, None
        if run is not None:
            self.busy -= not child.waiting
            run.interrupted = True
            run.ended_at = self.farm.now
            run.task.blames += not stopped
            self._excuse(run.task)
        child.stillborn = not child.started_seq and child.sent_seq > 0 and not stopped
        self.changed()

    def stillborn(self, worker: WorkerProcess) -> None:
        """A worker hears that a child died before its first call: after a few such, all the calls of that
        realm are given up that it has by now."""
        for task in self.holds.get(worker.session, {}).values():
            task.blames += 1

    def started(self, child: Child, task: Task) -> Run:
        """A child starts a call."""
        farm, worker = self.farm, child.owner.worker
        what = f"task {task.token} ({task.name})"
        farm.story.tell(farm.now, worker.name, "child runs", (child.number, task.token))
        voided = worker.lost or task.unsure or task.grace_s is not None
        assert not (task.once and task.runs), f"{what} runs again, and may run once only: {task.runs}"
        assert len(task.runs) < task.runs_allowed, f"{what} runs again, and nothing had died: {task.runs}"
        assert task.cancelled_at is None or voided, f"{what} starts, and was cancelled"
        running = [other for other in child.owner.all.values() if other.running is not None]
        assert sum(not other.has_waited for other in running) < worker.slots, f"{worker.name} is overbooked"
        self.allowed(what, child, task)
        if task.raised_at is not None:
            least = task.raised_at + 0.48 * farm.mix.settings.retry_backoff_s
            assert farm.now >= least or worker.lost, f"{what} did not wait: it had raised at {task.raised_at}"
            task.raised_at = None
        self.one_place(what, task)
        self._prompt(what, task)
        self.waits_no_more(task)
        self.busy += 1
        child.running = run = Run(task, worker, child.number, farm.now)
        task.runs.append(run)
        self.unstarted.get(worker.session, set()).discard(task.token)
        if len(task.runs) > 1:
            farm.story.probe("ran again")
        self.changed()
        return run

    def _excuse(self, task: Task) -> None:
        """Something died that had to do with it: it may run once more, and wherever else it was granted."""
        elsewhere = sum(task.token in tokens for tokens in self.unstarted.values())
        task.runs_allowed = max(task.runs_allowed, len(task.runs) + 1 + elsewhere)
