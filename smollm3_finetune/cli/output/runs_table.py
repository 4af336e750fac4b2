"""The table of `smollm3 runs list`: as many columns as the terminal is wide for, the most important ones first."""

from __future__ import annotations

import datetime
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smollm3_finetune.cli.output.characters import arrow
from smollm3_finetune.data.counts import counted
from smollm3_finetune.files.room import shown_size

if TYPE_CHECKING:
    from smollm3_finetune.runs.summary import RunSummary

GAP = 2
NARROWEST = 24
"""The smallest width of the column of names, in which longer ones are folded."""
REASONS = 5
"""The largest number of failed or damaged runs whose reason is printed."""
COLORS = {"running": "cyan", "finished": "green", "interrupted": "yellow", "failed": "red", "damaged": "red",
          "better": "green", "worse": "red", "cannot tell": "yellow"}  # fmt: skip


def short(name: str | None) -> str:
    """`lora` for `smollm3-peft:lora`."""
    return (name or "").rpartition(":")[2]


def shown_steps(run: RunSummary) -> str:
    """`40/60`, or `60` if the run has taken all its steps."""
    planned = run.facts.steps
    if run.steps is None:
        return "" if planned is None else f"0/{planned}"
    return f"{run.steps}" if planned is None or run.steps >= planned else f"{run.steps}/{planned}"


def shown_losses(run: RunSummary) -> str:
    """`1.885 → 1.851`; a loss that was not measured is left out."""
    before, after = (None if loss is None else f"{loss:.3f}" for loss in (run.before, run.after))
    return f"{before or '?'} {arrow()} {after}" if after else f"{before} {arrow()}" if before else ""


def shown_age(time: datetime.datetime | None, now: datetime.datetime) -> str:
    """`5 min`, `3 h`, `12 d`: how long ago."""
    if time is None:
        return ""
    seconds = max((now - time).total_seconds(), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return "now"


def shown_name(run: RunSummary, folder: Path) -> str:
    """The path below the folder of runs."""
    path = run.path
    return str(path.relative_to(folder)) if path != folder and path.is_relative_to(folder) else str(path)


def shown_part(run: RunSummary) -> str:
    """`sweep rates` for a trial of it, `pipeline p` for a stage."""
    return next((f"{whole} {run.part_of[whole]}" for whole in ("sweep", "pipeline") if whole in run.part_of), "")


Cell = Callable[["RunSummary"], str]


def cells(folder: Path, now: datetime.datetime) -> Mapping[str, Cell]:
    """What each column shows, in the order of the columns."""
    return {
        "run": lambda run: shown_name(run, folder),
        "state": lambda run: run.state,
        "age": lambda run: shown_age(run.started, now),
        "model": lambda run: (run.facts.model or "").rstrip("/").rpartition("/")[2],
        "quantizer": lambda run: short(run.facts.quantizer),
        "adapter": lambda run: short(run.facts.adapter),
        "objective": lambda run: short(run.facts.objective),
        "data": lambda run: ", ".join(os.path.basename(d.rstrip("/")) or d for d in run.facts.data),
        "part of": shown_part,
        "steps": shown_steps,
        "held-out loss": shown_losses,
        "verdict": lambda run: run.verdict or "",
        "size": lambda run: shown_size(run.bytes),
    }


IMPORTANCE = ("run", "state", "held-out loss", "verdict", "steps", "size", "age")
FACTS = ("part of", "quantizer", "adapter", "model", "data", "objective")
"""Columns that are more important than the age if their values differ, and less important otherwise."""
RIGHT = {"age", "steps", "size"}


def by_importance(texts: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns of these rows, the most important one first."""
    varying = [name for name in FACTS if len({row[name] for row in texts}) > 1]
    return [*IMPORTANCE[:-1], *varying, IMPORTANCE[-1], *(name for name in FACTS if name not in varying)]


def chosen_columns(order: Sequence[str], widths: Mapping[str, int], room: int) -> list[str]:
    """The columns that fit side by side, the most important ones first; at least the name and the state."""
    taken = min(widths["run"], max(NARROWEST, room // 2)) + GAP + widths["state"]
    chosen = {"run", "state"}
    for name in order[2:]:
        if widths[name] and taken + GAP + widths[name] <= room:
            chosen.add(name)
            taken += GAP + widths[name]
    return [name for name in widths if name in chosen]


def shown_runs(runs: Sequence[RunSummary], folder: Path, width: int, hidden: int) -> str:
    """The table and the counts; `hidden` is the number of runs that filters left out.

    Not drawn by rich, which takes a second for 500 rows.
    """
    show = cells(folder, datetime.datetime.now().astimezone())
    texts = [{name: cell(run) for name, cell in show.items()} for run in runs]
    widths = {n: max((cell_width(row[n]) for row in texts), default=0) for n in show}
    widths = {n: max(longest, len(n)) if longest else 0 for n, longest in widths.items()}
    order = by_importance(texts)
    columns = chosen_columns(order, widths, width)
    rest = sum(GAP + widths[name] for name in columns if name != "run")
    widths["run"] = min(widths["run"], max(width - rest, NARROWEST))
    lines = []
    if runs:
        head = "  ".join(padded(name, widths[name], name in RIGHT) for name in columns)
        lines.append(click.style(head.rstrip(), bold=True))
        lines += [_line(row, columns, widths) for row in texts]
    states = Counter(run.state for run in runs)
    summed = shown_size(sum(run.bytes for run in runs))
    split = ", ".join(f"{count} {state}" for state, count in states.most_common())
    aside = f"; {hidden} not shown: the filter leaves {'it' if hidden == 1 else 'them'} out" if hidden else ""
    notes = [f"{folder}: {counted(len(runs), 'run')}{f' ({split}), {summed}' if runs else ''}{aside}"]
    if omitted := [name for name in order if name not in columns and widths[name]]:
        notes.append(f"not shown at this width: {', '.join(omitted)}")
    notes += _reasons(runs, folder)
    return "\n".join([*lines, *(line for note in notes for line in wrapped(note, width))])


def cell_width(text: str) -> int:
    """Columns of the terminal that a text takes: two for a Chinese character."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int, right: bool = False) -> str:
    """The text with spaces up to a width in columns of the terminal."""
    space = " " * max(width - cell_width(text), 0)
    return space + text if right else text + space


def folded(text: str, width: int) -> list[str]:
    """The text in pieces of at most a width."""
    pieces, start = [], 0
    for at in range(1, len(text)):
        if cell_width(text[start : at + 1]) > width:
            pieces.append(text[start:at])
            start = at
    return [*pieces, text[start:]]


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, broken between words; a path is never broken."""
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) or [""]


def _line(row: Mapping[str, str], columns: Sequence[str], widths: Mapping[str, int]) -> str:
    """A row of the table; a name that is longer than its column is continued on the next lines."""
    room, name = widths["run"], row["run"]
    pieces = folded(name, room)
    first = []
    for column in columns:
        text = padded(pieces[0] if column == "run" else row[column], widths[column], column in RIGHT)
        color = COLORS.get(row[column]) if column in ("state", "verdict") else None
        first.append(click.style(text, fg=color) if color else text)
    last = first.pop() if first[-1].endswith(" ") else ""
    return "\n".join(["  ".join([*first, *([last.rstrip()] if last.strip() else [])]).rstrip(), *pieces[1:]])


def _reasons(runs: Sequence[RunSummary], folder: Path) -> list[str]:
    """Why runs failed or are damaged."""
    reasons = [(run, run.damage or (run.error or {}).get("message")) for run in runs]
    known = [(run, reason) for run, reason in reasons if reason]
    lines = [f"{run.state}: {shown_name(run, folder)}: {reason}" for run, reason in known[:REASONS]]
    more = len(known) - REASONS
    return [*lines, *([f"and {more} more; to see why: smollm3 runs show RUN"] if more > 0 else [])]
