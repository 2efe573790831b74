"""What must hold of charges and turns in a simulated farm: every lease that ends is paid for, and whoever has
paid least has the next turn."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tests.simulation.elsewhere import Elsewhere
from zfarm import messages as m
from zfarm.core.accounts import Account

if TYPE_CHECKING:
    from zfarm.core.books import ClientRecord

ROUNDING_US = 1.0


class Charges(Elsewhere):
    """What accounts have been charged with, beside what the broker hears of their leases."""

    def __init__(self) -> None:
        super().__init__()
        self._paid: dict[Account, float] = {}
        """For leases that are over, up to the last turn."""
        self._least: defaultdict[Account, float] = defaultdict(float)
        """What this turn has to add to that at least."""
        self._last_lease = 0
        self._were_ready: set[str] = set()

    def aside_again(self) -> None:
        """A new broker has charged nobody yet, either."""
        super().aside_again()
        self._paid.clear()
        self._least.clear()
        self._last_lease = 0
        self._were_ready.clear()

    def tells_of_deaths(self, session: str, report: m.Report) -> None:
        """A worker says how a lease has ended, and for how long it had a child."""
        super().tells_of_deaths(session, report)
        worker = self.farm.broker.machine.workers.get(session)
        task = worker.leases.get(report.lease) if worker is not None else None
        if task is not None:
            least = self.farm.mix.settings.charge_least_us
            owed = max(report.run_us, report.held_us) - task.paid_us  # that when its worker was lost
            self._least[task.client.account] += max(owed, least)

    def judge_aside(self) -> None:
        """Right after a turn of the broker."""
        super().judge_aside()
        broker = self.farm.broker.machine
        least = self.farm.mix.settings.charge_least_us
        paid = {client.account: client.account.served_us for client in broker.clients.values()}
        new: dict[Account, float] = {}
        last_lease, epoch = self._last_lease, broker.epoch
        highest = last_lease
        for worker in broker.workers.values():
            for lease, task in worker.leases.items():
                account = task.client.account
                charged_us = max(task.expected_us, least)
                if account in paid:  # else it outlived its client, which others judge
                    paid[account] -= charged_us
                if lease > last_lease:
                    highest = max(highest, lease)
                    if lease >> 32 == epoch:
                        new[account] = new.get(account, 0.0) + charged_us
        for account, now_us in paid.items():
            before = self._paid.get(account)
            if before is not None:
                took, owed = now_us - before, self._least[account]
                assert took >= owed - ROUNDING_US, f"{account.name} pays {took} us, and owes {owed} us"
        self._judge_turns(new)
        self._paid = paid
        self._least.clear()
        self._last_lease = highest
        self._were_ready = set(broker.ready)

    def _judge_turns(self, new: dict[Account, float]) -> None:
        """Nobody was granted a call while somebody who had paid less had one that could run there too."""
        broker, mix = self.farm.broker.machine, self.farm.mix
        if mix.choosy_share or mix.needs_share or mix.exclusive_share or broker.leaving:
            return  # what fits nowhere is passed over
        for session in self._were_ready & set(broker.ready):
            client = broker.ready[session]
            if not self._waits(client):
                continue
            self.farm.story.probe("somebody waits for a turn")
            has_us = client.account.served_us + ROUNDING_US
            for other, charged_us in new.items():
                had_us = other.served_us - charged_us
                assert other is client.account or had_us <= has_us, (
                    f"{other.name} has a turn with {had_us} us before {session} with {has_us} us"
                )

    @staticmethod
    def _waits(client: ClientRecord) -> bool:
        return any(task.worker is None and task.outcome is None and not task.until for task in client.queue)
