"""Replays one seed with its story, or runs a range of them: python -m tests.simulation --seed 7 --trace."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.run import simulate, spare_the_collector


def main() -> int:
    """The command line; the exit code says whether every seed passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("A", "B"), help="run A to B-1")
    parser.add_argument("--trace", action="store_true", help="print the whole story of the seed")
    parser.add_argument("--probes", action="store_true", help="print which rare branches were taken")
    parser.add_argument(
        "--digest", action="store_true", help="print the hash of the seed's story, and no more"
    )
    parser.add_argument("--all", action="store_true", help="go on after a failure")
    asked = parser.parse_args()
    first, end = (asked.seed, asked.seed + 1) if asked.seed is not None else asked.seeds or (0, 500)
    spare_the_collector()
    probes: Counter[str] = Counter()
    events, virtual_s, failed, began = 0, 0.0, [], time.perf_counter()
    for seed in range(first, end):
        result = simulate(seed, keep=None if asked.trace else 200)
        probes += result.probes
        events += result.events
        virtual_s += result.virtual_s
        if asked.digest:
            print(result.digest)
            return bool(result.failure)
        if asked.trace:
            print(result.farm.story.text())
        if result.failure:
            failed.append(seed)
            last_line = result.failure.strip().splitlines()[-1]
            print(f"seed {seed}: {last_line[:300]}" if asked.all else result.report(), flush=True)
            if not asked.all:
                break
    took = time.perf_counter() - began
    if asked.probes:
        print("\n".join(f"{count:8} {kind}" for kind, count in sorted(probes.items())))
    done = seed - first + 1
    rates = f"{done / took:.1f} seeds/s, {events / took:,.0f} events/s, {virtual_s / 3600:.2f} virtual hours"
    print(f"{done} seeds in {took:.1f} s ({rates}); failed: {failed or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
