"""zfarm over TCP with CURVE, on a broker without a journal."""

from __future__ import annotations

from benchmarks.peers.cluster import ClusterPeer


class Peer(ClusterPeer):
    """zfarm.Executor(address)."""

    title = "zfarm, TCP"
    journal = ("--journal", "none")
