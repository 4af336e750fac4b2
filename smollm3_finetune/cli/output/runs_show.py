"""What `smollm3 runs show` prints: everything that is known about a run."""

from __future__ import annotations

import contextlib
import datetime
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from smollm3_finetune.cli.output.curve import shown_losses
from smollm3_finetune.cli.output.losses import shown_change, shown_power
from smollm3_finetune.cli.output.runs_table import COLORS, shown_age, wrapped
from smollm3_finetune.config.yaml12 import dump_yaml, one_line
from smollm3_finetune.data.counts import counted
from smollm3_finetune.files.room import shown_size, size_of
from smollm3_finetune.paths import plugin_flags
from smollm3_finetune.runs.details import RunDetails
from smollm3_finetune.runs.summary import is_comparison

LABEL = 15
"""Characters of the labels on the left."""
SAMPLE = 400
"""Characters of a sample answer that are shown."""


def shown_run(details: RunDetails, width: int) -> str:
    """The run in text, in lines of at most `width` characters as far as paths and commands allow."""
    blocks = [
        "\n".join(_labeled(label, text, width) for label, text in _facts(details) if text),
        shown_losses(details.losses, width),
        "\n".join(_labeled(label, text, width) for label, text in _samples(details.report) if text),
        _section("configuration (values that are not defaults)", _configuration(details, width)),
        _section("versions", _versions(details.versions, width)),
        _section("warnings", [line for text in details.warnings for line in wrapped(one_line(text), width - 2)]),
        _section("next", [f"{label:<9} {command}" for label, command in next_commands(details)]),
    ]
    return "\n\n".join(block for block in blocks if block)


def _labeled(label: str, text: str, width: int) -> str:
    """The text to the right of its label; its other lines are indented."""
    lines = [line for part in text.split("\n") for line in wrapped(part, max(width - LABEL, 20))]
    return "\n".join(f"{label if not at else '':<{LABEL}}{line}".rstrip() for at, line in enumerate(lines))


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([click.style(title, bold=True), *(f"  {line}" for line in lines)]) if lines else ""


def _facts(details: RunDetails) -> Iterator[tuple[str, str]]:
    run, facts = details.summary, details.summary.facts
    yield "run", str(run.path)
    yield "state", click.style(run.state, fg=COLORS[run.state])
    if run.damage:
        yield "damage", run.damage
    if run.error:
        hint = run.error.get("hint")
        yield "error", run.error.get("message", "") + (f"\nhint: {hint}" if hint else "")
    yield "started", _time(run.started)
    if run.finished is not None:
        yield "finished", _time(run.finished) + (f", after {run.seconds:g} s" if run.seconds is not None else "")
    yield "model", f"{facts.model} ({facts.loader})" if facts.loader else facts.model or ""
    yield "method", f"{facts.quantizer} + {facts.adapter}" if facts.adapter else ""
    yield "from", f"{facts.start_from} ({facts.chain})" if facts.chain else facts.start_from or ""
    yield "objective", facts.objective or ""
    yield "optimizer", facts.optimizer or ""
    yield "data", "\n".join(_data(details.report) or facts.data)
    yield "steps", _steps(details)
    yield "held-out loss", shown_change(run.before, run.after, run.comparison)
    yield "", shown_power(run.comparison)
    for title, one in _by_source(run.comparison):
        yield "", f"{shown_change(one['before'], one['after'], one)}: {title}"
    yield "size", _size(run.path, run.bytes, run.checkpoint_bytes)


def _time(time: datetime.datetime | None) -> str:
    if time is None:
        return ""
    age = shown_age(time, datetime.datetime.now().astimezone())
    return f"{time:%Y-%m-%d %H:%M:%S} ({age}{'' if age == 'now' else ' ago'})"


def _steps(details: RunDetails) -> str:
    run, report = details.summary, details.report
    taken, planned = run.steps or 0, run.facts.steps
    tokens = report.get("tokens")
    shown = f"{taken:,} of {planned:,}" if planned is not None and planned != taken else f"{taken:,}"
    shown = f"{shown}, {counted(tokens, 'token')}" if isinstance(tokens, int) else shown
    early, best = report.get("stopped_early"), report.get("best")
    if isinstance(early, Mapping) and isinstance(early.get("reason"), str):
        shown += f"\nended early: {one_line(early['reason'])}"
    if isinstance(best, Mapping) and isinstance(best.get("step"), int) and best["step"] != run.steps:
        shown += f"\nthe adapter is that of step {best['step']:,}, with the lowest held-out loss"
    return shown


def _data(report: Mapping[str, Any]) -> list[str]:
    """A line for each source, with the numbers of its rows."""
    lines = []
    with contextlib.suppress(KeyError, TypeError, ValueError):
        for row in report.get("rows", ()):
            train, held_out = counted(row["train"], "training row"), counted(row["held_out"], "held-out row")
            lines.append(f"{one_line(str(row['title']))}: {train}, {held_out}")
    return lines


def _by_source(comparison: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The comparison of each source, if there are several."""
    sources = (comparison or {}).get("by_source")
    if isinstance(sources, Mapping) and len(sources) > 1:
        yield from ((one_line(title), one) for title, one in sources.items() if is_comparison(one))


def _size(path: Path, total: int, checkpoints: int) -> str:
    parts = {"checkpoints": checkpoints, "adapter": size_of(path / "adapter"), "base": size_of(path / "base")}
    shown = ", ".join(f"{name} {shown_size(size)}" for name, size in parts.items() if size)
    return f"{shown_size(total)}{f': {shown}' if shown else ''}"


def _samples(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The prompt, and its answers before and after training."""
    with contextlib.suppress(KeyError, TypeError, IndexError):
        samples = report["prompt"][-1]["content"], report["before"]["sample"], report["after"]["sample"]
        for label, text in zip(("prompt", "before", "after"), samples, strict=True):
            shown = str(text) if len(str(text)) <= SAMPLE else f"{str(text)[:SAMPLE]}…"
            yield label, "\n".join(one_line(line) for line in shown.splitlines())


def _configuration(details: RunDetails, width: int) -> list[str]:
    """A line for each value, with its origin if it is known."""
    known = {key: shown_value(value) for key, value in details.changed.items()}
    longest = max(map(len, known), default=0)
    lines = []
    for key, text in known.items():
        origin = details.origins.get(key)
        shown = f"{key:<{longest}}  {text}"
        lines.append(f"{shown}  ({one_line(origin)})" if origin else shown)
    return [line for text in lines for line in wrapped(text, width - 2)]


def _versions(versions: Mapping[str, str], width: int) -> list[str]:
    """Names and versions, not separated by a line break."""
    lines = wrapped(", ".join(f"{name}\xa0{version}" for name, version in versions.items()), width - 2)
    return [line.replace("\xa0", " ").strip() for line in lines] if versions else []


def shown_value(value: Any) -> str:
    """A value as `--set` takes it."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return one_line(value)
    return dump_yaml(value, flow=True).strip().removesuffix("\n...").strip()


def next_commands(details: RunDetails) -> Iterator[tuple[str, str]]:
    """What the user may do with the run: a word and a command."""
    run = details.summary
    path, flags = shlex.quote(str(run.path)), plugin_flags(details.plugin_files)
    resume = f"smollm3 train --resume {path}{flags}"
    if run.state == "finished":
        yield "generate", f"smollm3 generate {path}{flags} --prompt '…'"
        yield from ((command, f"smollm3 {command} {path}{flags}") for command in ("chat", "eval"))
        yield "merge", f"smollm3 merge {path}{flags}"
        yield "repeat", f"smollm3 train --config {path}/run.yaml{flags}"
    elif run.state in ("interrupted", "failed"):
        if details.resumable:
            yield "continue", resume
        else:
            yield "repeat", f"{details.start_again}{flags}"
