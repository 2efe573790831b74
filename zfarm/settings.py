"""Every limit and interval that a user may tune, with its unit and its reason; it knows no other module.

A value is read once at import; each may be overridden by the environment as ZFARM_<NAME> in capitals.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from math import inf

__all__ = ["Settings", "settings"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """All tunables. Times are in seconds (``_s``) or microseconds (``_us``), sizes in bytes."""

    # liveness
    beat_interval_s: float = 1.0
    """How often workers and clients say that they are here and what they hold."""
    worker_lost_after_s: float = 5.0
    """Silence after which a worker's leases move: five beats, so that one slow turn is not a death."""
    client_lost_after_s: float = 10.0
    """Silence after which a client counts as away; its tasks go on."""
    client_grace_s: float = 60.0
    """How long the tasks of a client that is away are kept before they are cancelled."""
    reach_timeout_s: float = 5.0
    """How long a new client, worker or command waits for the broker's first answer."""
    broker_away_max_s: float = 600.0
    """How long open futures wait for a broker that went away before they fail with BrokerUnreachable, and a
    worker that drains for one that takes its last outcomes."""

    restart_hold_s: float = 4.0
    """How long a broker that was started again grants nothing of what it had, so that workers come back
    with it."""
    job_kept_s: float = 7 * 24 * 3600.0
    """How long the tasks and outcomes of a job are kept without its client; it counts anew from each start of
    the broker, since no date decides anything."""

    # scheduling
    lookahead_us: int = 6000
    """Work that may wait beside a busy slot: hides the round trip (well under 1 ms) many times over."""
    short_call_us: int = 3000
    """Calls expected to take longer than this are never granted ahead of a free slot, nor sent to a busy
    child."""
    run_us: int = 1000
    """Work put into one message to a child: enough to pay for the message."""
    charge_least_us: int = 40
    """What a call is charged with at least when clients take turns: about what all processes do for one that
    takes no time (measured: 20 to 40 us of processor time)."""
    contention_kept_s: float = 1.0
    """For how long after several clients were granted calls fewer of them wait beside busy slots, as many as
    end within ``lookahead_us`` as measured: whoever is alone keeps nobody waiting."""
    turn_us: int = 4000
    """How long a turn of the broker takes at most while several clients are granted calls, if what clients
    say can wait: a slot that gets free in it idles until it is over."""
    foyer_bytes_max: int = 1024 * MIB
    """What clients have said that waits for such turns. What comes beyond that makes turns longer."""
    began_after_us: int = 10_000
    """A call that runs longer than this is reported as started."""
    stuck_after_us: int = 20_000
    """A call that runs longer than this gives back the calls that wait behind it in its child."""
    batch_us: int = 20_000
    """Run time that one batch of a map aims at: overhead below 2 %, progress 50 times a second."""
    batch_growth: int = 64
    """A map's batch may be at most this many times as large as the last one that was measured."""
    max_attempts: int = 3
    """How many children or workers may die under one task."""
    unstarted_losses_max: int = 10
    """How many workers may be lost with a task that was not known to run there, before each further one
    counts as an attempt: it may kill them faster than they can say that it runs."""
    worker_deaths_max: int = 5
    """Different calls in a row under which children of one worker may die before it is set aside. One that
    dies on another worker too is not counted, and those of a function that has not ended well on another one
    count as one."""
    worker_aside_s: float = 60.0
    """How long a worker that was set aside is granted nothing, if there is another one."""
    elsewhere_wait_s: float = 2.0
    """How long a call that has killed its child waits for a slot of another worker, if there is one, before
    it runs again where that was."""

    retry_backoff_s: float = 0.1
    """How long a call waits before it is run again after an error that its ``retry_on`` names: between half
    of this and this at first, twice as long each further time."""
    retry_backoff_max_s: float = 60.0
    """It waits no longer than this."""

    # children
    children_idle_max: int = 4
    """Idle children kept beyond the slots, for realms that come back."""
    blocked_children_max: int = 500
    """Children of one worker that may wait for nested calls at once; each is a process."""
    initializer_deaths_max: int = 3
    """Children that may die inside the initializer before the realm counts as broken."""
    child_retry_s: float = 5.0
    """How long a worker that could not start a child does with those that it has before it tries again."""
    stop_grace_s: float = 2.0
    """How long a child may take to leave after its pipe was closed before it is killed."""
    stderr_kept: int = 4096
    """Characters of a dead child's stderr that travel with the news of its death: the last ones."""
    farm_restarts_max: int = 3
    """Deaths of an embedded farm without one outcome in between, after which it counts as broken."""

    # sizes
    frame_share_max: int = 64 * 1024
    """Blobs up to this size share a frame; larger ones travel in a frame of their own, uncopied."""
    batch_calls_max: int = 2000
    """Calls, grants or reports in one message."""
    batch_bytes_max: int = 4 * MIB
    """Payload bytes after which a message is full (a single larger blob still travels, alone)."""
    blobs_max: int = 16_384
    """Blobs in one message."""
    held_max: int = 200_000
    """Leases that one worker may hold or owe: a beat lists them all."""
    header_bytes_max: int = 16 * MIB
    """Bytes of one header frame; a Join with ``held_max`` leases fits."""
    payload_bytes_max: int = 4096 * MIB
    """Bytes of one pickled call or result."""
    message_bytes_max: int = 64 * MIB
    """Bytes of one message beside its three largest frames, which are a function, its setup and a payload of
    whatever size they may have. Far more than a header and a full batch."""
    unfinished_bytes_max: int = 16_384 * MIB
    """Bytes of messages that have begun to come to a broker's control socket and have not ended, of all peers
    together. With more, or with less when the broker has two thirds of its memory in use, whoever has most
    of it is disconnected."""
    unfinished_check_s: float = 0.25
    """How often a broker looks for messages that do not end."""
    outbox_messages_max: int = 4096
    """Messages that wait in a broker for one peer; with one more it counts as lost."""
    outbox_bytes_max: int = 256 * MIB
    """The same in bytes; a single message may be larger."""
    named_from_bytes: int = 4096
    """Pickles of functions of at least this size travel once to each broker, worker and child, and are named
    by their digest from then on; smaller ones travel with each message that needs them."""
    named_kept_bytes: int = 64 * MIB
    """Bytes of such functions that a broker keeps for each client, and a worker and each of its children for
    the calls to come: those that were used last. A single one may be larger for a broker or worker."""
    tasks_max: int = 20_000_000
    """Tasks that one broker holds at most."""
    text_bytes_max: int = 64 * 1024
    """Characters of a traceback or message that travel; the rest is cut with a note."""

    # streams
    stream_window_items: int = 32_768
    """Items of one stream that may be on their way to a reader or wait there."""
    stream_window_bytes: int = 1 * MIB
    """The same in bytes: hides the round trip, and bounds what one reader costs its process."""
    stream_buffer_items: int = 100_000
    """Items of one stream that its worker keeps for a reader; beyond that the task waits for its reader, or
    without one the oldest are dropped."""
    stream_buffer_bytes: int = 4 * MIB
    """The same in bytes."""
    stream_grace_s: float = 2.0
    """How long a task waits in emit for a first reader when there is no room any more."""
    stream_patience_s: float = 30.0
    """How long a task waits in emit for a reader that makes no progress, before it goes on without it."""
    stream_kept_s: float = 60.0
    """How long a stream is kept after the end of its task for a reader that comes late."""
    streams_bytes_max: int = 256 * MIB
    """Bytes of all streams whose tasks have ended that a worker keeps; the oldest are dropped first."""
    stream_retry_s: float = 0.25
    """How long a reader waits for an answer about what it misses before it asks again."""
    stream_given_up_s: float = 10.0
    """How long the rest of a stream is waited for after its task has ended: twice a worker's silence. Counted
    from when the broker has read that something is missing, and only while it reads."""
    files_window_bytes: int = 16 * MIB
    """Bytes of one task's files that may be on their way to its client or wait there."""
    files_buffer_bytes: int = 20 * MIB
    """Bytes of one task's files that its worker keeps; beyond that ``send_file`` waits."""
    files_given_up_s: float = 60.0
    """The same for the rest of a task's files, while its worker lives."""
    duct_from_bytes: int = 8 * MIB
    """Bytes of one task's files from which on its client is offered them over the duct of its worker, if that
    has one: to dial costs each side about as much as 1 MiB."""
    duct_wait_s: float = 0.05
    """How long what follows then waits for its client at the duct: it cannot move to it while something is on
    its way. Not again where that was in vain, for ``duct_shunned_s``."""
    duct_shunned_s: float = 600.0
    """For how long a client leaves a duct alone that it cannot reach, or that breaks again and again."""
    ducts_dialled_max: int = 64
    """Ducts that one client has dialled at once, each of which takes four descriptors of its program; what
    other workers send meanwhile takes the way over the broker."""
    files_max: int = 1_000_000
    """Files that one task may send."""
    file_bytes_max: int = 16 * 1024 * 1024 * MIB
    """Bytes of one file: 16 TiB, as much as an ext4 file may have."""
    sync_files_max: int = 20_000
    """Files that ``farm.sync`` ships at most."""
    sync_bytes_max: int = 256 * MIB
    """Bytes that ``farm.sync`` ships at most: it is for code, and data goes with ``farm.put``."""
    call_files_max: int = 1000
    """Files and directories that one call may be given; a directory may have ``files_max`` files."""
    wants_window_bytes: int = 4 * MIB
    """Bytes of files that one worker has asked for and not stored yet: what is said to it meanwhile waits
    behind them. More is quicker over links with a long round trip."""
    gives_window_bytes: int = 64 * MIB
    """Bytes of files that one client has sent and of which no worker has said that they came."""
    give_kept_s: float = 10.0
    """How long a worker that has asked for files may be silent before its client sends it no more."""
    store_bytes_max: int = 50 * 1024 * MIB
    """Bytes of files that a worker's store keeps for later calls; what was not used for longest goes
    first."""
    pins_kept_s: float = 900.0
    """For how long a store keeps the results that handles of a client name when nothing is heard of that
    client: longer than ``broker_away_max_s``."""
    blobs_from_bytes: int = 1 * MIB
    """Arrays and pickles of at least this size in the arguments of calls are sent once to each host of a farm
    over TCP, and mapped there; smaller ones travel with each call."""
    results_from_bytes: int = 4 * MIB
    """Results of at least this size come from a farm over TCP in pieces, ahead of the news that their call
    has ended: no beat shall wait behind more than a full message. For smaller ones the additional round trip
    would cost more than it gives."""
    results_at_once: int = 4
    """Large results that are on their way to one client at once, with half of ``files_window_bytes`` each;
    the others wait in their calls."""
    undivided_bytes_max: int = 256 * MIB
    """Bytes of what travels undivided over TCP: an item that a call emits, and what a call of a job gives,
    since the broker keeps that. Such a message is encrypted as a whole before any of it, or a beat behind it,
    is on its way: 256 MiB in a second or two."""
    archive_bytes_max: int = 100 * 1024 * MIB
    """Bytes of files that a broker keeps by name, for all keys together; what is beyond is refused."""
    archive_names_max: int = 10_000
    """Names that one key may have there."""
    archive_floor_bytes: int = 256 * MIB
    """Free space on the disk of those files below which no more are taken: the journal may need it."""
    progress_interval_s: float = 0.1
    """How often a task's progress travels at most."""

    # shared memory
    shared_from_bytes: int = 256 * 1024
    """Arrays and pickles of at least this size go through shared memory on an embedded farm; smaller ones
    are sooner sent than mapped."""
    shared_bytes_max: int = 4096 * MIB
    """Shared memory of one process (a client for arguments, a worker for results, those that are kept
    included), and never more than a quarter of the host's memory. What is beyond goes to files without a name
    in the directory for temporary files."""
    shared_spill_max: int = 16 * 1024 * MIB
    """Bytes of such files of one process. What is beyond travels in messages."""
    shared_warm_bytes: int = 1024 * MIB
    """Of that memory, what is kept when nobody needs it, to be used again: fresh memory is ten times as
    slow."""
    shared_warm_s: float = 60.0
    """And for how long; twice that at most."""
    shared_segments_max: int = 256
    """Pieces of shared memory that one process holds: each is a descriptor, and 1,024 is a usual limit."""
    child_warm_bytes: int = 256 * MIB
    """Memory that a child keeps of what its calls have freed, for the next ones, and never more than a
    sixteenth of the host's memory in all children: fresh memory is ten times as slow. As much again of other
    processes' shared memory it leaves mapped."""
    child_warm_s: float = 5.0
    """How long a child keeps that after its last call."""

    # what tasks print
    output: str = ""
    """Where it goes: ``forward``, ``keep`` or ``off``; nothing said: forward from the workers of a farm that
    is there, to where the program's own output goes from an embedded farm."""
    output_bytes_per_s: int = 256 * 1024
    """Output of one child that travels per second in the long run; the rest is dropped, and counted."""
    output_burst_bytes: int = 1 * MIB
    """Output of one child that travels at once."""
    output_tail_bytes: int = 64 * 1024
    """Bytes of each of ``future.stdout`` and ``future.stderr`` that are kept: the last."""

    # who gets in, and how much each may have
    client_sessions_max: int = 4096
    """Clients with one key that a broker knows, present or away: as many as its connections. Those inside
    tasks have room beside: as many as the workers may have children."""
    worker_sessions_max: int = 4096
    """Workers with one key that a broker knows, present or silent: as many as its connections. One more waits
    until one of them has left or is lost."""
    client_tasks_max: int = 10_000_000
    """Tasks of all clients with one key in a broker, kept outcomes included: half of ``tasks_max``."""
    client_bytes_max: int = 8192 * MIB
    """Bytes of the calls, functions and kept outcomes of all clients with one key in a broker: two of the
    largest payloads."""
    broker_bytes_max: int = 16_384 * MIB
    """The same of all clients of a broker: two that have all that they may."""
    client_demands_max: int = 256
    """Different demands (resources and labels) with which calls of one client may wait at once: each is
    looked at whenever a slot is free."""
    client_links_max: int = 4096
    """Connections that one key may have at once: a shared key serves all programs of a farm."""
    knocks_per_s: float = 200.0
    """Handshakes of one key that are answered per second in the long run: each costs 3 ms of a core."""
    knocks_burst: int = 2000
    """Handshakes of one key that are answered at once: all programs of a farm come back together."""
    knock_wait_max_s: float = 3.0
    """How long a handshake of a key that comes too often may wait for its answer; one that would wait longer
    is put off. Less than ``handshake_s``."""
    strangers_per_s: float = 20.0
    """Handshakes of all keys together that are refused that are answered per second in the long run."""
    strangers_burst: int = 200
    """The same at once: many programs may come with a key that was revoked."""
    refusals_said_every_s: float = 10.0
    """How often a log line tells at most of the refused keys from one address."""
    faults_max: int = 10
    """Messages of one connection that are malformed, or not allowed to its key, before it is ended."""
    misunderstandings_max: int = 5
    """Messages of its broker that a client or worker cannot understand, each within
    ``misunderstood_within_s`` after the one before, before it gives up: a damaged one is an accident."""
    misunderstood_within_s: float = 60.0
    """How long a message that made no sense is remembered."""
    handshake_s: float = 5.0
    """How long a new connection may take to prove who it is."""
    mute_s: float = 15.0
    """How long it may then be there, and nothing come on it, before it has said anything at all: no limit of
    its key counts it until it does (on Linux)."""
    subscription_bytes_max: int = 2048
    """Bytes of a subscription to items: a topic has a principal and a session. It holds for each frame of
    the handshake, too, which needs about 300."""
    notes_subscription_bytes_max: int = 1024
    """The same for notes, whose topics are short."""
    subscriptions_max: int = 16
    """Subscriptions that one connection may ask for: there are two topics, and it may change its mind."""
    canary_interval_s: float = 60.0
    """How often a running broker makes sure that a stranger is refused and a known key is not."""

    # journal
    journal_floor_bytes: int = 64 * MIB
    """Free space on the journal's disk below which new tasks may not take it: the rest is for the outcomes of
    those that were accepted."""
    journal_backlog_bytes: int = 64 * MIB
    """Bytes of records that wait for a journal whose disk is full, beyond which no call is granted any
    more."""
    journal_file_from_bytes: int = 1 * MIB
    """Payloads of at least this size go to files of their own beside the journal: a database copies each
    twice."""
    journal_checkpoint_bytes: int = 4 * MIB
    """Bytes in the log of the journal after which they move into its tables: a stall of some 10 ms each
    time."""

    # dashboards
    note_interval_s: float = 0.5
    """How often the broker publishes a picture while somebody watches."""
    picture_tasks_max: int = 200
    """Running tasks listed in one picture."""


def _from_environment() -> Settings:
    chosen: dict[str, int | float | str] = {}
    for field in fields(Settings):
        text = os.environ.get("ZFARM_" + field.name.upper())
        if text is None:
            continue
        if isinstance(field.default, str):
            chosen[field.name] = _word(field.name, text)
            continue
        kind = int if isinstance(field.default, int) else float
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(
                f"ZFARM_{field.name.upper()} is {text!r}; it must be a number ({kind.__name__})"
            ) from None
        if not 0 < value < inf:
            raise ValueError(f"ZFARM_{field.name.upper()} is {text!r}; it must be greater than 0 and finite")
        chosen[field.name] = value
    return Settings(**chosen)  # type: ignore[arg-type]


def _word(name: str, text: str) -> str:
    if text not in ("", "forward", "keep", "off"):
        raise ValueError(f"ZFARM_{name.upper()} is {text!r}; it must be forward, keep or off")
    return text


settings = _from_environment()
