"""Every message on a socket or a pipe, every note, and every action of a machine; no behaviour.

Rules of this file:
  1. One tagged union per direction. A peer's role decides which union its frames are decoded with.
  2. Fields are only appended, always with defaults; the meaning of a field never changes.
  3. Payload (pickles, frames of a tunnel) never stands in a header: it rides beside it as a list of
     blobs, in the order that the message's docstring gives. zfarm.edge.wire packs it into frames.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final, TypeAlias, dataclass_transform

import msgspec

PROTOCOL: Final = 1
HELLO_MAX: Final = (1 << 62) - 1  # no Hello has a higher number

Blob: TypeAlias = bytes | memoryview | bytearray
Payload: TypeAlias = Sequence[Blob]
Peer: TypeAlias = Hashable
"""Who is at the other end: a routing id, a channel of a tunnel, or the name of the one broker."""

BROKER: Final = "broker"
"""The only peer of a worker's or client's machine."""

WORKER_LABEL: Final = "zfarm.worker"
"""Name of the label that the broker gives each worker: its value is the worker's name in pictures."""

CHUNK_BYTES: Final = 1024 * 1024
"""Bytes of a chunk; only the last one of a blob has less. It is no setting: digests of blobs rest on it."""
DIGEST_BYTES: Final = 32
"""Bytes of a digest: BLAKE3."""


class Named(bytes):
    """The pickle of a function that travels once and is named by its digest from then on."""

    digest = b""


# How a task ended. One byte on the wire, so numbers and not words.
VALUE: Final = 0  # payload: the pickled value (of a batch: the pickled list of values)
ERROR: Final = 1  # payload: the pickled exception with its remote traceback
MIXED: Final = 2  # payload: of a batch in which some items failed; see zfarm.edge.callables
CANCELLED: Final = 3
LOST: Final = 4  # no payload; ``deaths`` tells why
BROKEN: Final = 5  # payload: the pickled exception of the initializer
REFUSED: Final = 6  # no payload; the farm did not take it, and ``deaths`` holds the reason
TIMEOUT: Final = 7  # no payload; it ran for longer than it may, and the last of ``deaths`` is its end
MEMORY: Final = 9  # no payload; it was stopped at its memory limit, and the last of ``deaths`` is its end
MISSING: Final = 10  # no payload; a file that it needs cannot be had, and the last of ``deaths`` says why
OVERSIZED: Final = 12  # no payload; its broker does not take what it was given, or has given: so ``deaths``
CUT: Final = 11  # of reports alone, no payload; was interrupted, or exclusive and no broker was heard of
AGAIN: Final = 8  # of reports alone, payload as of ERROR or MIXED; the call wants to be run again for it


@dataclass_transform(frozen_default=True)  # tells type checkers what subclasses inherit
class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one peer says to another."""


# ---------------------------------------------------------------- parts of messages


class Versions(Message):
    """What a peer runs; a broker refuses peers that do not fit its own."""

    protocol: int
    zfarm: str
    python: str


class Demand(Message):
    """What a call takes from its worker while it runs, in thousandths, and which labels that must have.
    ``exclusive``: it must never run in two places at once, so that a worker which is cut off stops it."""

    resources: tuple[tuple[str, int], ...] = ()
    labels: tuple[str, ...] = ()
    exclusive: bool = False


class Need(Message):
    """A blob that a call needs. With ``tree`` it lists the files of a directory, which are needed as well.
    ``archived``: the archive of the broker gives it, and not the client. ``near``: the host on which the call
    rather runs, since what it uses is there."""

    digest: bytes
    size: int
    tree: bool = False
    archived: bool = False
    near: str = ""


class Wanted(Message):
    """What a worker wants of one blob: from ``at`` on, and no more than up to ``upto`` for now. ``again``:
    what was sent beyond ``at`` is lost. ``far``: to say where it lies on the host is of no use. ``archived``:
    it is wanted of the archive, and not of the client."""

    digest: bytes
    size: int
    at: int = 0
    upto: int = 0
    again: bool = False
    far: bool = False
    archived: bool = False


class Chunk(Message):
    """A piece of a blob, beside it in the payload, and its digest. With a ``path`` all of it lies there, on
    the host of the worker; with a ``text`` it cannot be had, and that is why: both without a payload."""

    digest: bytes
    size: int
    at: int = 0
    check: bytes = b""
    path: str = ""
    text: str = ""


class Keep(Message):
    """A part of a kept result that a handle names. ``birth``: what its child calls the result, until then."""

    digest: bytes
    size: int
    birth: bytes = b""


class ArchivedFile(Message):
    """What the archive keeps under a name: ``bytes`` in so many ``files``, since a time of day."""

    name: str
    need: Need
    mode: int
    bytes: int
    files: int
    at: float
    owner: str = ""  # for admins, who see those of all


class Call(Message):
    """One call as a client asks for it. ``function`` and ``setup`` are indices into the payload."""

    task: int
    function: int
    setup: int
    items: int = 0  # 0: one call; n: a batch of n items of a map
    max_attempts: int = 3  # deaths under it and errors for which it is run again, together
    timeout_us: int = 0  # from its start in the child, unpickling included; 0: none
    priority: int = 0  # among the tasks of its client: higher ones first
    begun: bool = False  # at most once, and an earlier broker may have let it begin: not to be granted again
    memory_bytes: int = 0  # that its child may have in use while it runs; 0: no limit
    demand: int = 0  # the place in Submit.demands, from 1; 0: it runs anywhere
    needs: int = 0  # the place in Submit.needs, from 1; 0: it needs no files


class Lease(Message):
    """One call as a worker gets it: the right and duty to run that task once."""

    lease: int
    owner: int  # index into Grants.owners
    task: int
    function: int
    setup: int
    items: int = 0
    expected_us: int = 0  # measured run time of such calls; 0: not known yet
    timeout_us: int = 0  # as in Call
    memory_bytes: int = 0  # as in Call
    demand: int = 0  # the place in Grants.demands, from 1
    needs: int = 0  # the place in Grants.needs, from 1


class Held(Message):
    """A lease that a worker holds: ``task`` and ``owner`` let a broker that was restarted adopt it."""

    lease: int
    owner: str
    task: int
    started: bool = False
    takes: tuple[tuple[str, int], ...] = ()  # of the worker's resources, in thousandths; none once it ended


class Fate(Message):
    """How one attempt of a task ended without an outcome. ``signal`` 0: it exited with ``exit_code``."""

    host: str
    worker: str
    signal: int = 0
    exit_code: int = 0
    text: str = ""
    stderr: str = ""  # the last lines that its child wrote there
    peak_bytes: int = 0  # the most memory that its child had in use, ever; 0: not known
    oom: str = ""  # what speaks for a kill for lack of memory


class Left(Message):
    """What a child that died has left behind, for its Fate."""

    stderr: str = ""
    peak_bytes: int = 0
    oom: str = ""
    starved: bool = False  # its last words say that it was refused memory
    doomed: bool = False  # its nursery has killed it: its worker had had no word from the broker for too long


class Report(Message):
    """What a worker says of one lease. LOST: its child died, TIMEOUT, MEMORY: was killed; ``fate``: how."""

    lease: int
    kind: int
    run_us: int = 0
    fate: Fate | None = None
    emitted: int = 0  # the number of its last item
    filed: int = 0  # the number of the last item of its files
    held_us: int = 0  # for how long it had its child, if that is longer than its run: that was started for it


class Outcome(Message):
    """How a task ended, for its client."""

    task: int
    kind: int
    run_us: int = 0
    deaths: tuple[Fate, ...] = ()
    tries: int = 0  # errors for which it was run again
    lease: int = 0  # that it came from, if that emitted anything
    emitted: int = 0  # the number of the last item of that lease
    filed: int = 0  # the same of its files


class Vitals(Message):
    """Vital stats of a worker and its children, and of its host. Percentages are 0 to 100 of all of that."""

    cpu_percent: float = 0.0
    load_1m: float = 0.0
    cpus: int = 0
    memory_bytes: int = 0
    memory_available_bytes: int = 0
    swap_percent: float = 0.0
    disk_free_bytes: int = 0
    rss_bytes: int = 0  # worker and children together
    processes: int = 0
    shared_bytes: int = 0  # shared memory that the worker holds for results, what is kept warm included
    duct_refused: int = 0  # how often somebody was refused or disconnected at its duct


class Attention(Message):
    """What a client wants to hear of its tasks. Levels by the names of loggers (the root has none); filters
    of warnings as (action, message, category, module, line)."""

    disable: int = 0
    levels: dict[str, int] = {}
    filters: list[tuple[str, str, str, str, int]] = []


class Tree(Message):
    """Code that a client has shipped: the directory ``need``, made of the client's ``top``; ``whole``: of all
    that belongs to it, so that nothing else there counts."""

    need: Need
    top: str
    whole: bool = True


class Setup(Message):
    """The world that a client's calls expect around them. Opaque to the broker: it travels encoded, as a
    blob.

    ``realm`` names client session and initializer: a child serves one realm only. ``prefix`` is the client's
    ``sys.prefix`` and ``host`` its host: a child on that host with that prefix takes ``path`` as it is,
    another one adds what exists.
    """

    realm: str
    cwd: str
    path: tuple[str, ...]
    prefix: str = ""
    host: str = ""
    initializer: bytes = b""  # pickled (function, initargs); empty: none
    max_tasks_per_child: int = 0  # 0: no limit
    environment: dict[str, str | None] = {}  # what the client has changed since it began; None: removed
    segments: bool = False  # results may be in shared memory: the client is on this host
    attention: Attention | None = None  # None: the output of its calls does not travel
    trees: tuple[Tree, ...] = ()  # what its client has shipped
    results: int = 0  # how large ones come (zfarm.edge.ways)


class Streaming(Message):
    """A lease has a stream. The broker tells its client with ``attempt`` and without ``owner``.

    The files of a lease are a stream of their own: in all that is said of it, lease and task stand with a
    minus sign.
    """

    lease: int
    owner: str
    task: int
    attempt: int = 0
    duct: str = ""  # where it may be had from its worker itself: as in Join; to a client with its host


class Listening(Message):
    """How far the reader of one stream is: it has used all below ``next`` and seen up to ``seen``. From the
    broker, ``next`` 0: nothing is said of that, but that nobody may have the stream over a duct any more."""

    lease: int
    next: int
    seen: int
    reading: bool = True  # False: nobody reads (any more)
    subscribed: bool = False  # items may be published; else they take the way of all messages
    ask: bool = False  # say what was sent, if that is more than was seen
    relayed: bool = False  # nothing may come over the duct where it was offered: that was found to be no use


# ---------------------------------------------------------------- client -> broker


class Hello(Message, tag="hello"):
    """Client -> broker, first of all and after Stranger: who I am. ``session`` is fresh per client life, or
    continues a job's. The tasks of a client with a ``job`` outlive it; of those that had it the last ``life``
    counts. ``number`` counts Hellos: a lower one comes late, from a link given up."""

    session: str
    versions: Versions
    host: str = ""
    pid: int = 0
    name: str = ""
    job: str = ""
    life: str = ""
    number: int = 0
    key: str = ""  # that it shows to workers whose ducts it dials, and to nobody else


class Attach(Message, tag="attach"):
    """Client -> broker, before Hello: I take this job over, and no other ``life``. Answered with Attached."""

    job: str
    versions: Versions
    life: str


class Submit(Message, tag="submit"):
    """Client -> broker: run these. Payload: ``len(names)`` functions, ``setups`` setups, then one body per
    call. ``digests`` has one for each function, empty for those without a name; a function that has one may
    be empty in the payload: it was sent before. Who does not have it any more answers Unknown."""

    calls: list[Call]
    names: list[str]
    setups: int
    forgets: list[int] = []  # as in Forget, which need not be said for itself then
    number: int = 0  # counts the Submits of this client
    demands: list[Demand] = []
    needs: list[tuple[Need, ...]] = []
    digests: list[bytes] = []  # empty: no function has a name


class Cancel(Message, tag="cancel"):
    """Client -> broker: cancel these unless they have started. Each is answered: Ended(cancelled) or Began,
    or Unknown. With ``force`` those that run are stopped, ``grace_us`` after a KeyboardInterrupt: Ended."""

    tasks: list[int]
    force: bool = False
    grace_us: int = 0


class Ask(Message, tag="ask"):
    """Client -> broker: these are open here; say again what has become of them."""

    tasks: list[int]


class Forget(Message, tag="forget"):
    """Client -> broker: the outcomes of these have arrived."""

    tasks: list[int]


class Pulse(Message, tag="pulse"):
    """Client -> broker: the client's beat. Answered with Echo."""

    number: int
    open: int


class Listen(Message, tag="listen"):
    """Client -> broker -> worker: streams are read, so far. A worker keeps no more than a window ahead."""

    listens: list[Listening]
    key: str = ""  # to a worker: whoever shows it may have these streams over the worker's duct


class Fetch(Message, tag="fetch"):
    """Client -> broker -> worker: send these items again that were sent. Answered with Items."""

    lease: int
    first: int
    last: int


class Chunks(Message, tag="chunks"):
    """Answer to Want: client -> broker -> worker, client -> archive, or from the archive. Payload: a blob per
    chunk."""

    lease: int
    task: int
    chunks: list[Chunk]


class Pin(Message, tag="pin"):
    """Client -> broker -> worker: of what the store of worker ``at`` keeps, handles of this client name this
    now (``keeps``), and that no more (``drops``). Answered with Pinned, and said again until then; with
    neither, it says that the client is there. ``fresh``: nothing that was said before counts.

    With ``over``, by the broker: the client is gone, and all of its handles.
    """

    at: str
    number: int
    keeps: list[Keep] = []
    drops: list[Need] = []
    fresh: bool = False
    owner: str = ""  # whose handles: by the broker
    over: bool = False


class Archive(Message, tag="archive"):
    """Client -> archive: keep this file or directory under that name, in place of what it was for. What is
    lacking of it is asked for with Want. Said again each beat, and answered with Archived."""

    number: int
    name: str
    need: Need
    mode: int


class Lookup(Message, tag="lookup"):
    """Client -> archive: what is kept under this name, or, without, under all names of this key; with ``all``
    of every key, for admins. Answered with Archived, in parts."""

    number: int
    name: str = ""
    all: bool = False


class Discard(Message, tag="discard"):
    """Client -> archive: keep no more what has this name. ``owner``: that of another key, for admins.
    Answered with Archived."""

    number: int
    name: str
    owner: str = ""


class Bye(Message, tag="bye"):
    """Client -> broker: I leave; cancel what is open, running calls included."""


class Look(Message, tag="look"):
    """Client or monitor -> broker: show me the farm. Answered with Picture; needs no Hello."""

    tasks_max: int = 200


class Why(Message, tag="why"):
    """Client or monitor -> broker: why is this task where it is? Answered with Reason; needs no Hello.

    It is the asker's own, or with ``others`` anybody's: ``owner`` names its client as pictures do, if known.
    """

    number: int
    task: int
    owner: str = ""
    others: bool = False


# ---------------------------------------------------------------- broker -> client


class Welcome(Message, tag="welcome"):
    """Broker -> client or worker, answer to Hello or Join. A new ``epoch`` means that the broker was
    started anew."""

    epoch: int
    versions: Versions
    workers: int = 0
    slots: int = 0
    grants: int = 0  # to a worker: Grants are counted on from here
    journal: bool = False  # what is accepted survives the broker
    books: int = 0  # to a client: names its books; what is unknown in books of this name has never begun
    topic: str = ""  # to a client: under which its items are published
    items: str = ""  # where items are published (to a worker) or had (to a client): an address or :PORT
    silence_us: int = 0  # to a worker: silent for longer than this, and its leases move
    blob_bytes: int = 0  # a larger blob is not taken: no call, no result; 0: nothing is said


class Stranger(Message, tag="stranger"):
    """Broker -> any peer: I do not know you (any more); say Hello or Join again. ``later``: when you must."""

    later: bool = False


class Refused(Message, tag="refused"):
    """Broker -> any peer: no, and why. ``code`` is the name of the exception of zfarm.errors to raise."""

    code: str
    text: str


class Ended(Message, tag="ended"):
    """Broker -> client: these have ended. Payload: one blob per outcome (empty where there is none)."""

    outcomes: list[Outcome]


class Booked(Message, tag="booked"):
    """Broker -> client: these are in the journal and survive whatever happens to the broker."""

    tasks: list[int]


class JobTask(Message):
    """One task of a job, for a client that takes the job over."""

    task: int
    name: str
    items: int = 0


class Attached(Message, tag="attached"):
    """Broker -> client: the job is this session, and these are ``total`` tasks of it, or a part of them.
    New ones are numbered from ``first`` on: no number of an earlier life comes again."""

    job: str
    session: str
    tasks: list[JobTask]
    total: int
    first: int


class Began(Message, tag="began"):
    """Broker -> client: these tasks run; worker -> broker: these leases run. They cannot be taken back any
    more."""

    tasks: list[int]


class Unknown(Message, tag="unknown"):
    """Broker -> client: I have never heard of these, or forgot them when you said so; submit them (again).

    ``seen`` is the number of your last Submit here: what you have said in a later one is on its way.
    ``lacks``: functions that some of them named, which are not here; send them again, too.
    """

    tasks: list[int]
    seen: int = 0
    lacks: list[bytes] = []


class Echo(Message, tag="echo"):
    """Broker -> client: I am here; ``slots`` tells how many there are now. What was said before the Pulse of
    this number is read, and noted for good if ``written``."""

    number: int
    slots: int = 0
    written: bool = True


class Reason(Message, tag="reason"):
    """Broker -> client, answer to Why: why this task is where it is, in a word that stays and a sentence.
    ``number`` 0: nobody has asked, and no worker can run such tasks."""

    number: int
    task: int
    code: str
    text: str
    name: str = ""
    owner: str = ""


class TaskPicture(Message):
    """One running task as dashboards show it."""

    owner: str
    task: int
    name: str
    worker: str
    age_s: float
    items: int = 0
    attempts: int = 0
    began: bool = False
    """The worker has said so: it does that of calls that take longer than a moment."""


class WorkerPicture(Message):
    """One worker as dashboards show it."""

    worker: str
    host: str
    pid: int
    slots: int
    room: int
    leases: int
    done: int
    failed: int
    deaths: int
    draining: bool
    last_seen_s: float
    uptime_s: float
    vitals: Vitals
    aside_s: float = 0.0  # its children keep dying: it is granted nothing for so long; 0: it is not set aside
    duct: str = ""  # where clients may dial it; empty: nowhere


class ClientPicture(Message):
    """One client as dashboards show it."""

    client: str
    host: str
    pid: int
    name: str
    queued: int
    leased: int
    ended: int
    away: bool


class FarmPicture(Message):
    """The whole farm in numbers. Counters count since the broker was started; ``number`` numbers pictures
    and notes."""

    number: int
    uptime_s: float
    epoch: int
    queued: int
    leased: int
    values: int
    errors: int
    cancelled: int
    lost: int
    retried: int
    workers: int
    slots: int
    clients: int
    refusing: str = ""  # why no new task is taken at the moment


class Picture(Message, tag="picture"):
    """Broker -> monitor: all that there is to see, at note ``farm.number``."""

    farm: FarmPicture
    workers: list[WorkerPicture]
    clients: list[ClientPicture]
    running: list[TaskPicture]
    queue: dict[str, int]  # function name -> queued tasks, the largest first, a few
    versions: Versions | None = None  # of the broker
    refusals: dict[str, int] = {}  # what was refused and how often, by the name of the limit or rule
    unmet: dict[str, int] = {}  # what no worker has, and how many tasks wait for it
    first: dict[str, str] = {}  # function name of ``queue`` -> one of its tasks, as CLIENT/NUMBER


# ---------------------------------------------------------------- worker -> broker


class Join(Message, tag="join"):
    """Worker -> broker, first of all and again after Stranger: here I am, and this is what I hold."""

    session: str
    versions: Versions
    slots: int
    host: str
    pid: int
    held: list[Held] = []
    resources: dict[str, int] = {}  # what it has for its calls, in thousandths
    labels: list[str] = []
    beat: int = 0  # as in Beat
    duct: str = ""  # where clients may dial it, and the key that it shows there: :PORT KEY


class Beat(Message, tag="beat"):
    """Worker -> broker: I am here, have seen your Grants up to ``seen``, and hold or owe these leases."""

    seen: int
    held: list[int]
    room: int
    vitals: Vitals | None = None
    waiting: list[int] = []  # those whose calls wait for nested ones
    beat: int = 0  # the number of this beat or Join; Grants and Noted name the last that was heard
    answer: bool = False  # it holds calls that are exclusive: tell it by Noted that this was heard


class Reports(Message, tag="reports"):
    """Worker -> broker: these leases have ended. Payload: one blob per report. Repeated until thanked."""

    reports: list[Report]


class Return(Message, tag="return"):
    """Worker -> broker: these leases were not started here and will not be; give them to somebody else.

    ``seen`` is the last Grants (or Welcome) that the worker had seen: of a lease that was granted again
    since, this says nothing. ``lacks``: functions that they named, which are not here; send them again.
    """

    leases: list[int]
    seen: int = 0
    lacks: list[bytes] = []


class Streams(Message, tag="streams"):
    """Worker -> broker -> client: these leases have streams; nothing can be had any more of those ``gone``.

    A worker says it before the first item, and of all streams after each Welcome.
    """

    streams: list[Streaming]
    gone: list[int] = []
    last: bool = False  # of a worker after a Welcome: it has no others


class Items(Message, tag="items"):
    """Worker -> client, published or by way of the broker: items of a stream. Payload: one blob each; none
    at all: these cannot be had any more."""

    lease: int
    first: int
    last: int


class Want(Message, tag="want"):
    """Worker -> broker -> client: this lease needs these blobs of its client, or of the archive. Also archive
    -> client, of what it shall keep, and client -> archive; the lease is a number of theirs then. Answered
    with Chunks.

    ``taken`` counts the bytes that have come for this lease. Nothing wanted: nothing is missing any more.
    """

    lease: int
    wants: list[Wanted]
    taken: int = 0
    task: int = 0  # by the broker
    host: str = ""  # of the worker, by the broker
    owner: str = ""  # whose task it is: by the broker, to its archive alone


class Pinned(Message, tag="pinned"):
    """Worker -> broker -> client: answer to Pin. Not ``known``: this store has nothing of that client any
    more, which is to say it all afresh."""

    at: str
    number: int
    known: bool = True
    owner: str = ""  # to the broker


class Archived(Message, tag="archived"):
    """Archive -> client: answer to Archive, Lookup and Discard. ``files`` from number ``first`` on, of a
    ``total``; a ``code`` is the error that its ``text`` is for. ``open``: it is not done yet."""

    number: int
    files: list[ArchivedFile] = []
    first: int = 0
    total: int = 0
    open: bool = False
    code: str = ""
    text: str = ""


class Sent(Message, tag="sent"):
    """Worker -> broker -> client, when asked: items were sent up to this number."""

    lease: int
    last: int


class Progress(Message, tag="progress"):
    """How far a task says it is; ``number`` is the call's in its child, then its lease, then its task."""

    number: int
    done: float
    total: float | None = None
    note: str = ""


class Printed(Message, tag="printed"):
    """Worker -> broker -> client: a task has printed this; ``number`` is its lease, then its task. Payload:
    one blob, whole lines. ``source`` is 1 for standard output, 2 for standard error, 3 for records of logging
    and warnings (zfarm.edge.records); ``dropped`` bytes before it are gone."""

    number: int
    source: int
    dropped: int = 0
    host: str = ""  # by the broker: where it runs


class Room(Message, tag="room"):
    """Worker -> broker: I can run this many at once now (slots plus children that only wait for nested
    calls). Who drains has no room, but for calls that its own ones wait for: in all ``own`` at once."""

    room: int
    waiting: list[int] = []  # as in Beat
    draining: bool = False
    own: int = 0
    children: list[int] = []  # the children whose calls wait for such calls


class Leave(Message, tag="leave"):
    """Worker -> broker: I go. I hold nothing any more, but for ``leases``: those had been given to children,
    which end now, so that they may have begun."""

    leases: list[int] = []


class Tunnel(Message, tag="tunnel"):
    """Worker <-> broker: frames of a client that lives in child ``channel``. It speaks in the name of
    ``owner``, the client whose calls run there: who names its session was given them. Payload: its frames."""

    channel: int
    owner: str = ""


class TunnelClosed(Message, tag="tunnel_closed"):
    """Worker -> broker: the client in child ``channel`` is gone."""

    channel: int


# ---------------------------------------------------------------- broker -> worker


class Grants(Message, tag="grants"):
    """Broker -> worker: run these. ``number`` counts on from the ``grants`` of the Welcome.

    Payload: ``functions`` functions, ``setups`` setups, then one body per lease. ``digests`` as in Submit;
    leases whose function is not here come back in a Return.
    """

    number: int
    leases: list[Lease]
    owners: list[str]
    functions: int
    setups: int
    demands: list[Demand] = []
    needs: list[tuple[Need, ...]] = []
    beat: int = 0  # as in Noted
    digests: list[bytes] = []
    own: list[int] = []  # those of a worker that drains: leases of calls that its own ones wait for


class Revoke(Message, tag="revoke"):
    """Broker -> worker: give these back if they have not started (Return), or say that they have (Began).

    With ``force`` stop those that have started too: their children are killed; nothing is answered. Unless
    there is a ``grace_us``: they are interrupted first and have that long to end, and all are reported.
    """

    leases: list[int]
    force: bool = False
    grace_us: int = 0


class Thanks(Message, tag="thanks"):
    """Broker -> worker: the reports about these leases are booked, or not wanted; drop them."""

    leases: list[int]


class Noted(Message, tag="noted"):
    """Broker -> worker: this is the last Beat or Join of yours that I have heard, and what was to be said
    about the leases in it was said before."""

    beat: int


class Drain(Message, tag="drain"):
    """Broker -> worker: finish what has started, return the rest, and leave."""


# ---------------------------------------------------------------- worker <-> child


class ChildCall(Message):
    """One call for a child; ``seq`` counts the calls of that child. ``function`` indexes the payload. A
    ``timed`` one, which has a timeout or a memory limit, is alone in its Run, and answered with Starts
    first."""

    seq: int
    function: int
    items: int = 0
    timed: bool = False
    memory_bytes: int = 0  # as in Call


class Run(Message, tag="run"):
    """Worker -> child: run these in order. Payload: ``functions`` functions, one setup if ``setup``, one
    body per call. ``digests`` as in Submit; ``drops`` are those that are not named any more after this."""

    calls: list[ChildCall]
    functions: int
    setup: bool = False
    store: str = ""  # where the files are that its calls need
    worker: str = ""  # with it: whose child this is, as HOST/PID
    digests: list[bytes] = []
    drops: list[bytes] = []
    blob_bytes: int = 0  # as in Welcome


class Done(Message):
    """One finished call of a child."""

    seq: int
    kind: int
    run_us: int


class Dones(Message, tag="dones"):
    """Child -> worker: these are done. Payload: one blob each. ``printed``: they may have printed something
    that the pipes still hold."""

    dones: list[Done]
    printed: bool = False


class Starts(Message, tag="starts"):
    """Child -> worker: call ``seq``, a timed one, starts now."""

    seq: int


class Emits(Message, tag="emits"):
    """Child -> worker: call ``seq`` has emitted these. Payload: one blob per item, in order. Of one that is
    ``latest`` only the newest counts. ``files``: they are pieces of files (zfarm.edge.parcels), a stream of
    their own."""

    seq: int
    latest: bool = False
    files: bool = False


class Delivers(Message, tag="delivers"):
    """Child -> worker: call ``seq`` has come to its end, and what follows of its files is its result
    (zfarm.edge.pieces); with ``whole``: that was all of it. Answered with Delivered."""

    seq: int
    whole: bool = False


class Delivered(Message, tag="delivered"):
    """Worker -> child, answer to a whole Delivers: the client of call ``seq`` has its result."""

    seq: int


class Borrow(Message, tag="borrow"):
    """Child -> worker: I need shared memory for results of so many bytes each. Answered with Lent."""

    sizes: list[int]


class Memory(Message):
    """A piece of shared memory of the worker, for ``size`` bytes: descriptor ``fd`` of process ``pid``, if
    its token is still this one. ``spilled``: it is a file. ``yours``: no other child is lent it while this
    one lives, so that it may stay mapped."""

    token: bytes
    pid: int
    fd: int
    size: int
    spilled: bool = False
    yours: bool = False


class Lent(Message, tag="lent"):
    """Worker -> child, answer to Borrow: here is some for the first of them; it is used in the next Dones."""

    memory: list[Memory]


class Unshare(Message, tag="unshare"):
    """Worker -> child: no one refers to this shared object any more, or will to what was in this segment."""

    key: bytes


class Released(Message, tag="released"):
    """Child -> worker: notes of the client in this child about results that it does not map any more
    (zfarm.edge.stowage)."""

    notes: bytes


class Waits(Message, tag="waits"):
    """Child -> worker: the running call waits for nested calls (True), or goes on (False)."""

    waiting: bool


# ---------------------------------------------------------------- the unions, one per direction

FromMonitor: TypeAlias = Look | Why
FromClient: TypeAlias = (
    Hello | Attach | Submit | Cancel | Ask | Forget | Pulse | Listen | Fetch | Chunks | Bye | Look | Why
    | Archive | Lookup | Discard | Want | Pin
)  # fmt: skip
ToClient: TypeAlias = (
    Welcome | Stranger | Refused | Attached | Booked | Ended | Began | Unknown | Echo | Picture
    | Streams | Items | Sent | Progress | Reason | Printed | Want | Chunks | Archived | Pinned
)  # fmt: skip
FromWorker: TypeAlias = (
    Join | Beat | Reports | Return | Began | Room | Leave | Tunnel | TunnelClosed
    | Streams | Items | Sent | Progress | Printed | Want | Pinned
)  # fmt: skip
ToWorker: TypeAlias = (
    Welcome | Stranger | Refused | Grants | Revoke | Thanks | Noted | Drain | Tunnel | Listen | Fetch | Chunks
    | Pin
)  # fmt: skip
ToChild: TypeAlias = Run | Tunnel | Lent | Unshare | Delivered
FromChild: TypeAlias = Dones | Starts | Waits | Tunnel | Emits | Progress | Borrow | Released | Delivers


# ---------------------------------------------------------------- notes: what the broker publishes to
# whoever watches


class FarmNote(Message, tag="farm"):
    """Note: the farm in numbers, what runs now, what waits. ``number`` grows by one with each FarmNote."""

    farm: FarmPicture
    running: list[TaskPicture]
    queue: dict[str, int]
    clients: list[ClientPicture]
    unmet: dict[str, int] = {}  # as in Picture
    first: dict[str, str] = {}  # as in Picture


class WorkersNote(Message, tag="workers"):
    """Note: the workers as they are now; one that is missing has left or was lost."""

    number: int
    workers: list[WorkerPicture]


class TextNote(Message, tag="text"):
    """Note: something that happened, in one sentence, for a log or a dashboard."""

    number: int
    level: str  # info, warning, error
    text: str


Note: TypeAlias = FarmNote | WorkersNote | TextNote


# ---------------------------------------------------------------- records: what the journal keeps


class Enrolled(Message, tag="enrolled"):
    """Record: this client is known. ``job`` is the name under which its tasks outlive it; empty: they do
    not. ``life`` is who speaks for it now."""

    client: str
    host: str = ""
    pid: int = 0
    name: str = ""
    job: str = ""
    books: int = 0  # as in Welcome
    life: str = ""
    lives: int = 0  # that have spoken for it before
    former: tuple[str, ...] = ()  # the last of those


class Accepted(Message, tag="accepted"):
    """Record: this task is in the books. Payload: function, setup, body."""

    client: str
    task: int
    name: str
    items: int = 0
    max_attempts: int = 3
    timeout_us: int = 0
    priority: int = 0
    memory_bytes: int = 0
    demand: Demand | None = None
    needs: tuple[Need, ...] = ()


class Struck(Message, tag="struck"):
    """Record: a child or worker died under this task, and with it this lease."""

    client: str
    task: int
    fate: Fate
    lease: int = 0


class Retried(Message, tag="retried"):
    """Record: with this lease the task ended in an error for which it is run again, after this delay."""

    client: str
    task: int
    lease: int
    delay_us: int


class Begun(Message, tag="begun"):
    """Record: this task, which may begin once only, was given to a worker with this lease. 0: it came back
    without having begun; below 0: an earlier broker may have done so, with a lease that is not known."""

    client: str
    task: int
    lease: int


class Settled(Message, tag="settled"):
    """Record: this task has ended. Payload: its blob."""

    client: str
    outcome: Outcome


class Forgotten(Message, tag="forgotten"):
    """Record: these outcomes have arrived at their client; nothing of their tasks is needed any more."""

    client: str
    tasks: list[int]


class Dropped(Message, tag="dropped"):
    """Record: this client is gone, and everything of it."""

    client: str


Record: TypeAlias = Enrolled | Accepted | Begun | Retried | Struck | Settled | Forgotten | Dropped


# ---------------------------------------------------------------- actions: what machines want done


class Action(msgspec.Struct, gc=False):
    """What a machine wants its shell to do, in the order given."""


class Send(Action):
    """Give this message to that peer."""

    peer: Any
    message: Any
    payload: Any = ()


class Publish(Action):
    """Publish this note to whoever watches."""

    note: Any


class Append(Action):
    """Broker: write these (record, payload) pairs to the journal and sync once, before anything that
    follows is done."""

    records: Any


class Tell(Action):
    """Log this sentence. ``level`` is a name of the logging module in small letters."""

    level: str
    text: str


class Drop(Action):
    """Forget this peer: nothing more will be sent to it."""

    peer: Any


class Resolve(Action):
    """Client: the task behind ``token`` has ended. ``blob`` is its payload."""

    token: Any
    outcome: Outcome
    blob: Any = b""


class Safe(Action):
    """Client: the task behind ``token`` is in the broker's journal."""

    token: Any


class TakenOver(Action):
    """Client: the job that it takes over is this session, and has these tasks; see Client.adopt."""

    session: str
    tasks: list[JobTask]


class Running(Action):
    """Client: the task behind ``token`` runs and cannot be cancelled any more."""

    token: Any


class PublishItems(Action):
    """Worker: publish these items under that topic, or ``direct``, over the duct. They may be lost."""

    topic: str
    items: Any
    payload: Any
    direct: bool = False


class Admit(Action):
    """Worker: whoever shows this key may have this stream over the duct; ``duct_up`` tells that they do."""

    lease: int
    key: str


class Dismiss(Action):
    """Worker: nobody may have this stream over the duct any more."""

    lease: int


class Dial(Action):
    """Client: get this stream over that duct; ``duct_broke`` tells that it has ended."""

    lease: int
    duct: str


class HangUp(Action):
    """Client: this stream is not wanted over that duct any more."""

    lease: int
    duct: str


class SeekBlob(Action):
    """Worker: look for this blob in the store, and keep what is there; answer with ``blob_found``."""

    errand: int
    need: Need


class StoreChunk(Action):
    """Worker: verify this chunk of a blob and write it, or take the whole from ``path``; answer with
    ``blob_stored`` or ``blob_failed``."""

    errand: int
    need: Need
    at: int
    check: bytes
    data: Any
    path: str = ""


class BuildTree(Action):
    """Worker: make the directory that this blob lists, whose files are there; answer as to StoreChunk."""

    errand: int
    need: Need


class DropBlob(Action):
    """Worker: nobody here needs what this errand was for any more."""

    errand: int
    need: Need


class PinBlobs(Action):
    """Worker: have the store follow this Pin; answer with ``pinned``, but to one that is over."""

    pin: Pin


class NameBlob(Action):
    """Archive: all that this upload needs is there: have it kept under its name; answer with ``named``."""

    upload: int
    archive: Archive


class SpoilBlob(Action):
    """Archive: what this was for cannot be kept: remove what has come of it, but for what others need."""

    need: Need


class Give(Action):
    """Client, archive: send these chunks of what the task behind ``token`` needs to the worker with that
    lease."""

    token: Any
    task: int
    lease: int
    host: str
    wants: Any


class PauseChild(Action):
    """Worker: read nothing more from this child, so that it waits when it emits; or read on."""

    child: int
    paused: bool


class ToldDelivered(Action):
    """Worker: tell this child that the client of its call ``seq`` has the result."""

    child: int
    seq: int


class Arrived(Action):
    """Client: items of the task behind ``token`` came, from number ``first`` on, each once and in order."""

    token: Any
    attempt: int
    first: int
    blobs: Any
    files: bool = False  # of the task's files


class Missed(Action):
    """Client: these items of the task behind ``token`` cannot be had."""

    token: Any
    attempt: int
    first: int
    last: int
    files: bool = False


class Explained(Action):
    """Client: the broker says why a task is where it is; ``reason`` is what it said."""

    reason: Any


class Looked(Action):
    """Client: the broker shows the farm."""

    picture: Any


class StreamOver(Action):
    """Client: the stream of the task behind ``token`` has come to its end."""

    token: Any
    files: bool = False


class Advanced(Action):
    """Client: the task behind ``token`` says how far it is; ``progress`` is what it said."""

    token: Any
    progress: Any


class Heard(Action):
    """Client: the task behind ``token``, a call of ``name``, has printed this."""

    token: Any
    name: str
    printed: Any
    blob: Blob


class Connected(Action):
    """Client, worker: the broker answered; ``welcome`` is what it said."""

    welcome: Any


class Rejected(Action):
    """Client, worker: the broker refused us for good, or is away for too long; ``code`` names the exception
    to raise."""

    code: str
    text: str


class StartChild(Action):
    """Worker: start a child under this number."""

    child: int


class RunCalls(Action):
    """Worker: send ``run`` with ``payload`` to that child."""

    child: int
    run: Any
    payload: Any


class TakeBack(Action):
    """Worker: void the calls that this child has not started; answer with ``child_took_back``."""

    child: int


class LimitChild(Action):
    """Worker: watch what this child has in use; answer with ``child_overshot`` if it becomes more than
    ``memory_bytes``. 0: watch it no more."""

    child: int
    memory_bytes: int


class DoomChild(Action):
    """Worker: kill this child at that time by its clock, also if nobody can say so any more; None: do not."""

    child: int
    at: float | None


class InterruptChild(Action):
    """Worker: send SIGINT to this child, for the call that runs in it."""

    child: int


class StopChild(Action):
    """Worker: end this child; with ``kill`` at once, together with its process group."""

    child: int
    kill: bool


class Finished(Action):
    """Worker: drained and left; the process may end."""
