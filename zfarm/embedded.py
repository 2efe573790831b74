"""The process of an embedded farm: the broker machine and one worker machine in one loop. What they decide
is in the core.

They hand each other messages in memory; only clients come in through a socket. The farm lives as long as
its client
holds the lifeline: when that pipe ends, in whatever way, the farm ends its children and itself.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from zfarm.edge.nursery import Nursery
from zfarm.edge.strays import adopt_strays, end_strays

if TYPE_CHECKING:
    from zfarm.edge.loop import Loop

__all__ = ["main"]

WORKER: Final = "worker"
"""The peer that the one worker is to the broker."""


def main(config: dict[str, Any]) -> None:
    """Run the farm of ``config``: directory, slots, lifeline and ready (descriptors).

    Returns when the lifeline has ended. One line of JSON goes to ``ready``: the addresses, or the error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for the client, who decides
    # the program's standard error is the program's: what happens to its calls it hears from their futures
    logging.getLogger("zfarm").addHandler(logging.NullHandler())
    nursery = Nursery.start()  # before ZeroMQ is imported: it forks children, and must have no threads
    adopt_strays()  # a nursery that is killed cannot end them
    ready = config["ready"]
    try:
        farm = _Farm(config, nursery)
    except Exception as error:
        _tell(ready, {"error": f"{type(error).__name__}: {error}"})
        raise
    _tell(ready, farm.addresses)
    os.close(ready)
    try:
        farm.loop.run()
    finally:
        farm.close()
        end_strays()


def _tell(ready: int, words: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):  # the program has died meanwhile, and the lifeline will say so, too
        os.write(ready, json.dumps(words).encode() + b"\n")


class _Farm:
    """Broker and worker around one loop."""

    def __init__(self, config: dict[str, Any], nursery: Nursery) -> None:
        from zfarm.brokershell import BrokerShell, new_epoch, own_versions, tune_collector
        from zfarm.edge.lender import Lender, can_open
        from zfarm.edge.loop import Loop
        from zfarm.edge.security import Access
        from zfarm.edge.segments import Ref
        from zfarm.edge.sockets import new_context
        from zfarm.placement import stock
        from zfarm.publisher import Publisher
        from zfarm.settings import settings
        from zfarm.worker import WorkerShell

        self.loop: Loop = Loop()
        self._lifeline: int = config["lifeline"]
        directory = config["directory"]
        control, notes = f"ipc://{directory}/control", f"ipc://{directory}/notes"
        self.addresses: dict[str, Any] = {"control": control, "notes": notes, "pid": os.getpid()}
        self._context = new_context()
        streams = f"ipc://{directory}/emits", f"ipc://{directory}/items"
        self._broker = BrokerShell(self.loop, self._context, control, notes, new_epoch(), streams=streams)
        machine = self._broker.machine
        self._worker = WorkerShell(
            self.loop,
            nursery,
            config["slots"],
            own_versions(),
            send=lambda message, payload: machine.receive(WORKER, message, payload, self.loop.now),
            tunnel=lambda child, owner, frames: self._broker.tunnelled(WORKER, child, owner, frames),
            tunnel_closed=lambda child: self._broker.tunnel_closed(WORKER, child),
            publisher=Publisher(self.loop, self._context, Access(control)),
            stock=stock(),
        )
        self._worker.machine.tether.needless = True
        self._broker.local[WORKER] = self._worker.receive
        self._lender = self._worker.children.lender = Lender()
        self._lender.unshare = self._worker.children.unshare
        probe, own = config["probe"], self._lender.probe()
        self.addresses["opened"] = probe is not None and can_open(Ref(*probe))
        self.addresses["probe"] = None if own is None else (own.token.hex(), *own[1:])
        self.loop.add_timer(self._lender.cool, settings.shared_warm_s)
        self.loop.add_source(self._lifeline, self._hear_client)
        self.loop.on_signal(signal.SIGTERM, self.loop.stop)
        self._worker.start()
        tune_collector()

    def _hear_client(self) -> None:
        said = os.read(self._lifeline, 4096)
        if said:
            self._lender.hear(said)
        else:
            self.loop.stop()  # it has gone

    def close(self) -> None:
        """End children, threads and sockets."""
        self._worker.close()
        self._broker.close()
        self._lender.close()
        self._context.term()
        self.loop.close()
