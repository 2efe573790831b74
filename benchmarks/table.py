"""Medians, spreads and ratios as a table; knows what each figure means and what zfarm aims at."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.table import Table

Figures = dict[str, float]
Results = dict[str, dict[str, list[Figures]]]
"""Workload to peer to the figures of each repetition."""


@dataclass(frozen=True)
class Row:
    """One figure: ``more`` is better, or less; ``aims`` maps a peer to the ratio wanted, or "" to a limit."""

    workload: str
    figure: str
    title: str
    more: bool = True
    form: Callable[[float], str] = lambda value: f"{value:,.0f}"
    aim: tuple[str, float] | None = None
    ratio: bool = True
    """False where peers have next to nothing of it, and a ratio would say nothing."""


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{value:.2f}"


ROWS = [
    Row("w1", "calls_per_s", "W1 submit one by one, calls/s", aim=("ppe", 5.0)),
    Row("w1", "main_calls_per_s", "W1 a function of __main__, calls/s"),
    Row("w1", "lambda_calls_per_s", "W1 a lambda, calls/s"),
    Row("w1", "submits_per_s", "W1 submit() alone, calls/s"),
    Row("w1", "cpu_us", "W1 CPU of all processes per call, µs", more=False),
    Row("w2", "items_per_s", "W2 map, default call, items/s", aim=("pool", 1.0)),
    Row("w2", "tuned_items_per_s", "W2 map, tuned chunks, items/s"),
    Row("w3", "p50_us", "W3 round trip p50, µs", more=False, aim=("ppe", 2.2)),
    Row("w3", "p99_us", "W3 round trip p99, µs", more=False, aim=("", 500)),
    Row("w3", "cpu_us", "W3 CPU of all processes per trip, µs", more=False),
    Row("w4", "echo_mb_per_s", "W4 100 MB out and back, MB/s"),
    Row("w4", "naive_s", "W4 100 MB to 20 calls, s", more=False, form=_seconds),
    Row("w4", "shared_s", "W4 the same by a handle, s", more=False, form=_seconds, ratio=False),
    Row("w5", "efficiency", "W5 efficiency of 1 ms sleeps", form=_seconds, aim=("", 0.9)),
    Row("w6", "total_s", "W6 cold start to clean end, s", more=False, form=_seconds, aim=("", 0.4)),
    Row("w6", "cpu_s", "W6 CPU of all that, s", more=False, form=_seconds),
    Row("w6", "import_ms", "W6 import, ms", more=False, form=lambda value: f"{value:.1f}", aim=("", 80)),
    Row("w7", "client_bytes", "W7 client bytes per queued call", more=False, aim=("", 1300)),
    Row("w7", "helper_bytes", "W7 helpers' bytes per queued call", more=False, aim=("", 600), ratio=False),
    Row("w7", "submits_per_s", "W7 submits/s while nothing runs"),
    Row("w7", "drains_per_s", "W7 calls/s out of a full queue"),
    Row("w8", "accepted_per_s", "W8 accepted for good, calls/s", ratio=False),
    Row(
        "idle",
        "percent",
        "idle, % of one core",
        more=False,
        form=lambda value: f"{value:.2f}",
        aim=("", 1),
        ratio=False,
    ),
]

TITLES = {
    "tcp": "zfarm, TCP",
    "durable": "zfarm, TCP, journal",
    "zfarm": "zfarm",
    "ppe": "ProcessPoolExecutor",
    "pool": "mp.Pool",
}


def table(results: Results, peers: list[str]) -> Table:
    """All that was measured: medians with (lowest to highest), and ratios of the first peer to the others."""
    made = Table(
        box=box.SIMPLE_HEAD, title="medians (lowest – highest); ratios are of medians", title_justify="left"
    )
    made.add_column("")
    for peer in peers:
        made.add_column(TITLES.get(peer, peer), justify="right")
    for other in peers[1:]:
        made.add_column(f"{peers[0]} / {other}", justify="right")
    if peers[0] == "zfarm":
        made.add_column("aim", justify="right")
    for row in ROWS:
        values = {peer: _values(results, row, peer) for peer in peers}
        if any(values.values()):
            made.add_row(*_cells(row, peers, values))
    return made


def _values(results: Results, row: Row, peer: str) -> list[float]:
    runs = results.get(row.workload, {}).get(peer, [])
    return [figures[row.figure] for figures in runs if row.figure in figures]


def _cells(row: Row, peers: list[str], values: dict[str, list[float]]) -> list[str]:
    cells = [f"{row.title} {'↑' if row.more else '↓'}"]
    medians = {peer: statistics.median(values[peer]) for peer in peers if values[peer]}
    for peer in peers:
        if not values[peer]:
            cells.append("–")
            continue
        spread = f" [dim]({row.form(min(values[peer]))}–{row.form(max(values[peer]))})[/]"
        cells.append(row.form(medians[peer]) + (spread if len(values[peer]) > 1 else ""))
    first = peers[0]
    for other in peers[1:]:
        known = row.ratio and first in medians and medians.get(other)
        cells.append(f"{medians[first] / medians[other]:.2f} ×" if known else "–")
    if first == "zfarm":
        cells.append(_verdict(row, medians))
    return cells


def _verdict(row: Row, medians: dict[str, float]) -> str:
    """The aim, green where it is met."""
    if row.aim is None or "zfarm" not in medians:
        return ""
    peer, wanted = row.aim
    if peer and not medians.get(peer):
        return ""
    got = medians["zfarm"] / medians[peer] if peer else medians["zfarm"]
    met = got >= wanted if row.more else got <= wanted
    sign = "≥" if row.more else "≤"
    text = f"{sign} {wanted:g} × {peer}" if peer else f"{sign} {wanted:g}"
    return f"[{'green' if met else 'red'}]{text}[/]"
