"""The output of `smollm3 compat --quant X --adapter Y`: all details of a pair."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

import click

from smollm3_finetune.compatibility.collect import Collected, Evidence
from smollm3_finetune.compatibility.matrix import Cell, State, Terms
from smollm3_finetune.compatibility.results import Use
from smollm3_finetune.components.registry import RegisteredComponent

LABEL = 12
COLORS = {State.MEASURED: "green", State.DECLARED: "cyan", State.REFUSED: "red", State.UNKNOWN: "yellow"}


def shown_pair(cells: Sequence[Cell], about: Terms | None, collected: Collected) -> str:
    """The operations of both components, then the result and its evidence for each purpose."""
    first = cells[0]
    quantizer, adapter, device = first.quantizer, first.adapter, first.device
    rows = [(click.style(f"{quantizer.spec.name} × {adapter.spec.name} on {device}", bold=True), "")]
    rows.append(("quantizer", _who(quantizer)))
    if about is not None:
        rows.append(("provides", ", ".join(about.provides) or "nothing"))
        rows += [("", f"not {op}: {reason}") for op, reason in about.absent.items()]
    rows.append(("adapter", _who(adapter)))
    if about is not None:
        train, merge = (", ".join(about.needs[use.value]) for use in (Use.TRAIN, Use.MERGE))
        rows.append(("needs", train + ("" if train == merge else f"; to merge {merge}")))
    for cell in cells:
        rows += _purpose(cell, collected)
    if about is not None and about.nearest:
        rows.append(("nearest", about.nearest))
    return "\n".join(line for label, text in rows for line in _lines(label, text))


def _who(component: RegisteredComponent) -> str:
    return f"{component.full_name} {component.version}: {component.spec.summary}"


def _purpose(cell: Cell, collected: Collected) -> list[tuple[str, str]]:
    rows = [(cell.purpose.value, click.style(cell.state.value, fg=COLORS[cell.state]) + _how(cell))]
    if cell.reason is not None and cell.state in (State.MEASURED, State.DECLARED):
        rows.append(("", cell.reason))
    for evidence in cell.evidence:
        rows += _evidence(cell, evidence)
    elsewhere = collected.of(cell.quantizer.full_name, cell.adapter.full_name, cell.purpose.value)
    others = sorted({e.result.device for e in elsewhere} - {cell.device})
    if others:
        rows.append(("", f"measured on {', '.join(others)}; to see it: --device {others[0]}"))
    return rows


def _how(cell: Cell) -> str:
    if cell.state is State.MEASURED:
        verdict = ": works" if cell.holds else ": fails"
        return verdict + (", with other versions than those installed" if cell.stale else "")
    if cell.state is State.DECLARED:
        return f": the descriptors agree; not measured on {cell.device}"
    return f": {cell.reason}"


def _evidence(cell: Cell, evidence: Evidence) -> list[tuple[str, str]]:
    result = evidence.result
    rows = [("", f"by {evidence.source}, {result.date}, on {result.device}")]
    if cell.state is State.REFUSED:
        works, fails = "works when run anyway; the descriptor may be outdated", "confirmed: fails when run"
        outcome = works if result.holds else fails
        rows.append(("", f"{outcome}{f': {result.note}' if result.note else ''}"))
    elif result.note:
        rows.append(("", result.note))
    if result.figures:
        rows.append(("", "figures: " + ", ".join(f"{name} {_number(v)}" for name, v in result.figures.items())))
    if result.options:
        rows.append(("", "adapter options: " + ", ".join(f"{k}={v}" for k, v in result.options.items())))
    rows.append(("", "with " + ", ".join(f"{n} {v}" for n, v in result.versions.items())))
    if evidence.changed:
        now = (f"{name} {installed or 'not installed'}" for name, (_, installed) in evidence.changed.items())
        rows.append(("", f"outdated; installed now: {', '.join(now)}"))
    rows.append(("", f"to repeat: {result.command}"))
    return rows


def _number(value: float | None) -> str:
    if value is None:
        return "not a number"
    return str(value) if isinstance(value, int) else f"{value:.2g}"


def _lines(label: str, text: str) -> list[str]:
    """One row, wrapped to the width of the terminal, with its label on the left."""
    if not text:
        return [label]
    width = max(shutil.get_terminal_size((100, 24)).columns, 60)
    lead = f"  {label:<{LABEL}} "
    wrapper = textwrap.TextWrapper(width, initial_indent=lead, subsequent_indent=" " * len(lead))
    wrapper.break_on_hyphens = wrapper.break_long_words = False
    return wrapper.wrap(text)
