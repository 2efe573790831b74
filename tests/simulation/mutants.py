"""Planted bugs: one small change each in a method of the machines, named for the mistake that it is."""

from __future__ import annotations
import __future__

import importlib
import inspect
import pkgutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import pytest

import zfarm.core

ANYBODY = "next((w.leases[report.lease] for w in self.workers.values() if report.lease in w.leases), None)"

ANY_LEASE_OF = (
    "next((w.leases[message.lease] for w in self._broker.workers.values()"
    " if message.lease in w.leases), None)"
)


@dataclass(frozen=True)
class Mutant:
    """Replace ``old`` by ``new`` in the function of that name, wherever in zfarm.core it stands."""

    name: str
    function: str
    old: str
    new: str

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the bug in, until the test ends."""
        fitting = [
            (owner, found) for owner, found in functions(self.function) if self.old in source_of(found)
        ]
        assert len(fitting) == 1, f"{self.name}: fits {self.function} in {len(fitting)} places; renew it"
        owner, found = fitting[0]
        source = source_of(found)
        assert source.count(self.old) == 1, f"{self.name}: fits {self.function} more than once; renew it"
        flags = __future__.annotations.compiler_flag
        code = compile(source.replace(self.old, self.new), f"<mutant: {self.name}>", "exec", flags=flags)
        planted: dict[str, Any] = {}
        exec(code, vars(sys.modules[getattr(owner, "__module__", owner.__name__)]), planted)
        monkeypatch.setattr(owner, self.function, planted[self.function])


def functions(name: str) -> Iterator[tuple[Any, Any]]:
    """Every module or class of the core that has a function, method or property of its own by this name, and
    that."""
    for info in pkgutil.iter_modules(zfarm.core.__path__, "zfarm.core."):
        module = importlib.import_module(info.name)
        function = vars(module).get(name)
        if isinstance(function, FunctionType) and function.__module__ == info.name:
            yield module, function
        for owner in vars(module).values():
            if isinstance(owner, type) and owner.__module__ == info.name:
                found = vars(owner).get(name)
                if isinstance(found, FunctionType | property):
                    yield owner, found


def source_of(found: Any) -> str:
    """The text of a method or property, from the margin."""
    function: Any = found.fget if isinstance(found, property) else found
    return textwrap.dedent(inspect.getsource(function))


MUTANTS = [
    # leases
    Mutant("no fencing", "_on_reports", "leases.get(report.lease)", ANYBODY),
    Mutant("epoch not raised", "lease", "self.epoch << 32", "1 << 32"),
    Mutant(
        "a lease that is missing is replaced",
        "_on_join",
        """elif lease not in held:  # lost on the way to it: the same lease once more, never another
            self._repeat(worker, task, now)""",
        """elif lease not in held:
            self.give_back(task)""",
    ),
    Mutant("no requeue on loss", "attempt_lost", "self.requeue(task, self.slots())", "pass"),
    Mutant(
        "runs again where it died",
        "_fill_slots",
        "task.shuns == worker.session",
        "False",
    ),
    Mutant("leases of a lost worker leaked", "drop_worker", "reversed(worker.leases.values())", "()"),
    Mutant("Return ignored", "_on_return", "self.give_back(task)", "pass"),
    Mutant("Return lost", "_take_home", "self._returns.append(duty.lease)", "pass"),
    Mutant(
        "a reported lease comes back",
        "_may_live",
        "not ours and self._from_before(task, lease)",
        "True",
    ),
    Mutant("leavers are blamed", "_on_leave", "self.give_back(task)", "pass"),
    Mutant(
        "workers lost too soon", "_lose_silent", "> limits.worker_lost_after_s", "> limits.beat_interval_s"
    ),
    Mutant("a late Return counts", "_on_return", "worker.repeated.get(lease, 0) <= message.seen", "True"),
    # the journal
    Mutant("shown before it is recorded", "advance", "actions.insert(0, Append(", "actions.append(Append("),
    Mutant(
        "outcomes not recorded",
        "settle",
        "self.records.append((Settled(client.session, outcome), (blob,)))",
        "pass",
    ),
    Mutant("tasks not recorded", "accept", "if self.journal", "if False"),
    # the disk of the journal is full
    Mutant("outcomes shown all the same", "client_messages", "if waits is not None:", "if False:"),
    Mutant("thanked all the same", "worker_messages", "worker.thanks, thanks = thanks, []", "pass"),
    Mutant(
        "granted all the same",
        "worker_messages",
        "task.written_first and waits(task.client.session, task.number)",
        "False",
    ),
    Mutant("the turn that failed is lost", "begin", "broker.records[:0] = action.records", "pass"),
    Mutant("taken, and no room", "_full", "self.stalled or self.refusing:", "False:"),
    Mutant(
        "more taken than there is room for",
        "_is_roomy",
        "self.headroom.take(",
        "bool(",
    ),
    Mutant(
        "who has a job is said and not written",
        "_on_attach",
        "return  # it asks again, and it will be written then or there is no room for it",
        "pass",
    ),
    Mutant("said, and only others are written", "_waits", "(client, task) in self._unwritten", "False"),
    # at most once
    Mutant("starts not recorded", "_spend", "if self.journal", "if False"),
    Mutant("granted again after the restart", "unpark", "if task.spent", "if False"),
    Mutant(
        "the first start is forgotten",
        "apply",
        "self.park(task, now + self.limits.restart_hold_s)",
        "task.spent = 0",
    ),
    Mutant(
        "submitted again without a word", "_may_have_begun", "self._welcome.books != asked.books", "False"
    ),
    Mutant("in doubt, and granted", "_on_submit", "if call.begun", "if False"),
    Mutant("returned, and in doubt for ever", "give_back", "self._spend(task, 0)", "pass"),
    Mutant("stopped, and nothing had begun", "_flush", "Leave(given)", "Leave()"),
    # jobs
    Mutant("the dead go on submitting", "_on_attach", "if client.peer is not None:", "if False:"),
    Mutant("a job ends with its program", "_on_bye", "if client.job and client.tasks:", "if False:"),
    Mutant("a job has two speakers", "_on_hello", "client.life != message.life", "False"),
    Mutant("taken over in parts", "_on_attached", "len(self._inherited) == message.total", "True"),
    # errors for which a call is run again
    Mutant("no backoff", "attempt_failed", "now + delay_us / 1e6", "now"),
    Mutant("errors not recorded", "attempt_failed", "if self.journal", "if False"),
    Mutant("one run too many", "attempt_failed", "task.attempts + 1 >=", "task.attempts + 1 >"),
    Mutant("run again for ever", "attempt_failed", "task.tries += 1", "pass"),
    Mutant("never run again", "attempt_failed", "self.park(task, now + delay_us / 1e6)", "pass"),
    # bad workers and bad calls
    Mutant("what only waited is blamed", "lose_lease", "task.began or", "True or"),
    Mutant("set aside, and granted", "open", " and not self.aside_until", ""),
    Mutant("one bad call, a bad worker", "_suspect", "suspects[key]", "suspects[(*key[:2], b'%f' % now)]"),
    Mutant("what ends well does not count", "ended_well", "worker.suspects.clear()", "pass"),
    Mutant("the last one is set aside", "_suspect", "not self._others(worker)", "False"),
    # charges and turns
    Mutant("what has ended is free", "report", "self.charge(task, now, max(", "((0, "),
    Mutant("a child costs nothing", "report", "max(report.run_us, report.held_us)", "report.run_us"),
    Mutant("what ends is paid back", "charge", "task.client.pay(", "("),
    # what clients say, and how long it waits
    Mutant("who waits pays nothing", "_hear_next", "party.said_us += us", "pass"),
    Mutant("his last word first", "_hear_next", "waiting.popleft()", "waiting.pop()"),
    Mutant("who waits is overtaken by himself", "receive", "if row is None:", "if True:"),
    Mutant("parts are lost", "_parts", "bodies + start + calls", "bodies + start + calls - 1"),
    # attempts
    Mutant("one attempt too many", "attempt_lost", ">= task.max_attempts", "> task.max_attempts"),
    Mutant("batches run again whole", "attempt_lost", "task.items > 1", "False"),
    Mutant("blame everybody in the child", "child_died", "void_after(started_seq)", "void_after(1 << 60)"),
    # reports and outcomes
    Mutant("reports dropped while the broker is away", "_on_welcome", "list(self._owed)", "[]"),
    Mutant("Thanks dropped", "_on_thanks", "self._owed.pop(lease, None)", "pass"),
    Mutant("Forget forgotten", "_on_ended", "forgets.append(outcome.task)", "pass"),
    Mutant("Forget lost with the link", "_on_welcome", "*chain(*self._unconfirmed.values()), ", ""),
    Mutant("no asking after Welcome", "_on_welcome", "self._asks.append(number)", "pass"),
    Mutant("Unknown ignored", "_on_unknown", "self._unsent.append(asked)", "pass"),
    Mutant("an outcome resolves twice", "_resolve", "del self._tasks[asked.number]", "pass"),
    # cancel and goodbye
    Mutant(
        "cancelled though it may have started",
        "_on_cancel",
        "task.grace_us = max(task.grace_us, message.grace_us)",
        'self.settle(task, Outcome(task=number, kind=CANCELLED), b""); continue',
    ),
    Mutant("what started is not told", "_begin", "self._begans.append(duty.lease)", "pass"),
    Mutant("never TakeBack", "_take_back", "if not kid.taking_back", "if False"),
    Mutant("an earlier link is heard again", "_comes_late", "message.number < client.hello_seen", "False"),
    Mutant("Bye ignored", "_on_bye", "self.drop_client(client, now)", "pass"),
    Mutant(
        "no grace", "_lose_silent", "limits.client_lost_after_s + (", "limits.client_lost_after_s + 0 * ("
    ),
    # slots and children
    Mutant("double room", "_feed", "self.slots - self._busy()", "2 * self.slots - self._busy()"),
    Mutant("waiting takes a slot", "_room", "slots + len(children)", "slots"),
    Mutant("a full worker keeps its queue", "_watch_kids", "self._return_queue()", "pass"),
    Mutant("fed while giving back", "idle", " or self.taking_back", ""),
    Mutant("a child serves any realm", "_idle_kid", "kid.realm == wanted", "True"),
    Mutant("stuck calls stay", "_watch_kids", "kid.calls > 1", "False"),
    Mutant("tunnels outlive their link", "gone", "for lost in (peer, *through)", "for lost in (peer,)"),
    # children that cannot be started
    Mutant("what had no child is lost", "child_unborn", "self._take_home(duty, now)", "pass"),
    Mutant("never tried again", "_watch_kids", "self._short_until = 0.0", "pass"),
    Mutant("no child, and it keeps its queue", "_watch_kids", "self._short_until or ", ""),
    # memory
    Mutant("a limit lost with the broker", "accept", "task.memory_bytes = call.memory_bytes", "pass"),
    Mutant("a limit that nobody watches", "child_starts", "if duty.memory_bytes", "if False"),
    Mutant("too much, and it runs on", "_watch_kids", "self._cut_short(kid, kid.overshot, now)", "pass"),
    Mutant("a limit that stays", "_lift_limit", "LimitChild(kid.number, 0)", "LimitChild(kid.number, 1)"),
    Mutant("too much, for the next call", "_lift_limit", "False, None", "False, kid.overshot"),
    # streams
    Mutant("a hole is not noticed", "items", "message.first > stream.next", "False"),
    Mutant("nothing is fetched", "_look_after", "if hole is not None and (", "if False and ("),
    Mutant("the tail is lost", "listen", "one.ask and stream.sent > one.seen", "False"),
    Mutant("an attempt goes on in the next", "begin", "self.next = 1", "self.next = 1 + (attempt > 1)"),
    Mutant("the end is guessed", "_ended", "stream.end = emitted", "stream.end = stream.next - 1"),
    Mutant("no window", "send_next", "if self.outstanding and (", "if False and ("),
    Mutant("never told to go on", "pauses", "if stream.paused else 1.0", "if False else -1.0"),
    Mutant("dropped under its reader", "pauses", "(stream.reading and not stream.away)", "(False)"),
    Mutant("streams not told after Welcome", "welcome", "self._fresh = list(self._streams)", "pass"),
    Mutant("files nobody reads", "_new", "task < 0 and self.files", "False"),
    Mutant(
        "files without an end", "ended", "self._ended(-task, token, -outcome.lease, outcome.filed)", "pass"
    ),
    Mutant(
        "files end with the items",
        "ended",
        "-outcome.lease, outcome.filed",
        "-outcome.lease, outcome.emitted",
    ),
    Mutant(
        "files of one who holds its lease are gone", "reap", "abs(lease) not in held", "lease not in held"
    ),
    Mutant("streams of a lost worker kept", "drop_worker", "self.routes.lose(worker)", "pass"),
    # ducts
    Mutant("moves while items are on their way", "turn", " and not self.outstanding", ""),
    Mutant(
        "anybody's Listen opens a duct",
        "on_listen",
        "route.owner == client.session",
        "True",
    ),
    Mutant(
        "another client's key is passed on",
        "on_listen",
        "client.key if",
        "max(one.key for one in self._broker.clients.values()) if",
    ),
    Mutant("whatever comes over a duct counts", "counts", "self._dialled.get(lease) == duct", "True"),
    Mutant("a duct stays open for what is over", "_forget", "self.ducts.withdraw(stream)", "pass"),
    Mutant("goes on over a duct that is cut", "down", "stream.open = stream.direct = False", "pass"),
    # large results
    Mutant(
        "delivered when it was sent",
        "advance",
        "elif stream.whole and stream.next > stream.count",
        "elif stream.whole",
    ),
    Mutant(
        "a result comes unasked", "send_next", "not self.admitted and chunk.first", "False and chunk.first"
    ),
    Mutant("delivered, and nobody is told", "advance", "self.delivered.append(-stream.lease)", "pass"),
    Mutant("results are dropped like items", "pauses", "stream.result_at > 0 or ", ""),
    Mutant("times out on its way", "child_delivers", "kid.stop_at = inf", "pass"),
    Mutant(
        "delivered to a child that is told of another call", "_end_deliveries", "duty.seq)", "duty.seq + 1)"
    ),
    # resources and labels
    Mutant("labels ignored", "suits", "self.labels.issuperset(demand.labels)", "True"),
    Mutant("resources ignored", "affords", ">= amount", ">= 0"),
    Mutant("resources given back twice", "give", "-= amount", "-= 2 * amount"),
    Mutant("resources kept after the end", "unlease", "worker.give(task.lease)", "pass"),
    Mutant("what an orphan took stays taken", "_stop", "worker.give(lease)", "pass"),
    Mutant("given back before the child is gone", "_feed", "not self._affords(queue[0])", "False"),
    Mutant("demands forgotten with the broker", "apply", "demand=record.demand", "demand=None"),
    Mutant("demands forgotten by the client", "_send_submit", "asked.demand is not None", "False"),
    Mutant("what is missing blocks the others", "place", "for h in heads if", "for h in heads[:1] if"),
    Mutant("workers that came are not seen", "_on_join", "self.crew += 1", "pass"),
    Mutant("lines are not ready", "make_ready", "if client.lines:", "if False:"),
    Mutant("short of resources for ever", "_end_shortage", "self._queue.extendleft(", "list("),
    # what tasks print, and items of which only the latest counts
    Mutant(
        "printed after the end",
        "advance",
        """self._printouts.flush(self._actions)
            self._flush(now)""",
        """self._flush(now)
            self._printouts.flush(self._actions)""",
    ),
    Mutant("printed for ever", "flush", "self._waiting, self._bytes", "_, self._bytes"),
    Mutant("dropped, and not counted", "add", "dropped + self._dropped.pop(key, 0)", "dropped"),
    Mutant("output of another", "on_printed", "Printed(task.number,", "Printed(task.number ^ 1,"),
    Mutant("an item gives way to a gauge", "add", "self.unsent[-1].latest", "True"),
    Mutant("a number for each gauge", "add", "self.count -= 1", "pass"),
    Mutant("the newest gauge stays", "send_next", "self.gauge >= self.next and ", ""),
    # files that calls need
    Mutant("what was lost on the way is not asked for again", "_look", "self._ask_again(errand)", "pass"),
    Mutant("asked for again from the begin", "_say", "errand.at, errand.upto", "0, errand.upto"),
    Mutant("a call runs before its files are there", "_has_all", "return not missing", "return True"),
    Mutant("what was sent twice is written twice", "_fits", "at == errand.at and ", ""),
    Mutant("damaged once, given up", "went_wrong", "and not errand.tried", "and False"),
    Mutant("damaged, and asked for for ever", "went_wrong", "errand.tried = errand.far", "errand.far"),
    Mutant(
        "files of calls that ended are kept", "_end", "self._actions.append(DropBlob(have[0], need))", "pass"
    ),
    Mutant("files go under the call that uses them", "_end", "if not have[1]", "if True"),
    Mutant("a directory without some of its files", "found", "if not errand.parts", "if True"),
    Mutant("no window of files", "_extend", "window - self._flight + asked", "window"),
    Mutant("sent beyond the window", "_take", "if sent >= room", "if False"),
    Mutant("files of other people's calls", "on_want", "worker.leases.get(message.lease)", ANY_LEASE_OF),
    Mutant("needs forgotten by the client", "_send_submit", "if asked.needs", "if False"),
    Mutant("needs forgotten with the broker", "apply", "needs=record.needs", "needs=()"),
    Mutant("a child fed ahead knows no store", "_feed", "limits, now, self._place", "limits, now"),
    Mutant("a child knows no store", "_feed", ", place=self._place", ""),
    Mutant("a file that is gone fails nobody", "_refused", "self._fail(", "list("),
    # kept results
    Mutant("handles that are gone keep what they named", "let_go", "place.drops[key] = None", "pass"),
    Mutant("handles are told of once", "advance", "or now >= place.heard_at + kept / RENEWALS", ""),
    Mutant("a store that has forgotten is told nothing", "pinned", "place.fresh = True", "pass"),
    Mutant("dropped before it was kept", "_next", "[] if place.keeps else ", ""),
    Mutant("the last handle of several", "let_go", "if not place.held[key]", "if True"),
    Mutant("stores are not told who is gone", "over", "if client.pinned", "if False"),
    Mutant(
        "said once, heard or not", "advance", "now >= place.said_at + place.patience", "place.said_at < 0"
    ),
    Mutant("a call goes anywhere", "_rather", "roomy(task, workers)", "None"),
    Mutant("the hint makes it another file", "plain", " or need.near", ""),
    # files out of the archive
    Mutant("clients are asked for what they have not", "on_want", "if not one.archived", ""),
    Mutant(
        "the archive forgotten on the way",
        "_sources_of",
        "errand.need in call.archived",
        "False",
    ),
    Mutant("a file of the archive is another file", "plain", "need.archived or", "not need.archived or"),
    Mutant("two readers of an archive are one", "want", "reader not in self._tasks", "not self._tasks"),
    # workers of one key
    Mutant("the dead lock their key out", "drop_worker", "self.crews.leave(worker.session)", "pass"),
    Mutant("a worker gives up that must wait", "_on_refused", 'message.code == "FarmBusy"', "False"),
    Mutant("as many workers as may come", "full", "many < self._most", "True"),
    # calls that end only when they are stopped
    Mutant("what nobody came back for runs on", "sweep", "now >= orphan.until", "False"),
    # exclusive calls
    Mutant("silent for twice as long as it may be", "allow", "silence_s * SHARE", "silence_s * 2"),
    Mutant("cut off at once", "allow", "silence_s * SHARE", "silence_s * SHARE / 2"),
    Mutant("a worker that is stopped stops nothing", "arm", "at < inf and", "False and"),
    Mutant(
        "a child is killed for what has ended",
        "watch",
        "self._doomed if child not in busy",
        "self._doomed if False",
    ),
    Mutant("what a nursery has killed has died", "child_died", "left.doomed or duty", "duty"),
    Mutant("beats are not answered", "_on_beat", "worker.answer = True", "pass"),
    # functions that travel once
    Mutant("nobody says which function is lacking", "_named", "client.lacks.append(digest)", "pass"),
    Mutant("sent once, whatever is lacking", "lacked", "numbers.pop(digest, None)", "pass"),
    Mutant("named to the broker, and never sent", "tell", "numbers[digest] = number", "return False"),
    Mutant("calls without a function are lost", "_on_submit", "client.unknown.append(call.task)", "pass"),
    Mutant("leases without a function are lost", "_on_grants", "self._nameless.append(number)", "pass"),
    Mutant("lacking, and nobody is asked", "all_of", "lacks.append(digest)", "pass"),
    Mutant(
        "a child is thought to have what it dropped",
        "shrink",
        "self._sizes.popitem(last=False)",
        "next(iter(self._sizes.items()))",
    ),
    Mutant("a child keeps every function", "_named", "kid.given.shrink(most)", "[]"),
    Mutant(
        "the function of another name",
        "take",
        "bodies.get(digest)",
        "bodies.get(digest, next(iter(bodies.values()), None))",
    ),
    Mutant("names count for ever", "unname", "size = self._use_no_more(client, function)", "size = 0"),
    Mutant("functions are named for ever", "_forget", "client.named_bytes > most", "False"),
    # accounts
    Mutant(
        "a function counts after its last task",
        "discard",
        "size += self._use_no_more(client, function)",
        "self._use_no_more(client, function)",
    ),
    Mutant("what a dropped client had still counts", "drop", "self.accounts.bytes -= size", "pass"),
    Mutant(
        "a setup is let go while a task needs it",
        "discard",
        "if used > 1:\n        client.setups",
        "if False:\n        client.setups",
    ),
    # keys that are revoked
    Mutant("a revoked client stays", "expel", "broker.drop_client(client, now)", "pass"),
    Mutant("a revoked worker stays", "expel", "broker.drop_worker(worker, why, now)", "pass"),
    Mutant("the books do not know who may be in them", "expel", "broker.known = known", "pass"),
    Mutant("kept for a client that will not come", "adopt", "broker.knows(held.owner)", "True"),
    Mutant("an old session for ever", "renamed", "written.append((Dropped(record.client), ()))", "pass"),
    Mutant("what an old journal has is nobody's", "renamed", "book_key(today[owner]", "book_key(owner"),
    # workers that drain while their calls wait for others
    Mutant("who drains waits for ever", "advance", "if self.leaving and", "if False and"),
    Mutant("who drains does not say what waits", "_room", "else 0, children)", "else 0, [])"),
    Mutant("who drains has room for all", "_room", "Room(0, ", "Room(room, "),
    # what fresh seeds have found
    Mutant("what is put back was never counted", "pick", "self.count()", "pass"),
    Mutant("a doubt is written later than its call", "pick", "and record.lease != ANY_LEASE", ""),
    Mutant("a worker is blamed for our interrupts", "child_died", "duty.grace_us > 0", "False"),
    Mutant(
        "a child speaks for whoever found it idle",
        "speaks_for",
        "self.sent[0].owner if self.sent else self.owner",
        "self.owner",
    ),
    Mutant(
        "who had a job that has ended is not answered",
        "_on_hello",
        "self._taken_over(peer, message.job)",
        "pass",
    ),
    Mutant(
        "streams end while the broker is behind",
        "_waited_long",
        "return self._heeded_at >= stream.heard_at + patience_s",
        "return now >= stream.moved_at + patience_s",
    ),
    Mutant(
        "written, and lost with the link",
        "unsaid",
        "return once - self.repeated.keys()",
        "return set()",
    ),
    Mutant(
        "any word of a stranger silences it",
        "tunnelled",
        "self._strangers.setdefault(peer, False)",
        "self._strangers[peer] = True",
    ),
]
