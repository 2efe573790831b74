"""What must hold of streams in a simulated farm: each item once, in order, to the right end, or a gap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.bulk import wanted, whole
from tests.simulation.listeners import Listeners
from tests.simulation.people import Reader, Task
from zfarm import messages as m

if TYPE_CHECKING:
    from tests.simulation.farm import Farm

CHUNK_MAX = 8
"""Items that a child emits at once."""


class Readers(Listeners):
    """What the readers of all streams were handed, as an onlooker sees it."""

    farm: Farm

    def __init__(self) -> None:
        self.unread: set[int] = set()
        """Tokens with a reader that has not come to the end of the stream; of files with a minus sign."""
        self._gone: set[str] = set()

    def reader_gone(self, client: str) -> None:
        """Nobody reads what the tasks of this client emit any more."""
        self._gone.add(client)
        self.unread -= {token for token in self.unread if self.farm.tasks[abs(token)].client == client}

    def _reader(self, task: Task, files: bool) -> Reader:
        """Who reads that stream; of files it is a client that nobody has asked."""
        if files and task.taker is None:
            mix = self.farm.mix
            task.taker = Reader(mix.reader_pause_s * self.farm.rng.random())
            if task.client not in self._gone:
                self.unread.add(-task.token)
            self.farm.story.probe("files begin")
        reader = task.taker if files else task.reader
        assert reader is not None
        assert not reader.over
        return reader

    def ends_filed(self, task: Task, outcome: m.Outcome) -> None:
        """A client was told that there are files: it has to read them, and it has read a large result."""
        whole(task, outcome)
        if outcome.filed and task.taker is None:
            self._reader(task, True)

    def arrived(self, task: Task, action: m.Arrived) -> Reader:
        """A client hands on items: each once, in order, from one run of that very task."""
        reader = self._reader(task, action.files)
        what = f"the {'files' if action.files else 'stream'} of task {task.token}"
        if action.attempt != reader.attempt:
            assert action.attempt > reader.attempt, f"{what} goes back to attempt {action.attempt}"
            self.farm.story.probe("a stream begins anew" if reader.attempt else "a stream begins")
            reader.attempt, reader.run, reader.next = action.attempt, -1, 1
            reader.used = reader.plain = reader.gauge = reader.gap = 0
        assert action.first == reader.next, f"{what}: {action.first} instead of {reader.next}"
        for number, blob in enumerate(action.blobs, action.first):
            token, run, told = map(int, bytes(blob).split(b"/"))
            if reader.run < 0:
                reader.run = run
            right = (-task.token if action.files else task.token, reader.run)
            assert (token, run) == right, f"{what} has {blob!r} at {number}"
            if told < 0:
                assert -told > reader.gauge, f"{what} goes back to {blob!r} from {reader.gauge}"
                reader.gauge = -told
                continue
            in_order = told > reader.plain if reader.missed else told == reader.plain + 1
            assert in_order, f"{what} has {blob!r} after {reader.plain} at {number}"
            reader.plain = told
        reader.next += len(action.blobs)
        if action.files:
            wanted(task, reader, reader.next - 1)
        held = reader.next - 1 - reader.used
        most = self.farm.mix.settings.stream_window_items + CHUNK_MAX + reader.missed
        assert held <= most, f"{what} is {held} items ahead of its reader"
        return reader

    @staticmethod
    def used(task: Task, attempt: int, number: int, files: bool) -> None:
        """The reader has used all up to this number."""
        reader = task.taker if files else task.reader
        if reader is not None and reader.attempt == attempt:
            reader.used = max(reader.used, number)

    def missed(self, task: Task, action: m.Missed) -> None:
        """A client says that items cannot be had: somebody died, or the reader was not there."""
        reader = self._reader(task, action.files)
        what = f"the {'files' if action.files else 'stream'} of task {task.token}"
        if action.attempt != reader.attempt:
            assert action.attempt > reader.attempt
            reader.attempt, reader.run, reader.next = action.attempt, -1, 1
            reader.used = reader.plain = reader.gauge = 0
        assert action.first == reader.next <= action.last, f"{what}: a gap {action} at {reader.next}"
        reader.missed += action.last - action.first + 1
        reader.next = action.last + 1
        reader.gap = action.last
        gone = any(run.interrupted or not run.worker.alive or run.worker.lost for run in task.runs)
        cut_off = not (self.farm.mix.patient or self.farm.mix.calm)
        # a stream that has ended is kept for so long, and three questions may not be heard in that time
        waited_s = max([self.farm.broker.foyer.waited_s, *(run.worker.kept_out_s for run in task.runs)])
        cut_off |= waited_s > self.farm.mix.settings.stream_kept_s / 3
        disowned = task.asked_by is not None and task.asked_by.disowned
        excused = reader.lazy or gone or task.unsure or cut_off or disowned
        assert excused, f"{what} has a gap that nobody is to blame for: {action}"
        self.farm.story.probe("a stream has a gap")

    def stream_over(self, task: Task, files: bool) -> None:
        """A client says that this was all."""
        reader, outcome = self._reader(task, files), task.outcome
        assert outcome is not None
        reader.over = True
        self.unread.discard(-task.token if files else task.token)
        self.farm.story.probe("files end" if files else "a stream ends")
        if outcome.kind in (m.VALUE, m.ERROR, m.MIXED):
            what = f"the {'files' if files else 'stream'} of task {task.token}"
            done = [run for run in task.runs if run.finished]
            told = outcome.filed if files else outcome.emitted
            counts = {run.filed if files else run.emitted for run in done}
            gauged = not files and any(run.gauged for run in done)  # some of which never have a number
            assert told in counts or gauged, f"{what} is said to have {told} of {sorted(counts)} items"
            if not told:
                return  # what came was of an attempt that died, and the one that ended has sent none
            assert reader.next - 1 == told, f"{what} ended after {reader.next - 1} of {told} items"
            whole = {(run.filed, 0) if files else (run.plain, run.gauged) for run in done}
            had = reader.plain, reader.gauge
            assert had in whole or reader.missed, f"{what} ended with {had} of {whole}"
            assert reader.run < 0 or task.runs[reader.run].finished

    def stream_forgotten(self, task: Task) -> None:
        """A reader came so late that nothing is known of the stream any more, or its call was too large to be
        sent at all."""
        assert task.reader is not None
        unsent = bool(task.ballast) and task.outcome is not None and not task.runs
        assert task.reader.lazy or unsent
        task.reader.over = True
        self.unread.discard(task.token)
