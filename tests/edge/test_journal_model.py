"""The journal against a dict: any sequence of turns, refused turns and reopenings gives what it says."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.edge.journal_model import (
    Model,
    Pairs,
    accepted,
    begun,
    dropped,
    enrolled,
    forgotten,
    per_client,
    retried,
    settled,
    struck,
)
from zfarm.edge.journal import Journal
from zfarm.errors import ConfigurationError
from zfarm.settings import settings

LIMITS = replace(settings, journal_file_from_bytes=64, journal_checkpoint_bytes=20_000)

clients = st.sampled_from(["a", "b", "c"])
tasks = st.integers(0, 12)
blobs = st.binary(max_size=4) | st.sampled_from([b"x" * 64, b"y" * 300])
records = st.one_of(
    st.builds(enrolled, clients, host=st.sampled_from(["h", "i"]), job=st.sampled_from(["", "j"])),
    *[st.builds(accepted, tasks, clients, blobs, blobs)] * 4,
    *[st.builds(settled, tasks, clients, blobs)] * 3,
    st.builds(struck, tasks, clients),
    st.builds(retried, tasks, clients, st.integers(1, 1000)),
    st.builds(begun, tasks, clients, st.sampled_from([0, -1, 7 << 32 | 1])),
    st.builds(
        lambda client, numbers: forgotten(*numbers, client=client), clients, st.lists(tasks, max_size=5)
    ),
    st.builds(dropped, clients),
)


class Life(RuleBasedStateMachine):
    """One journal through its life."""

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.mkdtemp()
        self.path = Path(self.directory) / "journal"
        self.model = Model()
        self.journal = Journal(self.path, LIMITS)
        self.fresh = False

    def fits(self, pairs: Pairs) -> Pairs:
        """Without the Accepted of clients that are not enrolled then."""
        known = set(self.model.clients)
        fitting = []
        for record, payload in pairs:
            kind = type(record).__name__
            if kind == "Accepted" and record.client not in known:
                continue
            if kind == "Enrolled":
                known.add(record.client)
            elif kind == "Dropped":
                known.discard(record.client)
            fitting.append((record, payload))
        return fitting

    @rule(pairs=st.lists(records, min_size=1, max_size=12))
    def turn(self, pairs: Pairs) -> None:
        pairs = self.fits(pairs)
        self.journal.append(pairs)
        self.model.apply(pairs)
        self.fresh = False

    @rule(pairs=st.lists(records, max_size=8))
    def refused_turn(self, pairs: Pairs) -> None:
        try:
            self.journal.append([*self.fits(pairs), accepted(1, "never enrolled")])
        except ValueError:
            self.fresh = False
        else:
            raise AssertionError("a turn that cannot be was taken")

    @precondition(lambda self: not self.fresh)
    @rule()
    def reopen(self) -> None:
        epoch = self.journal.epoch()
        self.journal.close()
        self.journal = Journal(self.path, LIMITS)
        assert self.journal.epoch() == epoch + 1
        self.fresh = True

    @rule()
    def compact(self) -> None:
        self.journal.compact()

    @rule()
    def second_opener(self) -> None:
        try:
            Journal(self.path, LIMITS)
        except ConfigurationError:
            return
        raise AssertionError("two have it open")

    @invariant()
    def replays_as_the_model_says(self) -> None:
        assert per_client(self.journal.replay()) == self.model.expected()
        stats = self.journal.stats()
        tasks = [task for client in self.model.clients.values() for task in client.tasks.values()]
        assert stats.clients == len(self.model.clients)
        assert stats.queued + stats.ended == len(tasks)
        assert stats.ended == sum(task.settled is not None for task in tasks)
        functions = {task.payload[0] for task in tasks if task.settled is None} - {b""}
        setups = {task.payload[1] for task in tasks if task.settled is None}
        assert stats.functions == len(functions | setups)
        large = [blob for blob in functions if len(blob) >= 64]
        large += [task.settled[1][0] for task in tasks if task.settled and len(task.settled[1][0]) >= 64]
        large += [task.payload[2] for task in tasks if not task.settled and len(task.payload[2]) >= 64]
        assert stats.blob_files == len(large)

    @invariant()
    def is_whole(self) -> None:
        self.journal.check()

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.directory)


TestLife = Life.TestCase
TestLife.settings = hypothesis_settings(max_examples=40, stateful_step_count=25, deadline=None)
