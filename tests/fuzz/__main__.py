"""Fuzzes the decoders and the broker's core until something breaks: python -m tests.fuzz --seconds 600.

The coverage-guided engine is libFuzzer by way of atheris, which ``make fuzz`` installs. What it finds
is written to a file ``crash-...`` here; ``python -m tests.fuzz --replay FILE`` tells it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

SEEDS = range(40)
"""Simulated farms whose stories are the fuzzer's first ones."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--replay", type=Path)
    chosen = parser.parse_args()
    import atheris  # not at the top: everyone else may import this package without it

    with atheris.instrument_imports(include=["zfarm"]):
        from tests.fuzz.stories import recorded, tell
    if chosen.replay is not None:
        print(f"{tell(chosen.replay.read_bytes())} messages taken, and nothing broke")
        return
    with tempfile.TemporaryDirectory() as corpus:
        for seed in SEEDS:
            (Path(corpus) / f"seed-{seed}").write_bytes(recorded(seed))
        options = [f"-max_total_time={chosen.seconds}", "-max_len=20000", "-timeout=20", "-rss_limit_mb=2048"]
        atheris.Setup([sys.argv[0], *options, corpus], tell_quietly(tell))
        atheris.Fuzz()


def tell_quietly(tell):
    """libFuzzer wants None."""

    def run(story: bytes) -> None:
        tell(story)

    return run


if __name__ == "__main__":
    main()
