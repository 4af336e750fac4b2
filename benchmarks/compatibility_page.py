"""The generated part of docs/compatibility.md: every bundled pair with its largest error, and the refused pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smollm3_finetune.compatibility.matrix import Cell, State
from smollm3_finetune.compatibility.results import Result, Use

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
BEGIN, END = "<!-- measured from here: nox -s compat -->\n", "<!-- measured to here -->\n"
ERRORS = {
    Use.TRAIN: ("gradients", "logits", "weights", "restored"),
    Use.MERGE: ("drift",),
    Use.PREFER: ("margin", "gradients", "reference", "branches"),
}
"""The figures whose maximum the table shows."""


def write_page(cells: Sequence[Cell]) -> None:
    """Replace the generated part of the page; the other parts are written by hand."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{generated(cells)}{END}{after}", encoding="utf-8")


def generated(cells: Sequence[Cell]) -> str:
    """The generated part as Markdown. It does not depend on the installed versions."""
    parts = [_summary(cells), _table(cells), _refused(cells), _failing(cells)]
    return "\n".join(part for part in parts if part)


def _summary(cells: Sequence[Cell]) -> str:
    results = [c.evidence[0].result for c in cells if c.evidence]
    allowed = [c for c in cells if c.state in (State.MEASURED, State.DECLARED)]
    measured = [c for c in allowed if c.evidence]
    holding = sum(bool(c.holds) for c in measured)
    refused = [c for c in cells if c.state is State.REFUSED]
    tried = [c for c in refused if c.evidence]
    working = sum(bool(c.holds) for c in tried)
    versions = sorted({f"{n} {v}" for r in results for n, v in r.versions.items()})
    dates = sorted({r.date for r in results}) or ["never"]
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"The descriptors allow {len(allowed)} of {len(cells)} cells (each pair, for each of {len(Use)} purposes); "
        f"{len(measured)} of them were measured, and {holding} hold. They refuse {len(refused)}; {len(tried)} of these "
        f"were run anyway, and {working} worked.\n\n"
        f"Measured {when}, on a CPU in float32, with {', '.join(versions)}.\n"
    )


def _table(cells: Sequence[Cell]) -> str:
    quantizers = list(dict.fromkeys(c.quantizer.spec.name for c in cells))
    rows: dict[str, list[str]] = {}
    for cell in cells:  # for each adapter each quantizer, and for these each purpose
        rows.setdefault(cell.adapter.spec.name, []).append(_shown(cell))
    head = "".join(f" {q}, {p.value} |" for q in quantizers for p in Use)
    lines = [f"| adapter |{head}", "|---|" + "---|" * len(quantizers) * len(Use)]
    lines += [f"| `{adapter}` | {' | '.join(shown)} |" for adapter, shown in rows.items()]
    return "\n".join(lines) + "\n"


def _shown(cell: Cell) -> str:
    if cell.state is State.REFUSED:
        return "**– works**" if cell.holds else "–"
    if not cell.evidence:
        return "○" if cell.state is State.DECLARED else "?"
    result = cell.evidence[0].result
    return f"● {_worst(result)}" if result.holds else "**✗**"


def _worst(result: Result) -> str:
    figures = [result.figures.get(name) for name in ERRORS[result.purpose]]
    known = [f for f in figures if f is not None]
    return f"{max(known):.0e}" if known and max(known) else "0"


def _refused(cells: Sequence[Cell]) -> str:
    lines: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        if cell.state is not State.REFUSED:
            continue
        outcome = "not run"
        if cell.evidence:
            result = cell.evidence[0].result
            outcome = "**works**; the descriptor may be outdated" if result.holds else f"fails: {result.note}"
        key = (cell.adapter.spec.name, cell.reason or "", outcome)
        lines.setdefault(key, []).append(f"{cell.quantizer.spec.name} ({cell.purpose.value})")
    if not lines:
        return ""
    rows = [f"| `{a}` | {', '.join(on)} | {_cell(why)} | {_cell(out)} |" for (a, why, out), on in lines.items()]
    head = [
        "Refused pairs, run anyway:",
        "",
        "| adapter | quantizer | reason for refusal | when run |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def _failing(cells: Sequence[Cell]) -> str:
    lines = [
        f"* `{c.adapter.spec.name}` on `{c.quantizer.spec.name}`, {c.purpose.value}: {c.evidence[0].result.note}"
        for c in cells
        if c.state is State.MEASURED and not c.holds
    ]
    return "\n".join(["Allowed pairs that do not hold:", "", *lines]) + "\n" if lines else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
