"""The generated part of docs/memory.md: every configuration with its predicted and its measured memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
BEGIN, END = "<!-- measured from here: nox -s memory_plan -->\n", "<!-- measured to here -->\n"


def write_page(results: Mapping[str, Any]) -> None:
    """Replace the generated part of the page; the other parts are written by hand."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    before, found, rest = text.partition(BEGIN)
    if not found:
        return
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{generated(results)}{END}{after}", encoding="utf-8")


def error_of(row: Mapping[str, Any]) -> float | None:
    """How much the prediction is above the measurement, as a fraction; None without a prediction."""
    found = row.get("predicted", {})
    return None if not found.get("peak") or found["unknown"] else found["peak"] / row["measured"] - 1


def figures(rows: Sequence[Mapping[str, Any]]) -> str:
    """The median and the extremes of the errors, and how many measurements the interval contains, as a clause."""
    errors = [e for e in map(error_of, rows) if e is not None]
    inside = sum(r["predicted"]["low"] <= r["measured"] <= r["predicted"]["high"] for r in rows)
    absolute = statistics.median(abs(e) for e in errors)
    return (
        f"median error {statistics.median(errors):+.1%}, median of the absolute error {absolute:.1%}, furthest under "
        f"{min(0.0, *errors):+.1%}, furthest over {max(0.0, *errors):+.1%}; {inside} of {len(errors)} measurements are "
        "within the interval"
    )


def generated(results: Mapping[str, Any]) -> str:
    """The generated part as Markdown."""
    rows = [row for row in results["rows"] if error_of(row) is not None]
    if not rows:
        return "No configuration has been measured and predicted yet.\n"
    rows.sort(key=lambda row: -abs(error_of(row) or 0.0))
    machine = results["machine"]
    versions = ", ".join(f"{name} {version.partition('+')[0]}" for name, version in machine["versions"].items())
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    later = [row for row in rows if row["later"]]
    first = [row for row in rows if not row["later"]]
    parts = [
        f"{len(rows)} configurations: {figures(rows)}.",
        *([f"Chosen before the planner was frozen, {len(first)}: {figures(first)}."] if first and later else ()),
        *([f"Chosen at random after it was frozen, {len(later)}, marked with ●: {figures(later)}."] if later else ()),
        f"Measured {when} on {machine['cores']} cores of {machine['processor']} ({machine['system']}) in float32, with "
        f"Python {machine['python']}, {versions}.",
        _table(rows),
    ]
    return "\n\n".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "| model | quantizer | adapter | length | batch | checkpointing | packing | measured | predicted | error | |"
    lines = [head, "|---|---|---|--:|--:|---|---|--:|--:|--:|---|"]
    for row in rows:
        yes = ["yes" if row[name] else "" for name in ("checkpointing", "packing")]
        sizes = [f"{size / 1e6:,.1f} MB" for size in (row["measured"], row["predicted"]["peak"])]
        cells = [
            *(f"`{row[name]}`" if name != "model" else row[name] for name in ("model", "quant", "adapter")),
            f"{row['length']}", f"{row['batch']}", *yes, *sizes, f"{error_of(row):+.1%}", "●" if row["later"] else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
