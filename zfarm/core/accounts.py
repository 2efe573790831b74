"""What principals have in the broker's books all together, whatever number of sessions they come with: tasks,
bytes, and turns. It knows no message.

On a local socket all peers are the one user of it, who needs no limit against himself: there each session has
an account of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zfarm.core.greeting import LOCAL, principal_of

if TYPE_CHECKING:
    from zfarm.core.books import ClientRecord, Function

__all__ = ["Account", "Accounts", "Kit"]

DEBTS_MAX: Final = 1024
"""Principals without a session whose debts are remembered; the oldest is forgiven first."""


class Account:
    """One principal: its sessions, and what they have together."""

    __slots__ = ("bytes", "name", "served_us", "sessions", "tasks", "turn_us")

    def __init__(self, name: str) -> None:
        self.name = name
        self.sessions: dict[str, ClientRecord] = {}
        self.tasks = 0  # outcomes that are kept included
        self.bytes = 0  # of bodies that wait or run, of outcomes that are kept, and of kits
        self.served_us = 0.0  # time that its calls held slots, and where it has begun; see zfarm.core.turns
        self.turn_us = 0.0  # what that session had been served with that had its last turn


class Accounts:
    """All of them, what they have together, and the jobs of each, by name."""

    def __init__(self) -> None:
        self.bytes = 0  # of all accounts
        self.contended_until = 0.0  # several clients have been granted something lately
        self._leased_by = 0  # the books of the client that was granted something last
        self._accounts: dict[str, Account] = {}
        self._jobs: dict[tuple[str, str], ClientRecord] = {}
        self._debts: dict[str, tuple[float, float]] = {}
        """What principals without a session had been served with, and until when that is remembered."""

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, principal: str) -> Account | None:
        """The account of a principal with a key that has sessions."""
        return self._accounts.get(principal)

    def job(self, principal: str, job: str) -> ClientRecord | None:
        """The client behind a job of this principal; what others call their jobs is nobody's business."""
        return self._jobs.get((principal, job))

    def jobs(self, principal: str) -> list[str]:
        """The jobs of this principal, in alphabetical order."""
        return sorted(job for owner, job in self._jobs if owner == principal)

    def open(self, client: ClientRecord, now: float) -> Account:
        """Enter a session; the account that it has a part in. Who comes back owes what he owed."""
        principal = principal_of(client.session)
        name = f"{LOCAL}/{client.session}" if principal == LOCAL else principal
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(name)
            served_us, until = self._debts.pop(name, (0.0, now))
            if now < until:
                account.served_us = served_us
        account.sessions[client.session] = client
        if client.job:
            self._jobs.setdefault((principal, client.job), client)
        return account

    def leases(self, client: ClientRecord, until: float) -> None:
        """This client is granted something; if the last one was another, both want the slots until then."""
        if client.books != self._leased_by:
            self.contended_until = until if self._leased_by else 0.0
            self._leased_by = client.books

    def kit(self, client: ClientRecord, function: Function, setup: bytes) -> Kit:
        """What a new task of this client with these has in common with others."""
        kit = client.kits.get((function, setup))
        if kit is not None:
            return kit
        size = self._use(client, function)
        setup, used = client.setups.get(setup, (setup, 0))
        if not used:
            size += len(setup)
        client.setups[setup] = setup, used + 1
        client.account.bytes += size
        self.bytes += size
        kit = client.kits[function, setup] = Kit(function, setup)
        return kit

    def discard(self, client: ClientRecord, kit: Kit) -> bool:
        """The last task with this kit is gone; whether nobody needs its function any more."""
        function, setup = kit.function, kit.setup
        del client.kits[function, setup]
        size = 0
        setup, used = client.setups.pop(setup)
        if used > 1:
            client.setups[setup] = setup, used - 1
        else:
            size += len(setup)
        size += self._use_no_more(client, function)
        client.account.bytes -= size
        self.bytes -= size
        return not function.refs

    def name(self, client: ClientRecord, function: Function) -> None:
        """From now on this client may name that function, which it has sent."""
        size = self._use(client, function)
        client.names[function.digest] = function
        client.named_bytes += len(function.blob)
        client.account.bytes += size
        self.bytes += size

    def unname(self, client: ClientRecord, digest: bytes) -> Function:
        """This client would have to send it again; the function, which nobody may need any more."""
        function = client.names.pop(digest)
        size = self._use_no_more(client, function)
        client.named_bytes -= len(function.blob)
        client.account.bytes -= size
        self.bytes -= size
        return function

    @staticmethod
    def _use(client: ClientRecord, function: Function) -> int:
        """A kit or a name of this client needs it; the bytes that it has more for that."""
        used = client.functions.get(function, 0)
        client.functions[function] = used + 1
        if used:
            return 0
        function.refs += 1
        return len(function.blob)

    @staticmethod
    def _use_no_more(client: ClientRecord, function: Function) -> int:
        """One of them does not any more; the bytes that it has less for that."""
        used = client.functions.pop(function)
        if used > 1:
            client.functions[function] = used - 1
            return 0
        function.refs -= 1
        return len(function.blob)

    def close(self, client: ClientRecord, now: float, others_us: float) -> None:
        """Strike a session without tasks, and the account with its last one. If that has had more than
        ``others_us``, it is remembered for as long as it has had more."""
        account = client.account
        del account.sessions[client.session]
        if not account.sessions:
            del self._accounts[account.name]
            if account.served_us > others_us and not account.name.startswith(f"{LOCAL}/"):
                until = now + (account.served_us - others_us) / 1e6
                self._debts[account.name] = account.served_us, until
                if len(self._debts) > DEBTS_MAX:
                    del self._debts[next(iter(self._debts))]
        key = principal_of(client.session), client.job
        if self._jobs.get(key) is client:
            del self._jobs[key]

    def sweep(self, now: float, others_us: float) -> None:
        """Forget the debts that others have caught up with, or time has."""
        debts = self._debts.items()
        self._debts = {name: debt for name, debt in debts if debt[0] > others_us and now < debt[1]}

    def check(self, clients: dict[str, ClientRecord]) -> None:
        """Every session is in one account, which has what its sessions have."""
        found: dict[str, ClientRecord] = {}
        for account in self._accounts.values():
            assert account.sessions, "an account without a session"
            found.update(account.sessions)
            sessions = account.sessions.values()
            assert account.tasks == sum(len(client.tasks) for client in sessions)
            assert account.bytes == sum(client.held_bytes() for client in sessions)
        assert not self._debts.keys() & self._accounts.keys(), "who is here owes nothing from before"
        assert self.bytes == sum(account.bytes for account in self._accounts.values())
        assert found == clients
        assert all(client.job == job for (_, job), client in self._jobs.items())


class Kit:
    """A function with a setup, as tasks of one client share them; both are counted while one does."""

    __slots__ = ("function", "refs", "setup")

    def __init__(self, function: Function, setup: bytes) -> None:
        self.function = function
        self.setup = setup
        self.refs = 0  # tasks
