"""Leases from before the broker was started, on tasks that their client does not want any more."""

from __future__ import annotations

import msgspec
import pytest

from tests.core.rigs import EPOCH, HELLO, JOIN, SAID, BrokerRig, submit
from zfarm.messages import Beat, Cancel, Forget, Held, Revoke, Send


@pytest.mark.parametrize("first", ["worker", "client", "client and its task"])
def test_a_lease_of_an_earlier_broker_on_a_cancelled_task_is_stopped_soon(first: str) -> None:
    rig = BrokerRig()
    old = EPOCH - 1 << 32 | 5

    def join() -> None:
        rig.say("W", msgspec.structs.replace(JOIN, held=[Held(old, "c", 1, True)]))

    if first == "worker":
        join()
    rig.say("C", HELLO)
    if first == "client and its task":
        rig.say("C", *submit(1))
    rig.say("C", Cancel([1], force=True, grace_us=1_000_000))
    rig.say("C", Forget([1]))
    if first != "worker":
        join()

    assert rig.machine.orphans.leases() == {old}, "the client may ask for it even so"
    for _ in range(10):
        rig.turn(after=0.5)
    assert not rig.machine.orphans.leases()
    assert Send("W", Revoke([old], force=True)) in rig.say("W", Beat(SAID + 2, [old], 2))
