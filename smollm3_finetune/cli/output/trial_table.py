"""The table of `smollm3 doctor --try`, which `smollm3 compat --evidence` shows too: a row for each pair."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from smollm3_finetune.files.room import shown_size
from smollm3_finetune.trial.results import Status, Step, Tried

if TYPE_CHECKING:
    from smollm3_finetune.trial.results import TrialReport

HEAD = ("quantizer", "adapter", "", "load", "start", "train", "resume", "merge", "tokens/s", "memory")
SIGNS = {Status.WORKS: ("works", "green"), Status.FAILS: ("FAILS", "red"), Status.REFUSED: ("refused", None)}
COLUMNS = {
    Step.LOAD: ("forward", "grad_input"),
    Step.START: ("identity",),
    Step.TRAIN: ("gradients", "logits", "loss"),
    Step.RESUME: ("restored", "resumed"),
    Step.MERGE: ("merged",),
}
"""The figures whose largest is shown for a step."""


def shown_trial(report: TrialReport) -> str:
    """The machine, the table, and a sentence for each pair that fails or was refused."""
    width = max(shutil.get_terminal_size((100, 24)).columns, 60)
    rows = [HEAD, *(_row(cell) for cell in report.cells)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = [click.style(heading(report), bold=True), ""]
    for number, row in enumerate(rows):
        cells = [text.ljust(w) if i < 3 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))]
        if number:
            color = SIGNS[report.cells[number - 1].status][1]
            cells[2] = click.style(cells[2], fg=color)
        lines.append("  ".join(cells).rstrip())
    lines += ["", *textwrap.wrap(LEGEND, width)]
    notes = [line for note in _notes(report.cells) for line in textwrap.wrap(note, width, subsequent_indent="    ")]
    if notes:
        lines += ["", *notes]
    return "\n".join([*lines, "", conclusion(report)])


LEGEND = (
    "load: the quantized layers, forward and backward, compared with the weights that they state; start: the fresh "
    "adapter compared with its base; train: gradients, logits and losses compared with float64 on the CPU; resume: the "
    "run resumed in its middle compared with the uninterrupted one; merge: the merged model compared with the adapter "
    "on its base. Relative errors. Speed and memory are those of the built-in model."
)


def heading(report: TrialReport) -> str:
    machine = report.machine
    return f"on {machine['device']}, {report.dtype}: {machine['name']} ({report.date}, {report.seconds:.0f} s)"


def conclusion(report: TrialReport) -> str:
    count = {status: sum(c.status is status for c in report.cells) for status in Status}
    shown = (count[Status.WORKS], count[Status.FAILS], count[Status.REFUSED])
    return "Of {} {}: {} work, {} fail, {} are refused.".format(
        len(report.cells), "pair" if len(report.cells) == 1 else "pairs", *(n or "none" for n in shown)
    )


def _row(cell: Tried) -> tuple[str, ...]:
    shown = [_step(cell, step, names) for step, names in COLUMNS.items()]
    speed, memory = cell.figures.get("tokens_per_second"), cell.figures.get("memory")
    return (
        *cell.names, SIGNS[cell.status][0], *shown,
        "" if speed is None else f"{speed:.0f}", "" if not memory else shown_size(memory),
    )  # fmt: skip


def _step(cell: Tried, step: Step, names: Sequence[str]) -> str:
    """The largest figure of a step; ✗ if it failed, empty if it was not reached."""
    passed = cell.steps.get(step.value)
    if passed is None:
        return ""
    if not passed:
        return "✗"
    values = [v for name in names if (v := cell.figures.get(name)) is not None]
    return f"{max(values):.1g}" if values else "✓"


def _notes(cells: Sequence[Tried]) -> list[str]:
    """The sentences, one for all pairs that share it."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.sentence is not None:
            quantizer, adapter = cell.names
            pairs.setdefault((SIGNS[cell.status][0], cell.sentence), []).append(f"{quantizer} × {adapter}")
    return [f"{sign} {', '.join(names)}: {sentence}" for (sign, sentence), names in pairs.items()]
