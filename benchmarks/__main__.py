"""The one command: ``python -m benchmarks`` runs workloads for all peers, interleaved, and prints ratios."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import peers
from benchmarks.table import Results, table
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[1]
DEFAULT_PEERS = "zfarm,ppe,pool"
QUICK_SCALE = 0.1
TIMEOUT_S = 600


def main() -> None:
    """Parse, measure, print."""
    args = _arguments()
    results: Results = {}
    facts = machine_facts()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        steps = [(n, w) for n in range(args.repeat) for w in args.only]
        task = progress.add_task("measuring", total=len(steps) * len(args.peers))
        for repetition, workload in steps:
            turn = repetition % len(args.peers)
            for peer in args.peers[turn:] + args.peers[:turn]:  # nobody is always the first
                progress.update(task, description=f"{workload} {peer} {repetition + 1}/{args.repeat}")
                figures = measure(peer, workload, args)
                results.setdefault(workload, {}).setdefault(peer, []).append(figures)
                if args.json:
                    _write_line(args.json, facts, peer, workload, repetition, figures)
                progress.advance(task)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table(results, args.peers))
    console.print("  ".join(f"{key} {value}" for key, value in facts.items()), style="dim", highlight=False)


def measure(peer: str, workload: str, args: argparse.Namespace) -> dict[str, float]:
    """One repetition in a fresh process; nothing when that fails."""
    command = [sys.executable, "-m", "benchmarks.workloads", peer, workload]
    command += ["--workers", str(args.workers), "--scale", str(QUICK_SCALE if args.quick else 1.0)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
        figures: dict[str, float] = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        complain(f"{peer} {workload} failed:\n{error.stderr[-2000:]}")
        return {}
    except subprocess.TimeoutExpired:
        complain(f"{peer} {workload} took longer than {TIMEOUT_S} s")
        return {}
    return figures


def complain(text: str) -> None:
    """Say on stderr what could not be measured."""
    Console(stderr=True).print(text, style="red", markup=False, highlight=False)


def machine_facts() -> dict[str, Any]:
    """What the figures depend on."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "git": git.stdout.strip(),
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _write_line(
    file: IO[str], facts: dict[str, Any], peer: str, workload: str, repetition: int, figures: dict[str, float]
) -> None:
    line = {**facts, "at": time.time(), "load": round(os.getloadavg()[0], 2), "peer": peer}
    line |= {"workload": workload, "repetition": repetition, "figures": figures}
    file.write(json.dumps(line) + "\n")
    file.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default=",".join(WORKLOADS), help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--peers", default=DEFAULT_PEERS, help=f"of {', '.join(peers.PEERS)}")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions, of which the median counts (3)")
    parser.add_argument("--workers", type=int, default=2, help="workers of each peer (2)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the tasks: for a look, not a claim")
    parser.add_argument("--json", type=argparse.FileType("a"), help="append one line per measurement")
    args = parser.parse_args()
    args.only, args.peers = args.only.split(","), args.peers.split(",")
    for name in args.only:
        if name not in WORKLOADS:
            parser.error(f"no workload {name!r}; there are {', '.join(WORKLOADS)}")
    for name in args.peers:
        if name not in peers.PEERS:
            parser.error(f"no peer {name!r}; there are {', '.join(peers.PEERS)}")
        if not peers.available(name):
            parser.error(f"{name} is not installed")
    return args


if __name__ == "__main__":
    main()
