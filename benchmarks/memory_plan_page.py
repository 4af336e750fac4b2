"""The generated part of docs/memory.md: every configuration with its predicted and its measured memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "memory.md"
BEGIN, END = "<!-- measured from here: nox -s memory-plan -->\n", "<!-- measured to here -->\n"


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
    peak = row.get("predicted", {}).get("peak")
    return None if peak is None else peak / row["measured"] - 1


def generated(results: Mapping[str, Any]) -> str:
    """The generated part as Markdown."""
    return "TODO\n"
