"""Run zfarm.core.worker as a process: its children, its vital stats and its one link to the broker."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zfarm.edge.nursery import Nursery
from zfarm.edge.scratch import sweep_after_deaths, sweep_soon
from zfarm.errors import AccessDenied, FarmError, ProtocolError

if TYPE_CHECKING:
    from zfarm.edge.loop import Loop
    from zfarm.edge.security import Access
    from zfarm.edge.taps import Piece
    from zfarm.messages import (
        Action,
        Blob,
        Connected,
        Done,
        DoomChild,
        Left,
        Payload,
        Progress,
        PublishItems,
        Rejected,
        RunCalls,
        Tell,
        Versions,
        Vitals,
    )
    from zfarm.placement import Stock
    from zfarm.publisher import Publisher

__all__ = ["WorkerShell", "main"]

log = logging.getLogger("zfarm.worker")

LINGER_MS = 500
"""How long the last words of a worker may take to reach the broker."""


class WorkerShell:
    """Drives a worker machine over its children; how messages reach the broker is its owner's business."""

    def __init__(
        self,
        loop: Loop,
        nursery: Nursery,
        slots: int,
        versions: Versions,
        send: Callable[[Any, Payload], None],
        tunnel: Callable[[int, str, Payload], None],
        tunnel_closed: Callable[[int], None],
        publisher: Publisher,
        stock: Stock,
        name: str = "",
        store: Path | None = None,
        duct: int | None = None,
    ) -> None:
        """``store`` is where the files are kept that calls need; None: nowhere for longer than this lives.
        ``duct`` is the port at which clients may dial this worker; None: they may not."""
        from zfarm import messages
        from zfarm.core.worker import Worker
        from zfarm.edge.children import Children
        from zfarm.edge.memory import MemoryWatch
        from zfarm.edge.storekeeper import Storekeeper
        from zfarm.edge.vitals import VitalsSampler
        from zfarm.settings import settings

        now = time.monotonic()
        self.machine = Worker(
            secrets.token_hex(16), versions, slots, name or platform.node(), os.getpid(), now,
            resources=stock.resources, labels=stock.labels,
        )  # fmt: skip
        self.children = Children(nursery, self, loop)
        self._memory = MemoryWatch(self.children, self.machine.child_overshot)
        self.storekeeper = keeper = Storekeeper(store, loop.call_soon, self._hear_store, self._store_opened)
        self.rejected: Rejected | None = None
        self.barren = False
        """It ends since it can start no more children."""
        self._blob_bytes = 0
        self._loop = loop
        self._nursery = nursery
        self._send = send
        self._publisher = publisher
        self.duct = None if duct is None else publisher.open_duct(duct, self._seen)
        if self.duct is not None:
            self.machine.duct = self.duct.said
        self._tunnel = tunnel
        self._tunnel_closed = tunnel_closed
        children = self.children
        self._perform: dict[type, Callable[[Any], None]] = {
            messages.Send: lambda action: send(action.message, action.payload),
            messages.StartChild: lambda action: children.start(action.child),
            messages.RunCalls: self._run,
            messages.TakeBack: lambda action: children.take_back(action.child),
            messages.PauseChild: lambda action: children.pause(action.child, action.paused),
            messages.ToldDelivered: lambda action: children.tell(
                action.child, messages.Delivered(action.seq)
            ),
            messages.PublishItems: self._publish,
            messages.Admit: lambda action: publisher.admit(action.lease, action.key),
            messages.Dismiss: lambda action: publisher.dismiss(action.lease),
            messages.LimitChild: lambda action: self._memory.limit(action.child, action.memory_bytes),
            messages.DoomChild: self._doom,
            messages.InterruptChild: lambda action: children.interrupt(action.child),
            messages.StopChild: lambda action: children.stop(action.child, action.kill),
            messages.SeekBlob: keeper.do,
            messages.StoreChunk: keeper.do,
            messages.BuildTree: keeper.do,
            messages.DropBlob: keeper.do,
            messages.PinBlobs: keeper.do,
            messages.Connected: self._on_connected,
            messages.Rejected: self._on_rejected,
            messages.Finished: lambda _action: loop.stop(),
            messages.Tell: self._on_tell,
        }
        loop.add_machine(self.machine, self.perform)
        loop.add_machine(self.children, self.perform)
        loop.add_machine(self._memory, self.perform)
        self._sampler = VitalsSampler(settings.beat_interval_s, self._deliver, self._pids)

    def start(self) -> None:
        """Begin to sample vital stats."""
        self._sampler.start()

    def _doom(self, action: DoomChild) -> None:
        with suppress(OSError):  # the end of the nursery is told in its own time
            self._nursery.doom(action.child, action.at)

    def close(self) -> None:
        """End all children and the sampler."""
        self._sampler.stop()
        self.children.close()
        self.storekeeper.close()
        self._publisher.close()
        sweep_after_deaths()

    def receive(self, message: Any, payload: Payload) -> None:
        """Give a message of the broker to the machine, or to the child that it is for."""
        from zfarm.messages import BROKER, Tunnel

        if isinstance(message, Tunnel):
            self.children.tunnel_send(message.channel, payload)
        else:
            self.machine.receive(BROKER, message, payload, self._loop.now)

    def perform(self, actions: list[Action]) -> None:
        """Do what the machine wants."""
        perform = self._perform
        for action in actions:
            perform[type(action)](action)

    # ------------------------------------------------------------ what the children say

    def child_started(self, child: int, now: float) -> None:
        """See Worker.child_started."""
        self.machine.child_started(child, now)

    def child_reported(self, child: int, dones: list[Done], payload: Payload, now: float) -> None:
        """See Worker.child_reported."""
        self.machine.child_reported(child, dones, payload, now)

    def child_starts(self, child: int, seq: int, now: float) -> None:
        """See Worker.child_starts."""
        self.machine.child_starts(child, seq, now)

    def child_emitted(
        self, child: int, seq: int, blobs: Payload, latest: bool, files: bool, now: float
    ) -> None:
        """See Worker.child_emitted."""
        self.machine.child_emitted(child, seq, blobs, latest, files, now)

    def child_delivers(self, child: int, seq: int, whole: bool, now: float) -> None:
        """See Worker.child_delivers."""
        self.machine.child_delivers(child, seq, whole, now)

    def child_advanced(self, child: int, progress: Progress, now: float) -> None:
        """See Worker.child_advanced."""
        self.machine.child_advanced(child, progress, now)

    def child_printed(self, child: int, piece: Piece, now: float) -> None:
        """See Worker.child_printed; what belongs to no call goes where this process's own output goes."""
        seq, source, text, dropped = piece
        if not self.machine.child_printed(child, seq, source, text, dropped, now) and text:
            from zfarm.edge.taps import RECORDS
            from zfarm.edge.told import as_text

            if source == RECORDS:
                source, text = 2, as_text(text)
            with suppress(OSError):  # there is no such output
                os.write(source, text)

    def child_waits(self, child: int, waiting: bool, now: float) -> None:
        """See Worker.child_waits."""
        self.machine.child_waits(child, waiting, now)

    def child_took_back(self, child: int, started_seq: int, now: float) -> None:
        """See Worker.child_took_back."""
        self.machine.child_took_back(child, started_seq, now)

    def child_died(
        self, child: int, started_seq: int, signal: int, exit_code: int, text: str, now: float, left: Left
    ) -> None:
        """See Worker.child_died."""
        self.machine.child_died(child, started_seq, signal, exit_code, text, now, left)
        sweep_soon()

    def child_unborn(self, child: int, text: str, now: float) -> None:
        """See Worker.child_unborn."""
        self.machine.child_unborn(child, text, now)

    def nursery_died(self, now: float) -> None:
        """The process that makes children is gone: this worker cannot go on, and its leases move to
        others."""
        log.error("the nursery (the process that makes the children) died; this worker ends")
        self.barren = True
        self._loop.stop()

    def tunnel_frames(self, child: int, frames: list[Blob]) -> None:
        """Frames of the client that lives in a child."""
        self._tunnel(child, self.machine.owner_of(child), frames)

    def tunnel_closed(self, child: int) -> None:
        """The client that lived in a child is gone."""
        self._tunnel_closed(child)

    # ------------------------------------------------------------ the rest

    def _hear_store(self, name: str, arguments: tuple[Any, ...]) -> None:
        getattr(self.machine, name)(*arguments, self._loop.now)

    def _store_opened(self, root: Path) -> None:
        self.machine.store = str(root)

    def _on_connected(self, action: Connected) -> None:
        from zfarm.settings import settings

        log.info("joined the farm (epoch %d)", action.welcome.epoch)
        self._publisher.welcome(action.welcome.items)
        most = action.welcome.blob_bytes
        self._blob_bytes = most if most < settings.payload_bytes_max else 0

    def _run(self, action: RunCalls) -> None:
        run = action.run
        if self._blob_bytes:  # less than children know of
            from msgspec import structs

            run = structs.replace(run, blob_bytes=self._blob_bytes)
        self.children.run(action.child, run, action.payload)

    def _seen(self, lease: int, up: bool) -> None:
        (self.machine.duct_up if up else self.machine.duct_down)(lease, self._loop.now)

    def _publish(self, action: PublishItems) -> None:
        if action.direct:
            self._publisher.publish_direct(action.items, action.payload)
        elif not self._publisher.publish(action.topic, action.items, action.payload):
            self._send(action.items, action.payload)

    def _on_rejected(self, action: Rejected) -> None:
        self.rejected = action
        self._loop.stop()

    def _on_tell(self, action: Tell) -> None:
        log.log(logging.getLevelNamesMapping()[action.level.upper()], "%s", action.text)

    def _pids(self) -> list[int]:
        return list(self.children.pids().values())

    def _deliver(self, vitals: Vitals) -> None:
        self._loop.call_soon(lambda: self._note(vitals))

    def _note(self, vitals: Vitals) -> None:
        if self.children.lender is not None:
            from msgspec import structs

            vitals = structs.replace(vitals, shared_bytes=self.children.lender.bytes)
        if self.duct is not None:
            from msgspec import structs

            vitals = structs.replace(vitals, duct_refused=self.duct.unwelcome)
            if self.duct.closed:  # nothing more is offered there, and the next Join says so
                self.machine.duct = ""
        self.machine.vitals(vitals, self._loop.now)
        self.children.ooms.tick()


class _Process:
    """A worker of its own: one connection to the broker, over which it dials out. It is dialled at its duct
    alone, if it has one."""

    def __init__(
        self,
        access: Access,
        nursery: Nursery,
        slots: int,
        name: str,
        stock: Stock,
        store: Path,
        duct: int | None = None,
    ) -> None:
        from zfarm.brokershell import own_versions
        from zfarm.edge import wire
        from zfarm.edge.loop import Loop
        from zfarm.edge.ports import DealerPort
        from zfarm.edge.sockets import new_context
        from zfarm.messages import Refused, Tunnel, TunnelClosed
        from zfarm.publisher import Publisher

        self.loop: Loop = Loop()
        self.trouble: FarmError | None = None
        self._draining = False
        self._context = new_context()
        self._port = port = DealerPort(self._context, access, self._on_trouble, self._on_link)
        self._wire = wire
        self._refused = Refused
        self.shell = WorkerShell(
            self.loop,
            nursery,
            slots,
            own_versions(),
            send=lambda message, payload: port.send(wire.encode(message, payload)),
            tunnel=lambda child, owner, frames: port.send(wire.encode(Tunnel(child, owner), frames)),
            tunnel_closed=lambda child: port.send(wire.encode(TunnelClosed(channel=child))),
            publisher=Publisher(self.loop, self._context, access),
            stock=stock,
            name=name,
            store=store,
            duct=duct,
        )
        self.loop.add_source(port.socket, self._receive)
        self.loop.add_source(port.monitor, port.watch_link, passive=True)
        self.loop.add_flusher(port.flush)

    def _receive(self) -> None:
        try:
            for frames in self._port.receive():
                message, payload = self._wire.to_worker.decode(frames)
                if type(message) is self._refused and message.code == "ProtocolError":
                    log.warning("the broker did not understand us: %s", message.text)
                    if self._port.misunderstood():
                        return
                self.shell.receive(message, payload)
        except self._wire.Malformed as error:
            log.error("the broker sent a malformed message: %s", error)
            if not self._port.misunderstood():
                self.trouble = ProtocolError(f"the broker at {self._port.address} makes no sense: {error}")
                self.loop.stop()

    def _on_trouble(self, error: FarmError) -> None:
        if isinstance(error, AccessDenied):
            self.trouble = error
            self.loop.stop()
        else:
            log.warning("%s", error)

    def _on_link(self, up: bool) -> None:
        log.info("connected to %s" if up else "lost the connection to %s; trying again", self._port.address)

    def on_signal(self) -> None:
        """Drain at the first signal, stop at the second."""
        if self._draining:
            log.warning("stopping at once")
            self.shell.machine.stop(self.loop.now)
            return
        self._draining = True
        log.info("draining: running calls finish, the others move; a second signal stops at once")
        self.shell.machine.drain(self.loop.now)

    def close(self) -> None:
        """End the children, say the last words within a moment, and close the connection."""
        self.shell.close()
        self._port.flush()
        self._port.close(LINGER_MS)
        self._context.term()
        self.loop.close()


def main(
    address: str | None = None,
    slots: int | None = None,
    connection: Path | None = None,
    name: str | None = None,
    token_file: str = "",
    resources: Sequence[str] = (),
    labels: Sequence[str] = (),
    store: Path | None = None,
    duct: int | None = None,
) -> int:
    """Run a worker with ``slots`` slots (default: the usable cores) until it has drained, and return 0.

    ``resources`` (such as ``gpu=2``) and ``labels`` (such as ``zone=a``) are what it has for calls that ask
    for them; default: those of ZFARM_RESOURCES and ZFARM_LABELS. ``store`` is the directory of the files that
    calls need, which all workers of this user share; default: ZFARM_STORE, else one in the user's cache.
    ``duct`` is a port at which clients may dial it for large files and results (0: any that is free);
    default: they may not, and all takes the way over the broker. ``token_file``
    names a private file with a join token, or is "-" for standard input.
    It waits for a broker that is not there yet. SIGTERM or SIGINT drains it, a second one stops it.

    Raises:
        ConfigurationError: the address or the connection file cannot be used.
        AccessDenied, VersionMismatch: the broker does not let us in.
        FarmError: the process from which children are forked died.
    """
    from zfarm.edge.cores import usable_cores
    from zfarm.edge.pages import keep_freed_memory
    from zfarm.edge.places import store_directory
    from zfarm.edge.strays import adopt_strays, end_strays
    from zfarm.placement import stock

    has = stock(resources, labels)
    # before ZeroMQ is imported: it forks children, and must have no threads; and before a key is read, which
    # they would have in their memory
    nursery = Nursery.start()
    try:
        access = _access(address, connection, token_file)
    except BaseException:
        nursery.close()
        raise
    others = adopt_strays()  # a nursery that is killed cannot end what calls leave behind
    keep_freed_memory()  # not in the children
    place = store or store_directory()
    process = _Process(access, nursery, slots or usable_cores(), name or platform.node(), has, place, duct)
    try:
        for signum in (signal.SIGTERM, signal.SIGINT):
            process.loop.on_signal(signum, process.on_signal)
        process.shell.start()
        log.info("worker with %d slots, broker at %s", process.shell.machine.slots, access.address)
        process.loop.run()
    finally:
        process.close()
        end_strays(others)
    if process.trouble is not None:
        raise process.trouble
    rejected = process.shell.rejected
    if rejected is not None:
        raise FarmError.named(rejected.code, rejected.text)
    if process.shell.barren:
        raise FarmError("the worker ends since the process died that starts its children: start it anew")
    return 0


def _access(address: str | None, connection: Path | None, token_file: str) -> Access:
    from zfarm.edge.security import WORKER, parse_address
    from zfarm.edge.tokens import read_token, token_of

    if token_file:
        return read_token(token_of(token_file))
    return parse_address(address or os.environ.get("ZFARM_ADDRESS", ""), WORKER, connection or "")
