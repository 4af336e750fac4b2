"""From runs to a table: ratios of runs of the same round, their median, and its confidence interval."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from speed_peers.contestants import (
    BARE,
    BARE_HUGE,
    FLATTENED,
    FLATTENED_HUGE,
    OURS,
    OURS_PACKED,
    PADDED,
    PADDED_HUGE,
    TRL,
    TRL_32,
    TRL_FREE,
    TRL_FREE_HUGE,
    TRL_HUGE,
    TRL_PACKED,
    TRL_PACKED_32,
    TRL_PACKED_HUGE,
)  # fmt: skip
from speed_peers.measure import Result

Round = dict[str, Result]
TARGETS = (
    (OURS, PADDED, "speed", 1.8, ">="),
    (OURS, PADDED_HUGE, "speed", None, ">="),
    (OURS, FLATTENED, "speed", None, ">="),
    (OURS, FLATTENED_HUGE, "speed", None, ">="),
    (OURS, TRL, "speed", 2.2, ">="),
    (OURS, TRL_32, "speed", 2.2, ">="),
    (OURS, TRL_HUGE, "speed", None, ">="),
    (OURS, TRL_FREE, "speed", None, ">="),
    (OURS, TRL_FREE_HUGE, "speed", None, ">="),
    (OURS, TRL_PACKED, "speed", 1.6, ">="),
    (OURS_PACKED, TRL_PACKED, "speed", 1.6, ">="),
    (OURS, TRL_PACKED_32, "speed", 1.6, ">="),
    (OURS_PACKED, TRL_PACKED_32, "speed", 1.6, ">="),
    (OURS_PACKED, TRL_PACKED_HUGE, "speed", None, ">="),
    (OURS, BARE, "speed", 0.97, ">="),
    (OURS, BARE_HUGE, "speed", 0.97, ">="),
    (OURS, PADDED, "memory", 0.6, "<="),
    (OURS, PADDED_HUGE, "memory", None, "<="),
    (OURS, TRL_32, "memory", None, "<="),
    (OURS, TRL, "first_cpu", 0.5, "<="),
    (OURS, TRL_32, "first_cpu", 0.5, "<="),
)
"""The targets: (contestant, compared with, quantity, value, direction). Without a value, the ratio is only reported."""
WORDS = {
    "speed": "tokens per CPU-second",
    "memory": "memory above the floor",
    "first_cpu": "CPU time to the first step",
}


def value(result: Result, what: str, floor: float) -> float:
    """For `memory`, the peak above `floor`, which is the same for all contestants; otherwise a field of the result."""
    return result.peak_gb - floor if what == "memory" else float(getattr(result, what))


def floor_of(rounds: Sequence[Round]) -> float:
    """The memory of the bare loop with only imports and weights; if it did not run, the smallest of all contestants."""
    found = [r[n].floor_gb for r in rounds for n in (BARE, BARE_HUGE) if n in r] or [
        x.floor_gb for r in rounds for x in r.values()
    ]
    return min(found)


def interval(ratios: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the median, with a fixed seed. For few rounds, it is little more than their range."""
    choose = random.Random(0).choices
    medians = sorted(statistics.median(choose(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def ratios(rounds: Sequence[Round], of: str, beside: str, what: str) -> list[float]:
    """One ratio for each round in which both ran."""
    floor = floor_of(rounds)
    both = [r for r in rounds if of in r and beside in r]
    return [value(r[of], what, floor) / value(r[beside], what, floor) for r in both]


def reached(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Each target with the measured ratios."""
    found = []
    for who, beside, what, wanted, direction in TARGETS:
        pairs = ratios(rounds, who, beside, what)
        if pairs:
            median = statistics.median(pairs)
            about = {"who": who, "beside": beside, "what": WORDS[what], "pairs": pairs, "median": median}
            about["interval"] = interval(pairs)
            if wanted is not None:
                about["target"] = f"{direction} {wanted}"
                about["met"] = median >= wanted if direction == ">=" else median <= wanted
            found.append(about)
    return found


def table(rounds: Sequence[Round], names: Sequence[str]) -> str:
    """Two Markdown tables: medians of each contestant, and the ratios."""
    floor = floor_of(rounds)
    bare = any(n in r for r in rounds for n in (BARE, BARE_HUGE))
    whose = "start of the bare loop" if bare else "smallest start"
    columns: tuple[tuple[str, Callable[[Result], float], str], ...] = (
        ("real tokens", lambda r: r.tokens, ".0f"),
        ("steps", lambda r: r.steps, ".0f"),
        ("padding", lambda r: r.step_positions / r.step_tokens, ".2f"),
        ("tokens/CPU-s", lambda r: r.speed, ".1f"),
        ("tokens/s", lambda r: r.step_tokens / r.step_wall, ".1f"),
        (f"GB above the {whose}", lambda r: r.peak_gb - floor, ".2f"),
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
    lines += ["", "| | compared with | what | ratio | 95 % interval | single ratios | aim | |", "|---" * 8 + "|"]
    for one in reached(rounds):
        low, high = one["interval"]
        each = ", ".join(f"{x:.2f}" for x in one["pairs"])
        verdict = "" if one.get("met", True) else "not reached"
        lines.append(
            f"| {one['who']} | {one['beside']} | {one['what']} | {one['median']:.2f} | {low:.2f} to {high:.2f} | "
            f"{each} | {one.get('target', '')} | {verdict} |"
        )
    return "\n".join(lines)
