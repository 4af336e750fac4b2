"""From runs to a table: ratios of runs of the same round, their median, and how sure it is."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from speed_peers.contestants import BARE, OURS, PADDED, TRL, TRL_PACKED
from speed_peers.measure import Result

Round = dict[str, Result]
TARGETS = (
    ("tokens a processor second, of transformers.Trainer's", PADDED, "speed", 1.8, ">="),
    ("tokens a processor second, of trl sft's", TRL, "speed", 2.2, ">="),
    ("tokens a processor second, of trl sft's with packing", TRL_PACKED, "speed", 1.6, ">="),
    ("tokens a processor second, of the bare loop's", BARE, "speed", 0.97, ">="),
    ("memory above the floor, of transformers.Trainer's", PADDED, "memory", 0.6, "<="),
    ("processor time to the first step, of trl sft's", TRL, "first_cpu", 0.5, "<="),
)
"""What this project aims at: (words, beside whom, what, figure, direction)."""


def value(result: Result, what: str, floor: float) -> float:
    """`memory` is the peak above `floor`, which is the same for all; else a field of the result."""
    return result.peak_gb - floor if what == "memory" else float(getattr(result, what))


def floor_of(rounds: Sequence[Round]) -> float:
    """The bare loop's memory with nothing but imports and weights; without it, the least of all."""
    found = [r[BARE].floor_gb for r in rounds if BARE in r] or [x.floor_gb for r in rounds for x in r.values()]
    return min(found)


def interval(ratios: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the median, with a fixed seed. Of few rounds it is little more than their range."""
    choose = random.Random(0).choices
    medians = sorted(statistics.median(choose(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def ratios(rounds: Sequence[Round], of: str, beside: str, what: str) -> list[float]:
    """One ratio a round in which both ran."""
    floor = floor_of(rounds)
    both = [r for r in rounds if of in r and beside in r]
    return [value(r[of], what, floor) / value(r[beside], what, floor) for r in both]


def reached(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Each target with what was measured."""
    found = []
    for words, beside, what, wanted, direction in TARGETS:
        pairs = ratios(rounds, OURS, beside, what)
        if pairs:
            median = statistics.median(pairs)
            met = median >= wanted if direction == ">=" else median <= wanted
            about = {"what": words, "pairs": pairs, "median": median, "interval": interval(pairs)}
            found.append({**about, "target": f"{direction} {wanted}", "met": met})
    return found


def table(rounds: Sequence[Round], names: Sequence[str]) -> str:
    """Two Markdown tables: medians of each contestant, and the ratios."""
    floor = floor_of(rounds)
    columns: tuple[tuple[str, Callable[[Result], float], str], ...] = (
        ("real tokens", lambda r: r.tokens, ".0f"),
        ("steps", lambda r: r.steps, ".0f"),
        ("padding", lambda r: r.step_positions / r.step_tokens, ".2f"),
        ("tokens/CPU-s", lambda r: r.speed, ".1f"),
        ("tokens/s", lambda r: r.step_tokens / r.step_wall, ".1f"),
        ("memory above floor, GB", lambda r: r.peak_gb - floor, ".2f"),
        ("to first step, CPU-s", lambda r: r.first_cpu, ".1f"),
        ("whole, CPU-s", lambda r: r.whole_cpu, ".1f"),
        ("loss of step 1", lambda r: r.losses[0], ".6f"),
        ("last loss", lambda r: r.losses[-1], ".4f"),
    )
    lines = ["| | " + " | ".join(c[0] for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        runs = [r[name] for r in rounds if name in r]
        cells = [format(statistics.median(map(get, runs)), form) for _, get, form in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"| {OURS} | ratio | 95 % | of each round | target | |", "|---|---|---|---|---|---|"]
    for one in reached(rounds):
        low, high = one["interval"]
        each = ", ".join(f"{x:.2f}" for x in one["pairs"])
        verdict = "" if one["met"] else "not reached"
        lines.append(
            f"| {one['what']} | {one['median']:.2f} | {low:.2f} to {high:.2f} | {each} | {one['target']} | {verdict} |"
        )
    return "\n".join(lines)
