"""A dashboard whose link is damaged goes on: notes come again, without anybody's doing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.face.processes import TcpFarm, wait_until
from tests.integration.proxy import Proxy
from zfarm.edge import redial, sockets
from zfarm.edge.security import MONITOR, load_connection
from zfarm.messages import Note
from zfarm.monitor import Monitor


@pytest.mark.parametrize("harm", [Proxy.corrupt, Proxy.reset], ids=["a damaged byte", "a reset"])
def test_notes_go_on_after_their_link_was_harmed(
    farm: TcpFarm, harm: Callable[[Proxy], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redial, "STUCK_S", (0.0, 0.1))
    monkeypatch.setattr(sockets, "HEARTBEAT_MS", 600_000)  # else the library finds it out in 20 seconds
    monkeypatch.setattr(sockets, "HEARTBEAT_TIMEOUT_MS", 600_000)
    farm.start_broker()
    access = load_connection(farm.connection).access(MONITOR)
    notes_port = int(access.notes_address.rpartition(":")[2])
    heard: list[Note] = []
    with Proxy(notes_port) as proxy:
        watched = replace(access, notes_address=f"tcp://127.0.0.1:{proxy.port}")
        with Monitor(lambda: watched) as monitor:
            monitor.follow(heard.append)

            def more() -> bool:
                monitor.loop.turn(0.05)
                return len(heard) > before

            before = 0
            wait_until(more, "a note")
            harm(proxy)
            wait_until(lambda: more() and proxy.links > 1, "a new link")
            before = len(heard)
            wait_until(more, "a note that came by it")
            assert monitor.trouble is None
