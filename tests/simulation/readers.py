"""What must hold of streams in a simulated farm: each item once, in order, to the right end, or a gap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.people import Task
from zfarm import messages as m

if TYPE_CHECKING:
    from tests.simulation.farm import Farm

CHUNK_MAX = 8
"""Items that a child emits at once."""


class Readers:
    """What the readers of all streams were handed, as an onlooker sees it."""

    farm: Farm

    def __init__(self) -> None:
        self.unread: set[int] = set()
        """Tokens with a reader that has not come to the end of the stream."""

    def reader_gone(self, client: str) -> None:
        """Nobody reads what the tasks of this client emit any more."""
        self.unread -= {token for token in self.unread if self.farm.tasks[token].client == client}

    def arrived(self, task: Task, action: m.Arrived) -> None:
        """A client hands on items: each once, in order, from one run of that very task."""
        reader = task.reader
        assert reader is not None
        assert not reader.over
        what = f"the stream of task {task.token}"
        if action.attempt != reader.attempt:
            assert action.attempt > reader.attempt, f"{what} goes back to attempt {action.attempt}"
            self.farm.story.probe("a stream begins anew" if reader.attempt else "a stream begins")
            reader.attempt, reader.run, reader.next = action.attempt, -1, 1
            reader.used = 0
        assert action.first == reader.next, f"{what}: {action.first} instead of {reader.next}"
        for number, blob in enumerate(action.blobs, action.first):
            token, run, told = map(int, bytes(blob).split(b"/"))
            if reader.run < 0:
                reader.run = run
            assert (token, run, told) == (task.token, reader.run, number), f"{what} has {blob!r} at {number}"
        reader.next += len(action.blobs)
        held = reader.next - 1 - reader.used
        most = self.farm.mix.settings.stream_window_items + CHUNK_MAX + reader.missed
        assert held <= most, f"{what} is {held} items ahead of its reader"

    @staticmethod
    def used(task: Task, attempt: int, number: int) -> None:
        """The reader has used all up to this number."""
        reader = task.reader
        if reader is not None and reader.attempt == attempt:
            reader.used = max(reader.used, number)

    def missed(self, task: Task, action: m.Missed) -> None:
        """A client says that items cannot be had: somebody died, or the reader was not there."""
        reader = task.reader
        assert reader is not None
        assert not reader.over
        what = f"the stream of task {task.token}"
        if action.attempt != reader.attempt:
            assert action.attempt > reader.attempt
            reader.attempt, reader.run, reader.next = action.attempt, -1, 1
            reader.used = 0
        assert action.first == reader.next <= action.last, f"{what}: a gap {action} at {reader.next}"
        reader.missed += action.last - action.first + 1
        reader.next = action.last + 1
        gone = any(run.interrupted or not run.worker.alive or run.worker.lost for run in task.runs)
        cut_off = not (self.farm.mix.patient or self.farm.mix.calm)
        excused = reader.lazy or gone or task.unsure or cut_off
        assert excused, f"{what} has a gap that nobody is to blame for: {action}"
        self.farm.story.probe("a stream has a gap")

    def stream_over(self, task: Task) -> None:
        """A client says that this was all."""
        reader, outcome = task.reader, task.outcome
        assert reader is not None
        assert outcome is not None
        assert not reader.over
        reader.over = True
        self.unread.discard(task.token)
        self.farm.story.probe("a stream ends")
        if outcome.kind in (m.VALUE, m.ERROR, m.MIXED):
            whole = {run.emitted for run in task.runs if run.finished}
            assert reader.next - 1 in whole, (
                f"the stream of task {task.token} ended after {reader.next - 1} of {sorted(whole)} items"
            )
            assert reader.run < 0 or task.runs[reader.run].finished

    def stream_forgotten(self, task: Task) -> None:
        """A reader came so late that nothing is known of the stream any more."""
        assert task.reader is not None
        assert task.reader.lazy
        task.reader.over = True
        self.unread.discard(task.token)
