"""The time of a step by kind of operation: torch's operations, grouped by purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from speed_peers.measure import OUTSIDE, Result

GROUPS = (
    ("attention", ("scaled_dot_product",)),
    ("loss", ("softmax", "nll_loss", "cross_entropy", "logsumexp", "logprob", "aten::exp")),
    ("dequantizing", ("bitsandbytes",)),
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn", "mkl")),
    ("copies and other shapes", ("copy_", "aten::cat", "index", "gather", "aten::roll", "_to_copy", "clone", "stack")),
    ("filling with a number", ("zero_", "fill_", "aten::full", "zeros", "ones")),
    ("optimizer", ("optimizer", "foreach", "_fused", "addcmul", "addcdiv", "lerp")),
)
"""The groups, each with parts of names of operations. An operation belongs to the first group that matches."""
OTHER = "element by element, and the rest"
NONE = "outside torch's operations"
ORDER = ("matrix products", "dequantizing", "attention", "loss", "copies and other shapes",
         "filling with a number", "optimizer", OTHER, NONE)  # fmt: skip


def group_of(operation: str) -> str:
    if operation == OUTSIDE:
        return NONE
    name = operation.lower()
    return next((title for title, parts in GROUPS if any(p in name for p in parts)), OTHER)


def grouped(profile: Mapping[str, float]) -> dict[str, float]:
    """The seconds of each group."""
    found: dict[str, float] = {}
    for operation, seconds in profile.items():
        group = group_of(operation)
        found[group] = found.get(group, 0.0) + seconds
    return found


def profile_table(results: Sequence[Result], most: int = 12, unit: str = "real token") -> str:
    """Milliseconds per `unit`: of each group, all runs side by side, then of the longest operations of each run.

    `profile_tokens` of the results is the number of units.
    """
    scale = {r.name: 1e3 / r.profile_tokens for r in results}
    groups = {r.name: grouped(r.profile) for r in results}
    lines = [f"| ms per {unit} | " + " | ".join(scale) + " |", "|---" * (len(results) + 1) + "|"]
    for group in ORDER:
        if any(group in found for found in groups.values()):
            cells = [f"{scale[name] * found.get(group, 0.0):.2f}" for name, found in groups.items()]
            lines.append(f"| {group} | " + " | ".join(cells) + " |")
    whole = [f"{scale[r.name] * sum(r.profile.values()):.2f}" for r in results]
    lines += ["| all | " + " | ".join(whole) + " |"]
    for r in results:
        lines += ["", f"{r.name}:"]
        longest = sorted(r.profile.items(), key=lambda item: -item[1])[:most]
        lines += [f"  {scale[r.name] * seconds:7.3f}  {group_of(name)}: {name}" for name, seconds in longest]
    return "\n".join(lines)
