"""What `smollm3 pipeline` prints: the plan of each stage, the table of stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.output.characters import arrow
from smollm3_finetune.cli.output.runs_table import COLORS, short

if TYPE_CHECKING:
    from smollm3_finetune.pipeline.decide import Decision
    from smollm3_finetune.pipeline.run import Pipeline
    from smollm3_finetune.pipeline.status import StageStatus

STATES = {**COLORS, "new": "white", "outdated": "yellow"}
GAP = "  "


def shown_status(pipeline: Pipeline, stages: Sequence[StageStatus]) -> str:
    """The table of stages, the errors of those that failed, and the command that continues."""
    head = ("stage", "kind", "state", "directory", "time", "steps", "held-out loss", "verdict", "next")
    rows = [head, *(_cells(stage) for stage in stages)]
    filled = [i for i, name in enumerate(head) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in filled}
    lines = [f"pipeline {pipeline.file.name} in {pipeline.place.path}", ""]
    for row in rows:
        cells = [f"{row[i]:<{widths[i]}}" for i in filled]
        if row is not head:
            cells[filled.index(2)] = click.style(cells[filled.index(2)], fg=STATES.get(row[2]))
        lines.append(GAP.join(cells).rstrip())
    lines += [f"\n{s.decision.stage.name} failed: {s.record.error}" for s in stages if s.record and s.record.error]
    if any(stage.decision.action != "keep" for stage in stages) and not pipeline.place.is_running():
        verb = "resume" if any(stage.record is not None for stage in stages) else "run"
        lines += ["", f"to {verb} it: {pipeline.command(verb)}"]
    return "\n".join(lines)


def _cells(stage: StageStatus) -> tuple[str, ...]:
    values = stage.as_dict()
    before, after = (None if values[k] is None else f"{values[k]:.4f}" for k in ("before", "after"))
    loss = f"{before} {arrow()} {after}" if before and after else after or ""
    seconds = values["seconds"]
    return (
        values["stage"],
        values["kind"],
        values["state"],
        "" if values["directory"] is None else values["directory"].rpartition("/")[2],
        "" if not seconds else f"{seconds:.1f} s",
        "" if values["steps"] is None else str(values["steps"]),
        loss,
        values["verdict"] or "",
        stage.next,
    )


def shown_plan(pipeline: Pipeline, plans: Sequence[tuple[Decision, Mapping[str, Any]]], *, as_json: bool) -> str:
    """The plan of each stage."""
    if as_json:
        stages = [
            {"stage": d.stage.name, "kind": d.stage.kind, "next": d.action, "reason": d.reason,
             "directory": str(d.directory), **plan}
            for d, plan in plans
        ]  # fmt: skip
        about = {"name": pipeline.file.name, "file": str(pipeline.file.path), "directory": str(pipeline.place.path)}
        return json.dumps({**about, "stages": stages}, ensure_ascii=False)
    lines = [f"pipeline {pipeline.file.name} in {pipeline.place.path}"]
    for number, (decision, plan) in enumerate(plans, 1):
        stage = decision.stage
        lines += ["", f"{number}. {stage.name}: {stage.kind}, {decision.action} ({decision.reason})"]
        lines += [f"   {name:<10} {text}" for name, text in _facts(decision, plan)]
    return "\n".join([*lines, "", "dry run: no weights were loaded and no files were written"])


def _facts(decision: Decision, plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    stage, facts = decision.stage, [("directory", str(decision.directory))]
    facts += [("from", stage.start.title)] if stage.start is not None else []
    facts += [(name, plan[name]) for name in ("model", "quantizer", "adapter", "objective") if plan.get(name)]
    if stage.quantize is not None:
        facts.append(("quantize", short(stage.quantize.name)))
    if stage.export is not None:
        facts.append(("export", short(stage.export.name)))
    if rows := plan.get("rows"):
        words = {"train": "training", "held_out": "held-out"}
        facts.append(("rows", ", ".join(f"{count:,} {words[name]}" for name, count in rows.items())))
    return facts
