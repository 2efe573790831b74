"""Peers with a key of their own that talk about what is not their own: that must change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zfarm import messages as m

if TYPE_CHECKING:
    from tests.simulation.farm import Farm

ROGUES = ("rogue client", "rogue worker", "rogue stranger")
VERSIONS = m.Versions(protocol=m.PROTOCOL, zfarm="0", python="3")


def rogue_speaks(farm: Farm) -> None:
    """A peer with a key of its own talks about what is not its own: that must change nothing."""
    rng = farm.rng
    session = rng.choice(ROGUES[:2])
    known = sorted(rng.choice((farm.books.living.values(), farm.books.granted)))
    leases = rng.sample(known, min(3, len(known)))
    tasks = [rng.randint(1, 50) for _ in range(3)]
    reports = [m.Report(lease, rng.choice((m.VALUE, m.ERROR, m.LOST)), 10) for lease in leases]
    said: list[tuple[m.Message, list[bytes]]] = [
        (m.Hello(session, VERSIONS, key="the key of a rogue"), []),
        (m.Submit([m.Call(n + 1000, 0, 0) for n in range(2)], ["f"], 1), [b"f", b"s", b"1", b"2"]),
        (m.Cancel(tasks), []),
        (m.Ask(tasks), []),
        (m.Forget(tasks), []),
        (m.Pulse(1, 3), []),
        (m.Listen([m.Listening(n, 1 << 40, 0) for lease in leases for n in (lease, -lease)], "a key"), []),
        (m.Look(), []),
        *((m.Chunks(lease, tasks[0], [m.Chunk(bytes(32), 8)]), [b"forged.."]) for lease in leases),
        (m.Bye(), []),
    ]
    if session == "rogue worker":
        held = [m.Held(lease, "nobody", rng.randint(1, 50), rng.random() < 0.5) for lease in leases]
        farm.broker.arrived(session, m.Join(session, VERSIONS, 0, "host-r", 1, held), [])
        said = [
            (m.Beat(rng.randint(0, 3), leases, 0), []),
            (m.Reports(reports), [b"forged"] * len(reports)),
            (m.Return(leases), []),
            (m.Began(leases), []),
            (m.Streams([m.Streaming(lease, "nobody", 1) for lease in leases], leases), []),
            *((m.Items(lease, 1, 1), [b"forged"]) for lease in leases),
            (m.Room(0, [], True, 4, [1, 2]), []),
            *((m.Want(lease, [m.Wanted(bytes(32), 8, 0, 8)]), []) for lease in leases),
            (m.Leave(), []),
        ]
    message, payload = rng.choice(said)
    peer = session if rng.random() < 0.6 else rng.choice(ROGUES[:2])  # some in a role that is not theirs
    if isinstance(message, m.Submit):
        peer = ROGUES[2]  # it never says Hello, so nobody runs this
    farm.broker.arrived(peer, message, payload)
