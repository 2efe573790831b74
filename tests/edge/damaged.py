"""A program whose links have a byte damaged on the way, and end a little later; it prints how many it had.

A program of its own, for the library may crash it.
"""

from __future__ import annotations

import time

from tests.edge.waiting import until
from tests.integration.proxy import DOWN, Proxy
from zfarm.edge import redial, sockets
from zfarm.edge.ports import DealerPort, RouterPort
from zfarm.edge.security import Access, ServerKeys
from zfarm.edge.sockets import close_context, new_context
from zfarm.edge.zap import Doorkeeper, table_of

ROUNDS = 5
PING_MS = 10


def main() -> None:
    """Be a broker and its client, with a proxy in between."""
    sockets.HEARTBEAT_MS = PING_MS  # type: ignore[misc]
    redial.REDIAL_S = (1.0, 1.0)  # type: ignore[misc]
    context, keys = new_context(), ServerKeys.fresh()
    doorkeeper = Doorkeeper(context, table_of(keys.roles))
    doorkeeper.start()
    router = RouterPort(context, "tcp://127.0.0.1:*", keys.server)
    with Proxy(int(router.address.rpartition(":")[2])) as proxy:
        access = Access(f"tcp://127.0.0.1:{proxy.port}", "", keys.server.public, keys.roles["client"])
        dealer = DealerPort(context, access)

        def work() -> None:
            dealer.watch_link()
            dealer.flush()
            router.flush()

        for number in range(ROUNDS):
            until(lambda: dealer.up, work)
            dealer.send([b"hello"])
            (got,) = until(router.receive, work)
            proxy.corrupt(DOWN)
            router.send(got.peer, [b"damaged"])
            until(lambda: proxy.corrupted > number, work)  # noqa: B023
            time.sleep(5 * PING_MS / 1000)  # it is read, by the library's thread
            proxy.reset()
            time.sleep(5 * PING_MS / 1000)  # pings are due
            until(lambda: not dealer.up, work)
        until(lambda: dealer.up, work)
        print(proxy.links)
        dealer.close()
    router.close()
    doorkeeper.stop()
    close_context(context)


if __name__ == "__main__":
    main()
