"""The generated part of docs/architectures.md: every architecture with every column, and the reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from architecture_cells import COLUMNS

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
BEGIN, END = "<!-- measured from here: nox -s architectures -->\n", "<!-- measured to here -->\n"
SYMBOLS = {"works": "●", "refused": "–", "fails": "**✗**", "unbuilt": "·", None: "○"}
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Architecture, column, result."""


def write_page(results: Results) -> None:
    """Replace the generated part of the page; the other parts are written by hand."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{generated(results)}{END}{after}", encoding="utf-8")


def generated(results: Results) -> str:
    """The generated part as Markdown."""
    built = {k: r for k, r in results.items() if _state(r, "load") != "unbuilt"}
    run = {k: r for k, r in built.items() if r}
    parts = [_summary(results, run), _table(run), _reasons(run), _others(results, run)]
    return "\n".join(part for part in parts if part)


def _state(result: Mapping[str, Mapping[str, Any]], column: str) -> str | None:
    state: str | None = result.get(column, {}).get("state")
    return state


def _summary(results: Results, run: Results) -> str:
    cells = [cell for result in run.values() for cell in result.values()]
    versions = sorted({text for cell in cells for text in cell["versions"].split(", ")})
    dates = sorted({cell["date"] for cell in cells}) or ["never"]
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    counts = Counter(cell["state"] for cell in cells)
    total = len(run) * len(COLUMNS)
    return (
        f"transformers lists {len(results)} causal language models. {len(run)} of them were built and run in at least "
        f"one column, which makes {total} cells: {counts['works']} work, {counts['refused']} are refused with a "
        f"reason, {counts['fails']} fail, and {total - len(cells)} were not run.\n\n"
        f"Measured {when}, on a CPU in float32, with {', '.join(versions) or 'no versions'}.\n"
    )


def _table(run: Results) -> str:
    head = "".join(f" {c} |" for c in COLUMNS)
    lines = [f"| architecture |{head}", "|---|" + "---|" * len(COLUMNS)]
    lines += [f"| `{k}` | {' | '.join(SYMBOLS[_state(r, c)] for c in COLUMNS)} |" for k, r in run.items()]
    return "\n".join(lines) + "\n"


def _reasons(run: Results) -> str:
    lines: dict[tuple[str, str], list[str]] = {}
    for kind, result in run.items():
        for column in COLUMNS:
            if _state(result, column) in ("refused", "fails"):
                lines.setdefault((result[column]["state"], result[column]["note"] or ""), []).append(
                    f"{kind} ({column})"
                )
    if not lines:
        return ""
    rows = [f"| {state} | {', '.join(cells)} | {_cell(note)} |" for (state, note), cells in sorted(lines.items())]
    return "\n".join(["| | cells | reason |", "|---|---|---|", *rows]) + "\n"


def _others(results: Results, run: Results) -> str:
    unbuilt = [f"`{k}`" for k, r in results.items() if _state(r, "load") == "unbuilt"]
    not_run = [f"`{k}`" for k, r in results.items() if k not in run and _state(r, "load") != "unbuilt"]
    lines = []
    if unbuilt:
        lines.append(f"Not built by shrinking the config ({len(unbuilt)}): {', '.join(unbuilt)}.\n")
    if not_run:
        lines.append(f"Not run yet ({len(not_run)}): {', '.join(not_run)}.\n")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
