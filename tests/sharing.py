"""How the files of tests are shared among processes; it knows no test.

A process that dies under a test fails that test, and costs no other. By itself xdist (3.8) gives the test to
the next process, which dies of it, too, and shares files again of which nothing is left to do: who gets one
last waits for ever, and the whole run with it.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

__all__ = ["Sharing", "pytest_xdist_make_scheduler"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing | None:
    """Share files so; other ways of sharing are as they were."""
    return Sharing(config, log) if config.getoption("dist") == "loadfile" else None


class Sharing(LoadFileScheduling):
    """Files of tests, and the process that each is given to."""

    def remove_node(self, node: WorkerController) -> str | None:
        """A process has ended: the test under which it died; None when it had done all that it was given."""
        left = []
        for name, tests in self.assigned_work.pop(node).items():
            left += [(name, test) for test, done in tests.items() if not done]
        if not left:
            return None
        for name, test in left[1:]:
            self.workqueue.setdefault(name, {})[test] = False
        for other in self.nodes:
            self._reschedule(other)
        return left[0][1]

    def _reschedule(self, node: WorkerController) -> None:
        """Give ``node`` what it can begin with: it begins a test when it knows the next, or that none is."""
        if node in self.registered_collections:  # else it has been started just now, and is asked later
            super()._reschedule(node)
            while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                super()._reschedule(node)
