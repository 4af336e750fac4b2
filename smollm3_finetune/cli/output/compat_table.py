"""The table of `smollm3 compat`: a column for each quantizer; adapters with equal results share a row."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence

import click

from smollm3_finetune.compatibility.matrix import Cell, State
from smollm3_finetune.compatibility.results import Use
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER, Kind
from smollm3_finetune.components.registry import RegisteredComponent

LEGEND = {
    "●": ("measured: works", "green"),
    "◐": ("measured with other versions than those installed", "yellow"),
    "○": ("declared, not measured", "cyan"),
    "–": ("refused", None),
    "?": ("unknown", "yellow"),
    "✗": ("measured: fails", "red"),
}
SUBHEAD = " ".join(Use)
MIN_ADAPTER_WIDTH = 20
"""Minimum width of the column of adapters, in characters."""
MAX_NAMES = 6
"""Maximum number of adapters that a note names."""


def symbol(cell: Cell) -> str:
    if cell.state is State.MEASURED:
        if not cell.holds:
            return "✗"
        return "◐" if cell.stale else "●"
    return {State.DECLARED: "○", State.REFUSED: "–", State.UNKNOWN: "?"}[cell.state]


def labels(components: Iterable[RegisteredComponent]) -> dict[str, str]:
    """The label of each component, by its full name: its name, or the full name if two components share the name."""
    unique = {o.full_name: o.spec.name for o in components}
    names = list(unique.values())
    return {full: name if names.count(name) == 1 else full for full, name in unique.items()}


def shown_table(cells: Sequence[Cell]) -> str:
    """The table, its legend, and the reasons."""
    if not cells:
        return "no pairs to show"
    quantizers, adapters = labels(c.quantizer for c in cells), labels(c.adapter for c in cells)
    width = shutil.get_terminal_size((100, 24)).columns
    by_pair = {(c.quantizer.full_name, c.adapter.full_name, c.purpose): c for c in cells}
    groups: dict[tuple[str, ...], list[str]] = {}
    for adapter in adapters:
        signs = tuple(symbol(by_pair[q, adapter, p]) for q in quantizers for p in Use)
        groups.setdefault(signs, []).append(adapters[adapter])
    rows = sorted(groups.items(), key=lambda row: -len(row[1]))
    columns = [max(len(name), len(SUBHEAD)) + 2 for name in quantizers.values()]
    lines: list[str] = []
    for first, last in _blocks(columns, width - MIN_ADAPTER_WIDTH):
        lines += [*_block(rows, list(quantizers.values()), columns, first, last, width, cells[0].device), ""]
    used = {s for signs in groups for s in signs}
    lines += [f"{click.style(s, fg=color)} {text}" for s, (text, color) in LEGEND.items() if s in used]
    notes = _notes(cells, quantizers, adapters, width)
    return "\n".join([*lines, *([""] if notes else []), *notes, "", _hint()])


def _blocks(columns: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Groups of columns that fit into `room` side by side, as (first, last + 1)."""
    blocks, first = [], 0
    for index in range(len(columns)):
        if index > first and sum(columns[first : index + 1]) > room:
            blocks.append((first, index))
            first = index
    return [*blocks, (first, len(columns))]


def _block(
    rows: Sequence[tuple[tuple[str, ...], list[str]]],
    names: Sequence[str],
    columns: Sequence[int],
    first: int,
    last: int,
    width: int,
    device: str,
) -> list[str]:
    left = max(width - sum(columns[first:last]), MIN_ADAPTER_WIDTH)
    left = min(left, max(len(f"on {device}"), *(len(", ".join(names)) for _, names in rows)) + 2)
    shown = range(first, last)
    head = f"on {device}".ljust(left) + "".join(names[i].ljust(columns[i]) for i in shown)
    lines = [click.style(head.rstrip(), bold=True), (" " * left + "".join(SUBHEAD.ljust(columns[i]) for i in shown))]
    for signs, adapters in rows:
        wrapped = textwrap.wrap(", ".join(adapters), left - 1, subsequent_indent="  ", break_on_hyphens=False)
        marks = "".join(_marks(signs[len(Use) * i :], columns[i]) for i in shown)
        lines += [wrapped[0].ljust(left) + marks.rstrip(), *wrapped[1:]]
    return [line.rstrip() for line in lines]


def _marks(signs: Sequence[str], width: int) -> str:
    """The first signs, each below the middle of its use, in a column of `width` characters."""
    cells = [" " * ((len(u) - 1) // 2) + _colored(s) + " " * (len(u) // 2) for u, s in zip(Use, signs, strict=False)]
    return " ".join(cells) + " " * (width - len(SUBHEAD))


def _colored(sign: str) -> str:
    return click.style(sign, fg=LEGEND[sign][1])


def _notes(cells: Sequence[Cell], quantizers: dict[str, str], adapters: dict[str, str], width: int) -> list[str]:
    """Why pairs are refused, unknown or failing: one note for each reason, with the pairs that it applies to."""
    pairs: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for cell in cells:
        text: str | None = None
        if cell.state in (State.REFUSED, State.UNKNOWN):
            text = cell.reason
        elif not cell.holds and cell.evidence:
            text = cell.evidence[0].result.note or "no figures recorded"
        for sign, why in ((symbol(cell), text), ("!", _works_although_refused(cell))):
            if why is not None:
                of = pairs.setdefault((sign, why, cell.purpose.value), {})
                of.setdefault(quantizers[cell.quantizer.full_name], []).append(adapters[cell.adapter.full_name])
    merged: dict[tuple[str, str, str], list[str]] = {}
    for (sign, why, purpose), by_quantizer in pairs.items():
        alike: dict[tuple[str, ...], list[str]] = {}
        for quantizer, names in by_quantizer.items():
            alike.setdefault(tuple(names), []).append(quantizer)
        for adapters_alike, on in alike.items():
            everywhere = len(on) == len(quantizers) and len(on) > 1
            whom = f"{_shortened(adapters_alike)} on {'every quantizer' if everywhere else ', '.join(on)}"
            merged.setdefault((sign, whom, why), []).append(purpose)
    lines = []
    for (sign, whom, why), purposes in merged.items():
        only = "" if len(purposes) == len(Use) else f" ({' and '.join(purposes)} only)"
        lines += textwrap.wrap(f"{sign} {whom}{only}: {why}", width, subsequent_indent="    ", break_on_hyphens=False)
    return lines


def _shortened(names: Sequence[str]) -> str:
    """The names; of a long list, only the first ones and a count (`--json` has all)."""
    return ", ".join(names) if len(names) <= MAX_NAMES else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _works_although_refused(cell: Cell) -> str | None:
    if cell.state is State.REFUSED and cell.holds:
        return "refused, but works when run anyway; the descriptor may be outdated"
    return None


def _hint() -> str:
    return f"For details of a pair: smollm3 compat {_flag(QUANTIZER)} {_flag(ADAPTER)}"


def _flag(kind: Kind) -> str:
    return f"{kind.flag} NAME"
