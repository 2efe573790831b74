"""What must hold of jobs in a simulated farm: what was said to be safe is there for whoever attaches next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.people import Task
from zfarm import messages as m
from zfarm.core.greeting import principal_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.farm import Farm
    from tests.simulation.processes import ClientProcess


class Inheritance:
    """Who speaks for which job, as an onlooker sees it."""

    farm: Farm
    known: dict[str, Any]
    by_peer: dict[Any, str]
    pending: set[int]
    numbers: dict[tuple[str, int], Task]
    abandon: Callable[[Task], None]
    changed: Callable[[], None]

    def __init__(self) -> None:
        super().__init__()
        self._speaker: dict[str, str] = {}
        """The life that speaks for a job's session."""
        self._former: dict[str, set[str]] = {}
        """Those that did before it."""
        self.new_books_at: dict[str, float] = {}
        """When a client, or who had its job before, heard last that the broker has other books."""
        self.departed: dict[str, tuple[str, float]] = {}
        """Sessions that were given up: who spoke for them last, and the number of its last Hello."""

    def may_speak(self, session: str, life: str) -> bool:
        """The broker takes the word of this life for that of the session; the first one founds a job."""
        if session not in self.farm.broker.machine.clients:
            self._speaker.pop(session, None)
            self._former.pop(session, None)
        return not life or self._speaker.setdefault(session, life) == life

    def comes_late(self, key: str, message: m.Hello | m.Join) -> bool:
        """Its sender has said another one since, over a later link, or goodbye."""
        known = self.known.get(key)
        if known is None and isinstance(message, m.Hello) and key in self.departed:
            life, last = self.departed[key]
            if life != message.life:
                self.farm.story.probe("a job was taken over, and has ended since")
                return True
        else:
            last = 0 if known is None else known.beat
        late: bool = (message.beat if isinstance(message, m.Join) else message.number) < last
        if late:
            self.farm.story.probe(f"a {type(message).__name__} is overtaken by a later one")
        return late

    def leaves_late(self, peer: Any, message: m.Message) -> str | None:
        """Whose goodbye this is, if it comes over a link that is said to be dead: it counts."""
        gone = (session for session, known in self.known.items() if known.peer == peer)
        return next(gone, None) if isinstance(message, m.Bye) else None

    def speaker_of(self, session: str) -> str:
        """The life that speaks for the job of this session; empty: it has none."""
        return self._speaker.get(session, "")

    def speaks(self, client: ClientProcess) -> bool:
        """So it does of this client."""
        return not client.job or self._speaker.get(client.session, client.life) == client.life

    def attaches(self, message: m.Attach, principal: str) -> None:
        """The broker is about to hear that a client takes a job over, which it may not know."""
        broker = self.farm.broker.machine
        for session, client in broker.clients.items():
            if client.job != message.job or self._speaker.get(session) == message.life:
                continue
            if broker.stalled and broker.stall.enrols(session):
                self.farm.story.probe("not taken over, and the disk is full")
                continue
            if principal_of(session) != principal:
                continue
            if message.life in self._former.get(session, ()):
                self.farm.story.probe("asked twice, and taken over in between")
            else:
                self._hand_over(session, message.life)

    def _hand_over(self, session: str, life: str) -> None:
        full = self.farm.broker.machine.stalled
        self.farm.story.probe("taken over while the disk is full" if full else "a job is taken over")
        self._former.setdefault(session, set()).add(self._speaker.get(session, ""))
        self._speaker[session] = life
        known = self.known[session]
        self.by_peer.pop(known.peer, None)
        known.peer = None
        known.beat = 0

    def lives_again(self) -> None:
        """A broker that died before it wrote who speaks for a job does not know it."""
        if self.farm.disk is not None:
            self._speaker = dict(self.farm.disk.lives)
            self._former = {session: set(former) for session, former in self.farm.disk.former.items()}

    def goes_on(self, session: str) -> bool:
        """The client has left, and its tasks outlive it."""
        client = self.farm.broker.machine.clients.get(session)
        return client is not None and bool(client.job)

    def taken_over(self, client: ClientProcess, tasks: list[m.JobTask]) -> list[tuple[m.JobTask, int]]:
        """A client hears which tasks the job has that it attached to: all that were safe and are open."""
        disk, session = self.farm.disk, client.session
        if disk is not None:
            lives = {disk.lives.get(session), *disk.former.get(session, ())}
            assert client.life in lives, f"{client.name} has job {client.job}, and that is not on the disk"
        pairs = [(told, self.numbers[client.session, told.task]) for told in tasks]
        if self.speaks(client):
            here = {task.token for _, task in pairs}
            for token in sorted(self.pending - here):
                task = self.farm.tasks[token]
                if task.client == client.name:
                    assert not task.safe, f"task {token} was safe, and is lost: {task}"
                    self.abandon(task)
            for _, task in pairs:
                task.asked_by = client
            self.changed()
        return [(told, task.token) for told, task in pairs]

    def shown_again(self, client: ClientProcess, task: Task, outcome: m.Outcome) -> None:
        """Two programs that had the job one after the other hear of one outcome, which is the same."""
        assert client not in task.shown_to, f"task {task.token} was resolved twice"
        task.shown_to.append(client)
        before = task.outcome
        assert before is not None
        same = (before.kind, before.deaths, before.tries) == (outcome.kind, outcome.deaths, outcome.tries)
        assert same, f"task {task.token} ended twice: {before}, {outcome}"
        self.farm.story.probe("an outcome for two programs")

    def rejected(self, client: ClientProcess, code: str) -> None:
        """The broker has refused a client: its job has another speaker, or there is no such job."""
        farm = self.farm
        assert client.job, f"{client.name} was refused: {code}"
        disk = farm.disk
        busy = code == "FarmBusy" and disk is not None and disk.was_full
        assert busy or code in ("JobTakenOver", "JobUnknown"), code
        if client is not farm.clients[client.name]:
            self.former_ended(client)
            return
        others = [one for one in farm.former if one.name == client.name and one.alive]
        if others:  # an older one attached last
            farm.clients[client.name] = others[-1]
            farm.former.remove(others[-1])
            farm.former.append(client)
            self.former_ended(client)
            return
        tasks = [farm.tasks[token] for token in sorted(self.pending)]
        mine = [task for task in tasks if task.client == client.name]
        known = disk.sessions if disk is not None else ()
        begun = any(task.asked_by is not None and task.asked_by.session in known for task in mine)
        # by one who is dead, and whose word came late; or the word did which was true before the job began
        if code != "JobUnknown" or begun:
            client.over = False
            farm.comes_back(client)
            return
        for task in mine:
            assert not task.safe, f"task {task.token} was safe, and its job is lost: {task}"
            self.abandon(task)
        self.changed()

    def former_ended(self, client: ClientProcess) -> None:
        """A client that had a job has ended: what programs before it asked for, and nobody has, is lost."""
        present = self.farm.clients[client.name]
        if not present.attaching:
            for token in sorted(self.pending):
                asker = self.farm.tasks[token].asked_by
                assert asker is not None
                if asker.name == client.name and asker is not present and not asker.alive:
                    self.abandon(self.farm.tasks[token])
            self.changed()
