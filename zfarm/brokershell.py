"""A broker machine behind its sockets, in a process of its own or beside a worker.

What happens to tasks is decided in the core; keys and journals are made by zfarm.broker.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Any

from msgspec import structs

from zfarm.core import owners
from zfarm.core.broker import Broker
from zfarm.core.greeting import LOCAL
from zfarm.core.machine import NOW
from zfarm.edge import wire
from zfarm.edge.doors import Doors, from_here
from zfarm.edge.items import duct_of
from zfarm.edge.notes import NotesPort
from zfarm.edge.relay import Relay
from zfarm.edge.security import ADMIN, CLIENT, MONITOR, WORKER, KeyPair, Role, parse_tcp
from zfarm.edge.zap import CALLS, LISTENS, PUBLISHES
from zfarm.errors import JournalError
from zfarm.messages import (
    PROTOCOL,
    Action,
    Append,
    Archive,
    Archived,
    Bye,
    Chunks,
    Discard,
    Drop,
    Join,
    Look,
    Lookup,
    Payload,
    Peer,
    Publish,
    Record,
    Refused,
    Send,
    Tell,
    Tunnel,
    TunnelClosed,
    Versions,
)
from zfarm.settings import settings

if TYPE_CHECKING:
    from pathlib import Path

    from zfarm.archive import Keeper
    from zfarm.edge.journal import Journal
    from zfarm.edge.loop import Loop
    from zfarm.edge.ports import RouterPort
    from zfarm.edge.sockets import Context

__all__ = ["TOPIC", "BrokerShell", "new_epoch", "own_versions", "tune_collector"]

log = logging.getLogger("zfarm.broker")

RECEIVE_MAX = 200
"""Messages of one door read in one turn: enough to batch, and few enough for the turn to stay short."""
RECEIVE_S = 0.005
"""For how long they are read: one message may have thousands of calls, and who floods the farm with such
makes all others wait for the end of each turn."""
RECEIVE_BUSY_S = 0.001
"""The same while something that was read waits to be heard: most of what comes would only wait behind it, and
may as well do so where it is. The library reads from all peers in turns."""
RECEIVE_STEP = 4
"""Messages read before the clock is asked."""
TOPIC = b"farm"
"""What notes about the farm are published under."""
SWEEP_S = 10.0
PLENTY = 1 << 30
"""Bytes of the journal's disk; a turn is small beside them, and its records are not priced."""
NEAR = 16 << 20
"""So many bytes above its floor the journal begins to give room back to its disk."""
FOR_ARCHIVES = frozenset((Archive, Lookup, Discard))
JOURNAL_CHECK_S = 0.25
"""How often the disk of the journal is looked at, besides after each turn that wrote."""


def own_versions() -> Versions:
    """What this process runs."""
    from zfarm import __version__

    return Versions(protocol=PROTOCOL, zfarm=__version__, python=".".join(map(str, sys.version_info[:3])))


def new_epoch() -> int:
    """A number that no other start of a broker had lately: milliseconds of the time of day, in 31 bits."""
    return time.time_ns() // 1_000_000 & 0x7FFF_FFFF


def tune_collector() -> None:
    """Keep the garbage collector from walking the books: tasks are not tracked, and nothing here makes
    cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def _dialed(address: str) -> str:
    """What peers are told of an address: its port on TCP, since they know the host; a local one whole."""
    return f":{parse_tcp(address)[1]}" if address.startswith("tcp://") else address


class BrokerShell:
    """Drives a broker machine over ROUTER sockets (control) and an XPUB socket (notes)."""

    def __init__(
        self,
        loop: Loop,
        context: Context,
        addresses: str | Mapping[Role, Sequence[str]],
        notes_address: str,
        epoch: int,
        keys: KeyPair | None = None,
        journal: Journal | None = None,
        streams: tuple[str, str] | None = None,
        known: Collection[str] | None = None,
    ) -> None:
        """Listen on ``addresses`` (a local one, or those of each role's door) and ``notes_address``, with
        ``keys`` unless they are local.

        ``streams`` are the addresses at which workers publish items and clients get them; without, items
        take the way of all messages.

        With a ``journal`` the farm goes on where the journal ends, without the sessions of those who are not
        among the principals that are ``known``.

        Raises:
            ConfigurationError: an address cannot be used.
        """
        now = time.monotonic()
        self.machine = Broker(epoch, own_versions(), now, journal=journal is not None)
        self._journal = journal
        self._trouble = ""  # why the journal does not take what it is given
        self._left = 0  # bytes of its disk, when it was looked at last
        if journal is not None:
            self._restore(journal, known, now)
            self._look(journal)
        self.malformed = 0
        self.denied: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """How many handshakes were refused, and how many came too often; the owner of the door knows."""
        self.keeper: Keeper | None = None
        """The archive, if this broker has one."""
        self.local: dict[Peer, Callable[[Any, Payload], None]] = {}
        """Peers in this very process, and how to hand them a message."""
        self._loop = loop
        self.doors = Doors(context, addresses, keys, self._lost)
        try:
            self.notes = NotesPort(context, notes_address, (TOPIC,), keys, self._watched)
            try:
                self.relay = None if streams is None else Relay(context, *streams, keys)
            except BaseException:
                self.notes.close()
                raise
        except BaseException:
            self.doors.close()
            raise
        if self.relay is not None:
            said = (self.relay.emits_address, self.relay.items_address)
            self.machine.items_addresses = _dialed(said[0]), _dialed(said[1])
        self._decoders: dict[str, wire.Decoder[Any]] = {
            CLIENT: wire.from_client,
            WORKER: wire.from_worker,
            ADMIN: wire.from_client,
            MONITOR: wire.from_monitor,
        }
        self._perform: dict[type, Callable[[Any], None]] = {
            Send: self._send,
            Publish: self._publish,
            Tell: self._tell,
            Drop: self._drop,
            Append: self._append,
        }
        if journal is not None:
            loop.add_timer(self._watch_journal, JOURNAL_CHECK_S)
        loop.add_machine(self.machine, self.perform)
        for port in self.doors.ports:
            loop.add_source(port.socket, partial(self._receive, port))
        loop.add_source(self.notes.socket, self.notes.read_subscriptions)
        loop.add_flusher(self.doors.flush)
        loop.add_flusher(self._turned)
        loop.add_timer(self._sweep, SWEEP_S)
        if self.doors.watched or self.notes.unfinished.active:
            self.doors.tell_coming(lambda peer: self.machine.coming(peer, self._loop.now))
            loop.add_timer(self._check_unfinished, settings.unfinished_check_s)

    def _restore(self, journal: Journal, known: Collection[str] | None, now: float) -> None:
        pairs = journal.replay()
        if known is None:
            self.machine.restore(pairs, now)
            return
        written: list[tuple[Record, Payload]] = []
        self.machine.restore(owners.renamed(pairs, known, written), now)
        journal.append(written)
        owners.expel(self.machine, known, now)  # their keys were revoked while there was no broker

    def keep_files(self, root: Path) -> None:
        """Have an archive in ``root``. Raises ConfigurationError."""
        from zfarm.archive import ARCHIVE, Keeper  # an embedded farm has none

        self.keeper = Keeper(root, self._loop.call_soon, self._answer, self._give)
        self.local[ARCHIVE] = self.keeper.hear
        self.machine.archive = ARCHIVE

    def _answer(self, peer: Peer, message: Any, payload: Payload) -> None:
        self._send(Send(peer, message, payload))

    def _give(self, owner: str, message: Chunks, payload: Payload) -> None:
        self.machine.routes.on_archive(owner, message, payload, self._loop.now)
        self.machine.deadline = NOW

    def close(self) -> None:
        """Close the sockets."""
        if self.keeper is not None:
            self.keeper.close()
        if self.relay is not None:
            self.relay.close()
        self.doors.close()
        self.notes.close()

    @property
    def bound(self) -> dict[str, int]:
        """Where this host reaches all its sockets on TCP, with the kind that comes there."""
        ports = dict.fromkeys(chain.from_iterable(self.doors.addresses.values()), CALLS)
        ports[self.notes.address] = LISTENS
        if self.relay is not None:
            ports[self.relay.emits_address] = PUBLISHES
            ports[self.relay.items_address] = LISTENS
        return {from_here(address): kind for address, kind in ports.items()}

    def expel(self, known: Collection[str]) -> int:
        """Let only the ``known`` principals speak, watch and have sessions; how many connections were
        ended."""
        owners.expel(self.machine, known, self._loop.now)
        if self.relay is not None:
            self.relay.expel(known)
        return self.doors.expel(known) + self.notes.expel(known)

    def _sweep(self) -> None:
        self.doors.sweep()
        self.notes.sweep()

    def _check_unfinished(self) -> None:
        self.doors.check_unfinished(self._loop.now)
        self.notes.unfinished.check(self._loop.now)

    def _lost(self, peer: bytes) -> None:
        if self.keeper is not None:
            self.keeper.gone(peer)
        self.machine.foyer.gone(peer, self._loop.now, partial(self._hear_end, peer))

    def _hear_end(self, peer: Peer, message: None, payload: Payload, now: float) -> None:
        self.machine.gone(peer, now)

    def _turned(self) -> float:
        """A turn is over."""
        now = self._loop.now
        self.machine.foyer.turned(now, time.monotonic() - now)
        return inf

    def _watched(self, watched: bool) -> None:
        self.machine.watch(watched, self._loop.now)

    def _receive(self, port: RouterPort) -> None:
        """Read what a control socket has and give it to the machine."""
        until = time.monotonic() + (RECEIVE_BUSY_S if self.machine.foyer else RECEIVE_S)
        for _ in range(0, RECEIVE_MAX, RECEIVE_STEP):
            got = port.receive(RECEIVE_STEP)
            for peer, role, principal, frames in got:
                try:
                    # local sockets have no keys: only this user can reach them, as client or as worker
                    decoder = self._decoders.get(role, wire.from_anyone)
                    message, payload = decoder.decode(frames)
                    self._take(peer, message, payload, principal)
                except wire.Malformed as error:
                    self._malformed(peer, role, principal, frames, error)
            if len(got) < RECEIVE_STEP or time.monotonic() >= until:
                return

    def _take(self, peer: Peer, message: Any, payload: Payload, principal: str) -> None:
        kind = type(message)
        if kind is Look:
            self._count_refusals()
        if kind is Tunnel:
            self.tunnelled(peer, message.channel, message.owner, payload)
        elif kind is TunnelClosed:
            self.tunnel_closed(peer, message.channel)
        elif kind is Join and message.duct:
            where = duct_of(self.doors.host_of(peer), message.duct)
            self._give_machine(peer, structs.replace(message, duct=where), payload, principal)
        elif kind in FOR_ARCHIVES or (self.keeper is not None and peer in self.keeper):
            self._ask_keeper(peer, message, payload, principal)
        else:
            self._give_machine(peer, message, payload, principal)

    def _give_machine(self, peer: Peer, message: Any, payload: Payload, principal: str) -> None:
        hear = partial(self._hear, peer, principal)
        self.machine.foyer.receive(peer, message, payload, self._loop.now, hear)

    def _hear(self, peer: Peer, principal: str, message: Any, payload: Payload, now: float) -> None:
        self.machine.receive(peer, message, payload, now, principal)

    def _ask_keeper(self, peer: Peer, message: Any, payload: Payload, principal: str) -> None:
        if self.keeper is not None:
            self.keeper.receive(peer, message, payload, principal)
        else:
            text = "this farm keeps no files by name: its broker was started with --files none"
            self._answer(peer, Archived(message.number, code="ConfigurationError", text=text), ())

    def tunnelled(self, worker: Peer, channel: int, owner: str, frames: Payload) -> None:
        """Frames of a client that lives in child ``channel`` of ``worker``. If they make no sense, that is
        the fault of a task: its own client hears so, and its worker has done nothing wrong."""
        now, peer = self._loop.now, (worker, channel)
        foyer = self.machine.foyer
        try:
            message, payload = wire.from_client.decode(frames)
        except wire.Malformed as error:
            self.malformed += 1
            log.warning("refused a message of a task: %s", error)
            foyer.gone(peer, now, partial(self._hear_end, peer))
            self._send(Send(peer, Refused("ProtocolError", f"malformed message: {error}")))
        else:
            foyer.receive(peer, message, payload, now, partial(self._hear_tunnel, worker, channel, owner))

    def _hear_tunnel(
        self, worker: Peer, channel: int, owner: str, message: Any, payload: Payload, now: float
    ) -> None:
        self.machine.tunnelled(worker, channel, owner, message, payload, now)

    def tunnel_closed(self, worker: Peer, channel: int) -> None:
        """The client in child ``channel`` of ``worker`` is gone, and what it asked for with it."""
        peer = (worker, channel)
        self.machine.foyer.receive(peer, Bye(), (), self._loop.now, partial(self._hear, peer, LOCAL))

    def perform(self, actions: list[Action]) -> None:
        """Do what the machine wants; of what the journal does not take nobody is told before it does."""
        perform = self._perform
        try:
            for action in actions:
                perform[type(action)](action)
        except JournalError as error:  # an Append comes first, and nothing was done before it
            if error.fatal:
                raise
            self._note_trouble(error)
            why = os.strerror(error.errno or errno.EIO)
            reason = f"the broker cannot write its journal ({why}): its log tells where, and what to do"
            self.machine.refusing = reason
            self.perform(self.machine.stall.begin(actions, reason))

    def _note_trouble(self, error: JournalError) -> None:
        if str(error) != self._trouble:
            log.error("outcomes wait and new tasks are refused until the journal takes them: %s", error)
        self._trouble = str(error)

    def _append(self, action: Append) -> None:
        journal = self._journal
        assert journal is not None, "a machine without a journal records nothing"
        if self._left < PLENTY:
            cost = sum(self.machine.headroom.price_of(*pair) for pair in action.records)
            spare = self.machine.headroom.spare
            if cost > self._left - spare:
                raise journal.no_space(cost + spare - self._left)
        journal.append(action.records)
        self._look(journal)

    def _watch_journal(self) -> None:
        """Write what waits for room as far as there is some, and see whether there is any for new tasks."""
        journal = self._journal
        assert journal is not None, "nothing is watched without a journal"
        self._look(journal)
        if self.machine.stalled:
            self._catch_up(journal)
        else:
            self._trouble = ""
            self._tell_refusing()

    def _catch_up(self, journal: Journal) -> None:
        stall, spare = self.machine.stall, self.machine.headroom.spare
        while self.machine.stalled and (records := stall.pick(self._left, spare)):
            try:
                journal.append(records)
            except JournalError as error:
                if error.fatal:
                    raise
                stall.put_back(records)
                self._note_trouble(error)
                return
            stall.wrote()
            self._look(journal)

    def _look(self, journal: Journal) -> None:
        """See how much room the journal's disk has, and let the journal give some back if it is little."""
        left, floor = journal.room.left(), settings.journal_floor_bytes
        if left < floor + NEAR and journal.room.spare() > self.machine.headroom.spare:
            journal.relieve()
            left = journal.room.left()
        self._left = left
        text = (
            f"the disk of the broker's journal has {max(0, left) >> 20} MiB left, and {floor >> 20} MiB are "
            "for the outcomes of calls that were accepted (ZFARM_JOURNAL_FLOOR_BYTES): free some, make it "
            "larger, or wait until calls have ended"
        )
        self.machine.headroom.see(left - floor, text)

    def _tell_refusing(self) -> None:
        """Say when new tasks are refused for want of room, and when they are not any more."""
        headroom = self.machine.headroom
        before = self.machine.refusing
        refused = headroom.left < (headroom.spare if before else 0)
        self.machine.refusing = headroom.text if refused else ""
        if refused != bool(before):
            log.warning("%s", self.machine.refusing or "new tasks are taken again: the journal has room")

    def _send(self, action: Send) -> None:
        peer = action.peer
        deliver = self.local.get(peer)
        if deliver is not None:
            deliver(action.message, action.payload)
        elif type(peer) is tuple:
            worker, channel = peer
            self._send(Send(worker, Tunnel(channel=channel), wire.encode(action.message, action.payload)))
        else:
            self.doors.send(peer, wire.encode(action.message, action.payload))

    def _publish(self, action: Publish) -> None:
        self.notes.publish(TOPIC, [wire.encode_note(action.note)])

    def _tell(self, action: Tell) -> None:
        log.log(logging.getLevelNamesMapping()[action.level.upper()], "%s", action.text)

    def _drop(self, action: Drop) -> None:
        if type(action.peer) is bytes:
            self.doors.forget(action.peer)

    def _malformed(
        self, peer: bytes, role: str, principal: str, frames: Payload, error: wire.Malformed
    ) -> None:
        """Answer what a peer cannot say: because it is no message, or because its key does not allow it."""
        self.malformed += 1
        code, text = "ProtocolError", f"malformed message: {error}"
        try:
            message, _ = wire.from_anyone.decode(frames)
        except wire.Malformed:  # what it meant to say is lost: no more of this link is believed until it says
            self._lost(peer)  # Hello or Join again
        else:
            code, text = "AccessDenied", f"the key of a {role} does not allow {type(message).__name__}"
        if self.doors.fault(peer):
            log.warning("disconnected %s: %s, and %d before", principal, text, settings.faults_max - 1)
            return
        log.warning("refused a message of %s: %s", principal, text)
        self.doors.send(peer, wire.encode(Refused(code=code, text=text)))

    def _count_refusals(self) -> None:
        """Let the next picture tell what was refused at the sockets, too."""
        denied, throttled = self.denied()
        self.machine.refusals |= {
            "malformed": self.malformed,
            "senders": self.doors.refused,
            "kicked": self.doors.kicked,
            "crowded": self.doors.crowded,
            "mute": self.doors.mute,
            "overflows": self.doors.dropped,
            "subscriptions": self.notes.refused,
            "items": self.relay.refused if self.relay is not None else 0,
            "handshakes": denied,
            "throttled": throttled,
            "unfinished": self.doors.unfinished
            + self.notes.unfinished.ended
            + (self.relay.ended if self.relay is not None else 0),
        }
