"""The files that simulated calls need: who has them, the stores of workers, and what must hold of both.

A store belongs to a host, so the lives of a worker share it. What no lease names may vanish from it at any
moment; what one names must be there, whole and true, while its call runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from tests.simulation.handles import Pins
from tests.simulation.lane import Lane
from zfarm import messages as m
from zfarm.core.errands import plain
from zfarm.core.lacking import DAMAGED, FAR, FINAL

if TYPE_CHECKING:
    from random import Random

    from tests.simulation.farm import Farm
    from tests.simulation.people import Task
    from tests.simulation.processes import ClientProcess, WorkerProcess

CHUNK = 8
"""Bytes of a chunk in here."""


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=m.DIGEST_BYTES).digest()


@dataclass(slots=True, eq=False)
class Content:
    """What is in a blob, and of a directory the files that it lists."""

    data: bytes
    parts: tuple[m.Need, ...] = ()


class Library:
    """All blobs that there are in one farm."""

    def __init__(self, rng: Random) -> None:
        self.contents: dict[bytes, Content] = {}
        self.gone: set[bytes] = set()
        """Those that no client can give any more."""
        self.lies: set[bytes] = set()
        """Those that never come as they should."""
        files = [self._file(rng, rng.choice((0, 3, CHUNK, 20, 60))) for _ in range(rng.randint(1, 6))]
        trees = [self._tree(n, rng.sample(files, rng.randint(0, len(files)))) for n in range(2)]
        self.all = [*files, *trees]

    def archived(self, needs: tuple[m.Need, ...], share: float, token: int) -> tuple[m.Need, ...]:
        """The same, some of them out of the archive: for one task the same file, and for another not."""
        return tuple(
            m.Need(need.digest, need.size, need.tree, (need.digest[0] + 77 * token) % 256 < share * 256)
            for need in needs
        )

    def _file(self, rng: Random, size: int) -> m.Need:
        data = rng.randbytes(size)
        self.contents[digest(data)] = Content(data)
        return m.Need(digest(data), size)

    def _tree(self, number: int, parts: list[m.Need]) -> m.Need:
        data = b"%d" % number + b"".join(need.digest[:5] for need in parts)
        self.contents[digest(data)] = Content(data, tuple(parts))
        return m.Need(digest(data), len(data), True)


@dataclass(slots=True, eq=False)
class Store:
    """The files of one host."""

    whole: set[m.Need] = field(default_factory=set)
    parts: dict[m.Need, bytearray] = field(default_factory=dict)
    locked: dict[m.Need, Shelf] = field(default_factory=dict)
    """Who writes it."""
    pins: Pins = field(default_factory=Pins)


class Shelf:
    """One worker's life at the store of its host: the thread that does what its machine wants."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        self.farm: Farm = worker.farm
        self.store = self.farm.stores.setdefault(worker.name, Store())
        self.pins: dict[int, m.Need] = {}
        self.place = f"store of {worker.name}", f"host-{worker.name}/1"
        """What a child has to know before it runs a call with needs."""
        self._damaged: set[int] = set()
        self._twice: set[int] = set()
        """Parts of directories that somebody else got after it was told that they are missing."""
        self._lane = Lane(self.farm)
        self.store.pins.lose_some(self.farm)

    def do(self, action: Any) -> None:
        """Soon, and in order."""
        pause = self.farm.rng.random() * self.farm.rng.choice((1e-4, 1e-3, 0.05))
        self._lane.push(pause, partial(self._do, action))

    def _do(self, action: Any) -> None:
        if not self.worker.alive:
            return
        self.worker.machine.store = self.place[0]  # it is open, before the first answer
        if isinstance(action, m.SeekBlob):
            self._seek(action.errand, action.need)
        elif isinstance(action, m.StoreChunk):
            self._store_chunk(action)
        elif isinstance(action, m.PinBlobs):
            self._pin(action.pin)
        elif isinstance(action, m.BuildTree):
            self._build(action.errand, action.need)
        else:
            self._drop(action.errand, action.need)

    def _pin(self, pin: m.Pin) -> None:
        farm = self.farm
        known = self.store.pins.follow(pin, farm.now, farm.mix.settings.pins_kept_s, self.store.whole)
        farm.story.probe(
            "a store hears of handles" if not pin.over else "a store hears that a client is gone"
        )
        if known is not None:
            if not known:
                farm.story.probe("a store knows nothing of a client")
            self._say("pinned", m.Pinned(pin.at, pin.number, known, pin.owner))
        self.evict()

    def _say(self, name: str, *arguments: Any) -> None:
        self.worker.hand("call", name, *arguments)

    def _seek(self, errand: int, need: m.Need) -> None:
        store, rng = self.store, self.farm.rng
        self.pins[errand] = need
        if need in store.whole:
            self.farm.story.probe("a file was there")
            self._say("blob_found", errand, need.size, ())
        elif self.farm.chaos and rng.random() < self.farm.mix.disk_failures:
            self._say("blob_failed", errand, "the disk is full", FINAL)
            self.farm.books.excused.add(need)
        elif need.tree:
            listed = m.Need(need.digest, need.size)
            wanted = [listed]
            if listed in store.whole:
                wanted = [part for part in self._content(need).parts if part not in store.whole]
            self._say("blob_found", errand, 0 if need.size else need.size, tuple(wanted))
        elif store.locked.get(need, self) is not self and store.locked[need].worker.alive:
            self.farm.story.probe("another worker fetches it")
            self._say("blob_found", errand, -1, ())
        elif not need.size:
            store.whole.add(need)
            self._say("blob_found", errand, 0, ())
        else:
            store.locked[need] = self
            have = len(store.parts.setdefault(need, bytearray()))
            if have:
                self.farm.story.probe("a file goes on from where it was")
            self._say("blob_found", errand, have, ())

    def _content(self, need: m.Need) -> Content:
        return self.farm.library.contents[need.digest]

    def _store_chunk(self, action: m.StoreChunk) -> None:
        store, need, rng = self.store, action.need, self.farm.rng
        if action.errand not in self.pins:  # a part of a directory, which is not sought before
            if need in store.whole:
                self.farm.story.probe("a part came twice")
                self._twice.add(action.errand)
            self.pins[action.errand] = need
            store.locked.setdefault(need, self)
            store.parts.setdefault(need, bytearray())
        whole = self._content(need).data
        if action.errand in self._twice and need in store.whole:
            self._say(
                "blob_stored", action.errand, action.at + len(action.data) if action.data else need.size
            )
            return
        if action.path:
            if rng.random() < 0.5:
                self.farm.story.probe("a file is not where it was said to be")
                self._say("blob_failed", action.errand, "not there", FAR)
                return
            store.parts[need] = bytearray(whole)
        else:
            data = bytes(action.data)
            if digest(data) != action.check:
                self.farm.story.probe("a chunk came damaged")
                if action.errand in self._damaged:  # once is no excuse
                    self.farm.books.excused.add(need)
                self._damaged.add(action.errand)
                store.parts[need].clear()
                self._say("blob_failed", action.errand, "damaged", DAMAGED)
                return
            if action.at != len(store.parts[need]):
                return  # of before it came damaged
            true = whole[action.at : action.at + len(data)]
            assert data == true, f"{data!r} for {true!r}"
            assert need not in store.whole, f"what is there was sent again: {need}"
            store.parts[need] += data
        if len(store.parts[need]) == need.size:
            assert bytes(store.parts.pop(need)) == whole
            store.locked.pop(need, None)
            store.whole.add(need)
        self._say("blob_stored", action.errand, len(store.parts.get(need, whole)))

    def _build(self, errand: int, need: m.Need) -> None:
        needed = (m.Need(need.digest, need.size), *self._content(need).parts)
        missing = [part for part in needed if part not in self.store.whole and part.size]
        assert not missing, f"a directory is made, and these are missing: {missing}"
        self.store.whole.add(need)
        self.farm.story.probe("a directory was made")
        self._say("blob_stored", errand, need.size)

    def _drop(self, errand: int, need: m.Need) -> None:
        self.pins.pop(errand, None)
        if self.store.locked.get(need) is self and need not in self.pins.values():
            del self.store.locked[need]
        self.evict()

    def evict(self) -> None:
        """What no lease names may go at any moment; while a directory is made nothing does."""
        alive = [w.shelf for w in self.farm.all_workers() if w.shelf.store is self.store]
        pinned = {need for shelf in alive for need in shelf.pins.values()}
        building = any(need.tree and need not in self.store.whole for need in pinned)
        if building or self.farm.rng.random() < 0.5:
            return
        pinned |= self.store.pins.pinned(self.farm.now, self.farm.mix.settings.pins_kept_s)
        for need in sorted(self.store.whole - pinned, key=lambda need: (need.digest, need.tree)):
            if self.farm.rng.random() < 0.5:
                self.store.whole.discard(need)
        self.farm.books.judge_kept(self.store)

    def check(self, task: Task) -> None:
        """A call runs: all that it needs is there."""
        for need in map(plain, task.needs):
            assert need in self.store.whole, f"task {task.token} runs without {need}"
        if task.needs:
            self.farm.story.probe("a call has its files")


def closure(farm: Farm, task: Task, archived: bool) -> set[bytes]:
    """The digests of all that a task needs of its client, or of the archive."""
    contents = farm.library.contents
    tops = [top for top in task.needs if top.archived == archived]
    return {need.digest for top in tops for need in (top, *contents[top.digest].parts)}


def read(farm: Farm, wants: list[m.Wanted]) -> tuple[list[m.Chunk], list[bytes]]:
    """The chunks that are wanted, as whoever has them gives them today."""
    rng, mix = farm.rng, farm.mix
    chunks: list[m.Chunk] = []
    payload: list[bytes] = []
    for one in wants:
        if rng.random() < mix.gone_share * farm.chaos:
            farm.library.gone.add(one.digest)
        data = farm.library.contents[one.digest].data
        if one.digest in farm.library.gone:
            chunks.append(m.Chunk(one.digest, one.size, text="it is gone"))
            payload.append(b"")
            continue
        if mix.near_share and not one.far:
            chunks.append(m.Chunk(one.digest, one.size, path="/near"))
            payload.append(b"")
            continue
        for at in range(one.at, one.upto, CHUNK):
            part = data[at : at + CHUNK]
            check = digest(part)
            if rng.random() < mix.damage_share * farm.chaos or one.digest in farm.library.lies:
                part = bytes(len(part))
                check = digest(b"other")
            chunks.append(m.Chunk(one.digest, one.size, at, check))
            payload.append(part)
    return chunks, payload


def give(client: ClientProcess, action: m.Give) -> None:
    """A client's thread reads chunks and sends them."""
    farm = client.farm
    task = farm.tasks[action.token]
    own = closure(farm, task, archived=False)
    for one in action.wants:
        assert one.digest in own, f"task {task.token} does not need {one} of its client"
    chunks, payload = read(farm, action.wants)
    most = farm.mix.settings.batch_calls_max
    for start in range(0, len(chunks), most):
        message = m.Chunks(action.lease, action.task, chunks[start : start + most])
        client.send(message, payload[start : start + most])
