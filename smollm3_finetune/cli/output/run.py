"""What `train` prints: a plan, a report."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.cli.output.configuration import with_origins
from smollm3_finetune.cli.output.curve import shown_losses
from smollm3_finetune.config.yaml12 import one_line
from smollm3_finetune.data.columns import shown as unread
from smollm3_finetune.data.counts import counted
from smollm3_finetune.data.needs import shown as lacking
from smollm3_finetune.evaluation.line import change_of, measure_lines, power_of
from smollm3_finetune.model_files.dropout import described
from smollm3_finetune.paths import plugin_flags
from smollm3_finetune.runs.metrics import losses_of
from smollm3_finetune.runs.rundir import RunDir

if TYPE_CHECKING:
    from smollm3_finetune.train.start import PlannedRun


def shown_plan(planned: PlannedRun, *, as_json: bool) -> str:
    from smollm3_finetune.memory.estimate import estimate
    from smollm3_finetune.memory.line import memory_line

    about = planned.summary()
    memory = estimate(planned.plan, planned.registry)
    if as_json:
        return json.dumps({**about, "memory": memory.as_json()}, ensure_ascii=False)
    rows, dropout = about["rows"], described(about["base_dropout"])
    left_out = f", {rows['undesirable']} left out (false label)" if rows["undesirable"] else ""
    left_out += f"\n# {lacking(rows['missing'])}" if rows["missing"] else ""
    not_read = [f"# {title}: not read: {unread(n['columns'], n['rows'])}" for title, n in rows["not_read"].items()]
    head = (
        f"# would be written to {one_line(about['run'])}\n"
        f"# {counted(rows['train'], 'training row')}, {counted(rows['held_out'], 'held-out row')}{left_out}\n"
        + "".join(f"# {one_line(line)}\n" for line in _start(planned))
        + "".join(f"{one_line(line)}\n" for line in not_read)
        + (f"# {one_line(about['reference_line'])}\n" if about["reference_line"] else "")
        + (f"# dropout of the base: {dropout}\n" if dropout else "")
        + "".join(f"# {line}\n" for line in about["left_alone"])
        + f"# {one_line(memory_line(memory))}\n"
        + "# dry run: no weights were loaded and no files were written\n"
    )
    head += "".join(f"# warning: {one_line(w)}\n" for t in about["rows"]["turns"].values() for w in t["warnings"])
    return head + with_origins(planned.plan.config, planned.plan.origins)


def _start(planned: PlannedRun) -> list[str]:
    """What the run starts from, and the base that it makes."""
    from smollm3_finetune.train.provenance import start_lines
    from smollm3_finetune.train.summary import ship_lines

    return [*ship_lines(planned.plan), *start_lines(planned.plan, planned.run)]


def shown_report(report: Mapping[str, Any], plugins: Iterable[str] = ()) -> str:
    """The report of a run as human-readable text; `plugins` are the values of `-p` that it used."""
    before, after = report["before"], report["after"]
    lines = ["", *_curve(report)]
    if (comparison := report.get("comparison")) is not None:
        lines.append(f"held-out loss  {change_of(comparison)}")
        for title, one in comparison["by_source"].items():
            lines.append(f"               {change_of(one)}: {title}")
        if (power := power_of(comparison)) is not None:
            lines.append(f"               {power}")
    elif before["held_out_loss"] is not None:  # continued from a version that kept no losses of rows
        lines.append(f"held-out loss  {before['held_out_loss']:.4f} before, {after['held_out_loss']:.4f} after")
        for title, loss in after.get("by_source", {}).items():
            lines.append(f"               {before['by_source'][title]:.4f} before, {loss:.4f} after: {title}")
    lines += [
        f"{'held-out' if not n else '':<15}{text}" for n, text in enumerate(measure_lines(report.get("measures", {})))
    ]
    lines += [f"left alone     {part['line']}" for part in report.get("left_alone", ())]
    for n in (c for c in report["rows"] if c["not_read"]):
        total = n["train"] + n["held_out"] + n["empty"] + n["undesirable"] + sum(n.get("missing", {}).values())
        lines.append(f"not read       {n['title']}: {unread(n['not_read'], total)}")
    begun = report["seconds_to_first_step"]  # None if the steps were done already
    first = "" if begun is None else f" ({begun} s to the end of the first step)"
    lines += [
        f"prompt         {report['prompt'][-1]['content']}",
        f"before         {before['sample']}",
        f"after          {after['sample']}",
        f"adapter        {report['adapter']} ({report['trained_parameters']:,} parameters)",
        f"took           {report['seconds']} s{first}, {counted(report['steps'], 'step')}, "
        f"{counted(report['tokens'], 'token')}",
        *([f"page           {page}"] if (page := RunDir(Path(report["run"])).page).exists() else ()),
        "",
        *_ship_lines(report, plugins),
        f"try it         smollm3 generate {shlex.quote(report['run'])}{plugin_flags(plugins)} --prompt '…'",
    ]
    return "\n".join(lines)


def _ship_lines(report: Mapping[str, Any], plugins: Iterable[str]) -> list[str]:
    """The command that writes the format that the run was trained for."""
    if (ship := report.get("ship_as")) is None:
        return []
    command: str = ship["command"].replace(" RUN", f" {shlex.quote(report['run'])}{plugin_flags(plugins)}", 1)
    return [f"ship it        {command}"]


def _curve(report: Mapping[str, Any]) -> list[str]:
    """The curve of the losses, if the report is printed to a terminal."""
    if sys.__stdout__ is None or not sys.__stdout__.isatty():
        return []
    curve = shown_losses(losses_of(RunDir(Path(report["run"]))), shutil.get_terminal_size((80, 24)).columns)
    return [curve, ""] if curve else []
