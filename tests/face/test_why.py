"""How ``zfarm why`` reads a task and says a reason; a farm behind it has tests/integration/test_why.py."""

from __future__ import annotations

import click
import pytest

from zfarm.face.why import read_task, sentence, snapshot
from zfarm.messages import Reason


@pytest.mark.parametrize(
    ("task", "read"), [("ab12/7", ("ab12", 7)), ("7", ("", 7)), ("host/881/7", ("host/881", 7))]
)
def test_a_task_is_named_by_its_client_and_number(task: str, read: tuple[str, int]) -> None:
    assert read_task(task) == read


@pytest.mark.parametrize("task", ["", "x", "ab/", "ab/-1", "1" * 30])
def test_what_names_no_task_is_refused_with_the_form_that_would(task: str) -> None:
    with pytest.raises(click.BadParameter, match="CLIENT/NUMBER"):
        read_task(task)


def test_a_reason_for_people_and_for_programs() -> None:
    reason = Reason(1, 7, "slots", "all slots are taken", "fit", "ab12")

    assert sentence(reason, "7") == "task ab12/7 (fit): all slots are taken"
    assert sentence(Reason(1, 7, "unknown", "nobody knows it"), "cd/7") == "task cd/7: nobody knows it"
    assert snapshot(reason) == {
        "format": 1, "client": "ab12", "task": 7, "call": "fit", "code": "slots",
        "reason": "all slots are taken",
    }  # fmt: skip
