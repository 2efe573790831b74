"""The ways from a client to its farm over a socket: to one that is there, or to one of its own.

A road belongs to one link and lives in its thread, but for its making and for ``disown``. What is sent while
the way is cut is dropped: the machines at both ends repair that.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from zfarm.edge import wire
from zfarm.edge.dialled import Dialled
from zfarm.edge.lender import ENABLE, can_open
from zfarm.edge.places import new_place
from zfarm.edge.ports import DealerPort
from zfarm.edge.security import Access, KeyPair
from zfarm.edge.segments import TOKEN_BYTES
from zfarm.edge.sockets import Context, new_context
from zfarm.errors import FarmBroken, FarmError
from zfarm.messages import Dial, HangUp, Hello, Look, Message, Payload, Picture, Refused, Stranger, Welcome
from zfarm.settings import settings

if TYPE_CHECKING:
    from zfarm.edge.items import ItemsReader
    from zfarm.edge.places import FarmPlace
    from zfarm.edge.stowage import Stowage
    from zfarm.farmhouse import Farmhouse
    from zfarm.link import Link

__all__ = ["EmbeddedRoad", "SocketRoad"]

log = logging.getLogger("zfarm")

DESCRIBE_AFTER_S = 0.3
"""When an embedded farm is described for ``zfarm top``: short programs need not pay for that."""
BOOT_MAX_S = 60.0
"""How long a farm may take to be ready: a busy machine may need seconds, but not for ever."""
LOOK_S = 2.0
"""How long a farm may take to say whether anything is left to do before it counts as stuck."""
LOOK_AGAIN_S = 0.02
NOTES_AGAIN_S = 0.01
LINGER_S = 0.5
"""How long the last words of a client may take to reach a broker."""


class SocketRoad:
    """A socket to the broker of a farm that is there already."""

    waits: Callable[[], AbstractContextManager[object]] | None = None
    remote = True

    def __init__(self, access: Access) -> None:
        self.address = access.address
        self._access = access
        self._link: Link | None = None
        self._port: DealerPort | None = None
        self._context: Context | None = None
        self._reader: ItemsReader | None = None
        self._dialled: Dialled | None = None

    @property
    def keys(self) -> bool:
        """The link is encrypted and authenticated."""
        return self._access.keys is not None

    def open(self, link: Link) -> None:
        """Dial. Raises ConfigurationError."""
        self._link = link
        self._dial(self._access)
        if self._access.keys is not None and self._context is not None:
            machine, loop = link.machine, link.loop
            keys = KeyPair.fresh()  # nobody learns of it but the broker, and the workers that it tells
            machine.show(keys.public)
            self._dialled = Dialled(
                loop,
                self._context,
                self._access.address,
                keys,
                lambda duct, items, payload: machine.direct_items(duct, items, payload, loop.now),
                lambda duct, reached, refused: machine.duct_broke(duct, reached, loop.now, refused),
            )

    def dial(self, action: Dial | HangUp) -> None:
        """Get a stream straight from its worker, or no more."""
        if self._dialled is None:
            return
        if isinstance(action, Dial):
            self._dialled.dial(action.lease, action.duct)
        else:
            self._dialled.hang_up(action.lease, action.duct)

    def send(self, message: Message, payload: Payload) -> None:
        """Give this to the broker, if the way is open."""
        if self._port is not None:
            self._port.send(wire.encode(message, payload))

    def subscribe(self, welcome: Welcome) -> None:
        """Get published items. Where the relay cannot be reached they come from the broker."""
        link = self._link
        if link is None or self._context is None or not (welcome.items and welcome.topic):
            return
        from zfarm.edge.items import ItemsReader, stream_address

        address = stream_address(self._access.address, welcome.items)
        reader = self._reader
        if reader is not None and (reader.address, reader.topic) == (address, welcome.topic):
            return
        self._unsubscribe()
        self._reader = reader = ItemsReader(
            self._context, address, self._access, welcome.topic, link.subscribed
        )
        link.loop.add_source(reader.socket, self._receive_items)
        link.loop.add_source(reader.monitor, reader.watch_link, passive=True)

    def _receive_items(self) -> None:
        link, reader = self._link, self._reader
        if link is None or reader is None:
            return
        for frames in reader.receive():
            try:
                link.receive(*wire.published.decode(frames))
            except wire.Malformed as error:
                log.warning("dropped what was published for us and is no item: %s", error)

    def _unsubscribe(self) -> None:
        link, reader = self._link, self._reader
        if link is not None and reader is not None:
            self._reader = None
            link.loop.remove_source(reader.monitor)
            link.loop.remove_source(reader.socket)
            reader.close()
            link.subscribed(False)

    def tell_notes(self, notes: bytes) -> None:
        """A farm on other hosts lends no shared memory."""

    def outcome_arrived(self) -> None:
        """The farm does its work."""

    def is_settled(self) -> bool:
        """The farm goes on without us."""
        return True

    def close(self) -> None:
        """Deliver what was sent, within bounds, and close."""
        self._hang_up(LINGER_S)
        self._close_context()
        self._link = None

    def disown(self) -> None:
        """In a forked process: close our copies of the connection's descriptors."""
        _close_connections(self.address)

    def _dial(self, access: Access) -> None:
        link = self._link
        assert link is not None
        self._access = access
        if self._context is None:
            self._context = new_context()
        self._port = port = DealerPort(self._context, access, on_trouble=link.fail)
        link.loop.add_source(port.socket, self._receive)
        link.loop.add_source(port.monitor, port.watch_link)
        link.loop.add_flusher(port.flush)

    def _receive(self) -> None:
        port, link = self._port, self._link
        if port is None or link is None:
            return
        try:
            for frames in port.receive():
                message, payload = wire.to_client.decode(frames)
                if type(message) is Refused and message.code == "ProtocolError" and port.misunderstood():
                    log.warning("the broker did not understand us; dialling anew: %s", message.text)
                    return
                self._deliver(link, message, payload)
        except wire.Malformed as error:
            if not port.misunderstood():
                link.fail(error)
            else:
                log.warning("the broker was not understood; dialling anew: %s", error)

    def _deliver(self, link: Link, message: Message, payload: Payload) -> None:
        link.receive(message, payload)

    def _hang_up(self, linger_s: float = 0.0) -> None:
        self._unsubscribe()
        if self._dialled is not None:
            self._dialled.close()
        port, link = self._port, self._link
        if port is None or link is None:
            return
        self._port = None
        link.loop.remove_flusher(port.flush)
        link.loop.remove_source(port.monitor)
        link.loop.remove_source(port.socket)
        if linger_s and port.up:
            port.flush()
            port.close(int(linger_s * 1000))
        else:
            port.close()

    def _close_context(self) -> None:
        if self._context is not None:
            self._context.term()
            self._context = None


class EmbeddedRoad(SocketRoad):
    """A farm of this process alone: started, minded and started anew when it dies."""

    remote = False

    def __init__(self, house: Farmhouse, place: FarmPlace, stowage: Stowage) -> None:
        super().__init__(Access(""))
        self._stowage = stowage
        self._notes = b""
        self._house = house
        self._place = place
        self._early: Message | None = None  # a Hello from before the farm was ready
        self._deaths = 0
        self._closing = False
        self._settled = False
        self._looked_at = 0.0

    def open(self, link: Link) -> None:
        """Wait for the farm to be ready."""
        self._link = link
        self._watch()

    def send(self, message: Message, payload: Payload) -> None:
        """Give this to the broker; of what comes before the farm is ready, only a Hello is kept."""
        if self._port is not None:
            self._port.send(wire.encode(message, payload))
        elif isinstance(message, Hello):
            self._early = message

    def tell_notes(self, notes: bytes) -> None:
        """Tell the farm of results that are not needed any more; what it does not take now, it gets later."""
        waiting = bool(self._notes)
        self._notes += notes
        if not waiting and self._link is not None:
            self._give_notes(self._link)

    def _give_notes(self, link: Link) -> None:
        self._notes = self._notes[self._house.note(self._notes) :]
        if self._notes:
            link.loop.call_later(lambda: self._give_notes(link), NOTES_AGAIN_S)

    def outcome_arrived(self) -> None:
        """The farm does its work: its earlier deaths are forgotten."""
        self._deaths = 0

    def is_settled(self) -> bool:
        """Whether tasks have left no nested calls behind, which would end with the farm."""
        link = self._link
        if self._settled or self._port is None or link is None:
            return True
        if not self._looked_at:
            self._looked_at = link.loop.now
            self._look(link)
        return link.loop.now > self._looked_at + LOOK_S  # it does not answer

    def _look(self, link: Link) -> None:
        self.send(Look(tasks_max=0), ())
        link.loop.call_later(link.leave_when_done, LOOK_S)

    def _deliver(self, link: Link, message: Message, payload: Payload) -> None:
        link.receive(message, payload)
        if type(message) is not Picture or not self._looked_at:
            return
        if any(one.queued or one.leased for one in message.clients):
            self._looked_at = link.loop.now
            link.loop.call_later(lambda: self._look(link), LOOK_AGAIN_S)
        else:
            self._settled = True
            link.leave_when_done()

    def close(self) -> None:
        """Let the farm go, wait for its end, and remove its directory."""
        self._closing = True
        self._unwatch()
        self._hang_up()
        self._close_context()
        self._house.stop()
        self._place.remove()
        self._link = None

    def disown(self) -> None:
        """In a forked process: hold neither the lifeline nor the lock nor the connection."""
        self._house.disown()
        self._place.release()
        _close_connections(self.address)

    # ------------------------------------------------------------ birth and death of the process

    def _watch(self) -> None:
        assert self._link is not None
        link, loop = self._link, self._link.loop
        loop.add_source(self._house.ready_fd, self._on_ready)
        loop.call_later(lambda: self._check_ready(link, self._house.pid), BOOT_MAX_S)
        if self._house.death_fd >= 0:
            loop.add_source(self._house.death_fd, self._on_death)
        else:
            threading.Thread(target=self._wait_death, name="zfarm-farm-watch", daemon=True).start()

    def _unwatch(self) -> None:
        assert self._link is not None
        for fd in (self._house.ready_fd, self._house.death_fd):
            if fd >= 0:
                self._link.loop.remove_source(fd)

    def _wait_death(self) -> None:
        """Where no descriptor tells of a process's end, a thread waits for it."""
        house, link = self._house, self._link
        house.wait()
        if link is not None:
            link.call(self._on_death)

    def _on_ready(self) -> None:
        link, house = self._link, self._house
        assert link is not None
        link.loop.remove_source(house.ready_fd)  # it may be closed now
        try:
            announced = house.announced()
        except FarmBroken as error:
            link.fail(error)
            return
        if announced is None:
            if house.ready_fd >= 0:
                link.loop.add_source(house.ready_fd, self._on_ready)
            return
        self.address = self._place.address = announced.control
        self._place.notes_address = announced.notes
        if announced.opened and can_open(announced.probe):
            self._notes = b""
            self.tell_notes(ENABLE + bytes(TOKEN_BYTES))
            self._stowage.on = True
        self._dial(Access(announced.control, announced.notes))
        if self._early is not None:
            self.send(self._early, ())
            self._early = None
        else:
            link.receive(Stranger(), ())  # the farm is new, and knows us not: say Hello again
        link.loop.call_later(lambda: self._describe(link, announced.pid), DESCRIBE_AFTER_S)

    def _check_ready(self, link: Link, pid: int) -> None:
        if self._port is None and pid == self._house.pid:
            link.fail(FarmBroken(f"the embedded farm (process {pid}) was not ready within {BOOT_MAX_S:g} s"))

    def _describe(self, link: Link, pid: int) -> None:
        if not self._closing and pid == self._house.pid:
            try:
                self._place.describe(pid, os.getpid(), link.program)
            except FarmError as error:
                log.warning("zfarm top will not find this farm: %s", error)

    def _on_death(self) -> None:
        link, house = self._link, self._house
        if self._closing or link is None:
            return
        self._stowage.on = False
        self._stowage.taint()
        self._unwatch()
        self._hang_up()
        house.wait()
        how = house.obituary()
        house.close()
        self._deaths += 1
        if self._deaths > settings.farm_restarts_max:
            text = f"the embedded farm {how}, {self._deaths} times without an outcome in between"
            link.fail(FarmBroken(f"{text}; it was not started again"))
            return
        log.warning("the embedded farm %s; it is started again", how)
        try:
            house.start()
            self._place.remove()
            self._place = new_place()
        except FarmError as error:
            link.fail(error)
            return
        house.configure(str(self._place.directory), self._stowage.probe())
        self._watch()


def _close_connections(address: str) -> None:
    """Close every descriptor that is connected to the local socket ``address``.

    For a process that was just forked: the library's own threads are not there, and its sockets are of no
    use.
    """
    path = address.removeprefix("ipc://")
    if path == address:
        return  # TCP: the broker notices by silence that the client is gone
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(folder):
        fd = int(name)
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode) and _peer(fd) == path:
                os.close(fd)
        except OSError:
            continue  # not connected, or the descriptor of this very listing


def _peer(fd: int) -> object:
    with socket.socket(fileno=os.dup(fd)) as view:
        return view.getpeername()
