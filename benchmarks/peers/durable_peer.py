"""zfarm over TCP with CURVE, on a broker that keeps a journal, as it does by default."""

from __future__ import annotations

from benchmarks.peers.cluster import ClusterPeer


class Peer(ClusterPeer):
    """zfarm.Executor(address), and nothing accepted is ever lost."""

    title = "zfarm, TCP, journal"
    durable = True
