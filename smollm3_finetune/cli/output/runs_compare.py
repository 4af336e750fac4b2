"""What `smollm3 runs compare` prints: differences, held-out losses and curves."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import click

from smollm3_finetune.cli import COMMANDS
from smollm3_finetune.cli.output.characters import shows
from smollm3_finetune.cli.output.curve import CURVE_WIDTH, Series, shown_curve
from smollm3_finetune.cli.output.losses import in_characters
from smollm3_finetune.cli.output.runs_show import shown_value
from smollm3_finetune.cli.output.runs_table import COLORS, GAP, cell_width, folded, padded, short, shown_steps, wrapped
from smollm3_finetune.config.schema import COMPONENT_SECTIONS
from smollm3_finetune.evaluation.line import digits_of, half_of, signed
from smollm3_finetune.runs.comparison import RunComparison

NARROWEST_VALUE = 8
"""The smallest width of a column of values, in which longer ones are folded to two lines."""


def shown_comparison(found: RunComparison, width: int) -> str:
    """The runs with their letters, what differs, the losses, and the curves, in lines of at most `width`."""
    names = letters(len(found.runs))
    curve_width = min(width, CURVE_WIDTH)
    training = [Series(name, losses.training) for name, losses in zip(names, found.losses, strict=True)]
    held_out = [Series(name, losses.held_out) for name, losses in zip(names, found.losses, strict=True)]
    blocks = [
        "\n".join(f"{name}  {run.path}" for name, run in zip(names, found.runs, strict=True)),
        _titled("differences", _differences(found, names, width)),
        _titled("held-out loss", _losses(found, names, width)),
        _titled("training loss", shown_curve(training, curve_width)) if _drawable(training) else "",
        _titled("held-out loss during training", shown_curve(held_out, curve_width))
        if _drawable(held_out, more_than=2)
        else "",
        "\n".join(line for note in found.notes for line in wrapped(f"note: {note}", width)),
    ]
    return "\n\n".join(block for block in blocks if block)


def _colored(text: str) -> str:
    return click.style(text, fg=color) if (color := COLORS.get(text.strip())) else text


def letters(count: int) -> list[str]:
    """`A`, `B`, …, `Z`, `AA`, …"""
    found = [*ascii_uppercase, *(a + b for a in ascii_uppercase for b in ascii_uppercase)]
    return found[:count] + [str(number) for number in range(len(found), count)]


def _titled(title: str, text: str) -> str:
    return f"{click.style(title, bold=True)}\n{text}" if text else ""


def _drawable(series: Sequence[Series], more_than: int = 1) -> bool:
    """Whether any run has more points than these; the two ends of a held-out loss are in the table."""
    return any(len(one.points) > more_than for one in series)


def _differences(found: RunComparison, names: Sequence[str], width: int) -> str:
    """A row for each key whose values differ. If the runs do not fit side by side, a line for each value."""
    if not found.different:
        return "none: the configurations and versions are equal"
    rows = {key: _shown_values(key, values) for key, values in found.different.items()}
    first = max(map(cell_width, rows))
    longest = [max(cell_width(row[at]) for row in rows.values()) for at in range(len(names))]
    room = (width - first) // len(names) - GAP
    if sum(longest) + GAP * len(names) + first > width and (room < NARROWEST_VALUE or max(longest) > 2 * room):
        return "\n".join(
            line
            for key, values in rows.items()
            for line in [key, *(f"  {name:<3} {value}" for name, value in zip(names, values, strict=True))]
        )
    if sum(longest) + GAP * len(names) + first > width:
        longest = [min(one, room) for one in longest]
    longest = [max(one, len(name)) for one, name in zip(longest, names, strict=True)]
    lines = [_row("key", names, first, longest)]
    return "\n".join([*lines, *(_row(key, values, first, longest) for key, values in rows.items())])


def _row(key: str, values: Sequence[str], first: int, widths: Sequence[int]) -> str:
    """A row of a table; a value that is longer than its column is continued on the next lines."""
    pieces = [folded(value, room) for value, room in zip(values, widths, strict=True)]
    lines = []
    for at in range(max(map(len, pieces))):
        parts = [padded(piece[at] if at < len(piece) else "", room) for piece, room in zip(pieces, widths, strict=True)]
        lines.append((" " * GAP).join([padded(key if not at else "", first), *parts]).rstrip())
    return "\n".join(lines)


def _shown_values(key: str, values: Sequence[Any]) -> list[str]:
    """The values of a key; components without their distribution if their names distinguish them."""
    section, _, name = key.partition(".")
    if section in COMPONENT_SECTIONS and name == "name":
        names = [short(value) for value in values]
        if len(set(names)) == len(set(values)):
            return names
    return [_shown(value) for value in values]


def _shown(value: Any) -> str:
    """A value; a path by its last part, because the differing ends of long paths would be cut off."""
    if isinstance(value, str) and os.sep in value and Path(value).is_absolute():
        return os.path.join("…" if shows("…") else "...", os.path.basename(value))
    return shown_value(value)


def _losses(found: RunComparison, names: Sequence[str], width: int) -> str:
    """A row for each run: losses, change with its interval, verdict, steps."""
    head = ["run", "before", "after", "change", "95 % interval", "verdict", "steps", "state"]
    rows = []
    for name, run in zip(names, found.runs, strict=True):
        before, after, digits, change, interval = run.before, run.after, 3, "", ""
        if run.comparison is not None:
            before, after, digits = (
                run.comparison["before"],
                run.comparison["after"],
                digits_of(half_of(run.comparison)),
            )
            if run.comparison["low"] is not None:
                interval = " to ".join(in_characters(signed(run.comparison[end], digits)) for end in ("low", "high"))
        if before is not None and after is not None:
            change = in_characters(signed(after - before, digits))
        ends = ["" if loss is None else f"{loss:.{digits}f}" for loss in (before, after)]
        rows.append([name, *ends, change, interval, run.verdict or "", shown_steps(run), run.state])
    used = [at for at in range(len(head)) if any(row[at] for row in rows)]
    widths = {at: max(len(head[at]), *(len(row[at]) for row in rows)) for at in used}
    while len(used) > 4 and sum(widths[at] + GAP for at in used) - GAP > width:
        used.pop()  # the state, then the steps, …
    lines = []
    for row in [head, *rows]:
        parts = [padded(row[at], widths[at] if at != used[-1] else 0) for at in used]
        lines.append((" " * GAP).join(_colored(part) for part in parts).rstrip())
    if found.lowest is not None:
        lines.append(f"lowest after training: {names[found.lowest]}")
        if "eval" in COMMANDS:
            first, second = (shlex.quote(str(run.path)) for run in found.runs[:2])
            lines.append(f"row by row, with an interval: smollm3 eval {first} --against {second}")
    return "\n".join(lines)
