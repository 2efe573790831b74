"""Farms whose broker takes less than its peers would say: which calls and results are too large for it, and
what must hold then."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import TYPE_CHECKING, Any

from zfarm import messages as m

if TYPE_CHECKING:
    from tests.simulation.farm import Farm
    from tests.simulation.faults import Mix
    from tests.simulation.people import Task
    from zfarm.core.broker import Broker
    from zfarm.settings import Settings

BLOB_MAX = 8000
BALLAST = b" " * BLOB_MAX
JUDGED = (m.TIMEOUT, m.MEMORY, m.MISSING, m.OVERSIZED)
"""Kinds in which the last of ``deaths`` is no death."""


def _share(mix: Mix) -> float:
    """Of the calls that are large, or have large results. Not on a disk, which has room for little."""
    return 0.0 if mix.journal else Random(f"narrow {mix.seed}").choice((0.0, 0.0, 0.1, 0.5))


def settings_of(farm: Farm, epoch: int) -> Settings:
    """Those of this broker: one that is started again may take more, or less, than the one before."""
    narrow = _share(farm.mix) and Random(f"narrow {farm.mix.seed} {epoch}").random() < 0.7
    limits = farm.mix.settings
    return dataclasses.replace(limits, payload_bytes_max=BLOB_MAX) if narrow else limits


def burden(task: Task, mix: Mix) -> None:
    """Make the call large, or its result, or neither."""
    share = _share(mix)
    rng = Random(f"narrow {mix.seed} {task.token}")
    if share and rng.random() < share:
        task.ballast = rng.choice((BALLAST, b"", b""))
        task.gives = b"" if task.ballast else BALLAST


def judge_message(farm: Farm, broker: Broker, peer: Any, message: m.Message, payload: m.Payload) -> None:
    """A message has come to the broker: whoever was welcomed knows how large a blob may be."""
    large = [len(blob) for blob in payload if len(blob) > broker.limits.payload_bytes_max]
    if large:
        assert peer not in broker.peers, f"{peer} was welcomed, and says blobs of {large} bytes: {message}"
        farm.story.probe("said what the next broker does not take")


def judge_oversized(what: str, task: Task) -> None:
    """It has ended since something was too large."""
    assert task.outcome is not None
    assert task.asked_by is not None
    probe = task.asked_by.farm.story.probe
    text = task.outcome.deaths[-1].text
    if text.startswith("the call"):
        assert task.ballast, f"{what} is not large: {text}"
        probe("a call is too large for its broker")
    else:
        assert task.gives, f"{what} gives nothing large: {text}"
        assert any(run.finished for run in task.runs), f"{what} has given nothing: {text}"
        probe("a result is too large for its broker")
