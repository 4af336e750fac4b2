"""What `smollm3 sweep` prints: the plan of each trial, the table of trials, the best one and how to use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.output.characters import line_width
from smollm3_finetune.cli.output.losses import in_characters
from smollm3_finetune.cli.output.runs_table import COLORS, wrapped
from smollm3_finetune.data.counts import counted
from smollm3_finetune.evaluation.line import LEAST_ROWS, digits_of, half_of, signed

if TYPE_CHECKING:
    from smollm3_finetune.sweep.decide import SweepTrial
    from smollm3_finetune.sweep.status import SweepStatus, TrialStatus
    from smollm3_finetune.sweep.sweep import Sweep
    from smollm3_finetune.train.start import PlannedRun

STATES = {**COLORS, "new": "white", "stopped": "yellow", "submitted": "cyan"}
HEAD = ("trial", "state", "time", "steps", "held-out loss", "difference to the best", "verdict")
STATE, VERDICT = 1, 6
GAP = "  "


def as_dict(sweep: Sweep, status: SweepStatus) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "name": sweep.file.name,
        "file": str(sweep.file.path),
        "directory": str(sweep.place.path),
        "running": sweep.place.is_running(),
        "objective": "held_out_loss",
        "best": None if status.best is None else str(status.best.trial.run.path),
        "notes": list(status.notes),
        "trials": [trial.as_dict() for trial in status.trials],
    }


def shown_status(sweep: Sweep, status: SweepStatus) -> str:
    """The table of trials, the best one first; the errors of those that failed; how to use the best or to continue."""
    rows = [HEAD, *(_cells(trial) for trial in status.trials)]
    filled = [i for i in range(len(HEAD)) if any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in filled}
    lines = [f"sweep {sweep.file.name} in {sweep.place.path}", ""]
    for row in rows:
        cells = {i: f"{row[i]:<{widths[i]}}" if i != filled[-1] else row[i] for i in filled}
        if row is not HEAD:
            for i, colors in ((STATE, STATES), (VERDICT, COLORS)):
                if i in cells and row[i] in colors:
                    cells[i] = click.style(cells[i], fg=colors[row[i]])
        lines.append(GAP.join(cells.values()).rstrip())
    lines += [f"\n{t.trial.name} failed: {t.error}" for t in status.trials if t.error]
    width = min(line_width(), 120)
    lines += [line for note in status.notes for line in ("", *wrapped(f"note: {note}", width))]
    lines += _best(status, width)
    if any(t.trial.action != "keep" for t in status.trials) and not sweep.place.is_running():
        verb = "resume" if sweep.place.state.exists() else "run"
        lines += ["", f"to {verb} it: {sweep.command(verb)}"]
    return "\n".join(lines)


def _best(status: SweepStatus, width: int) -> list[str]:
    """The best trial, whether others can be told from it, and the commands that use it."""
    best = status.best
    if best is None or best.result is None:
        return []
    path = shlex.quote(str(best.trial.run.path))
    lines = ["", f"best: {best.trial.name}, held-out loss {_loss(best)}"]
    compared = [t.result.against_best for t in status.trials if t.result is not None and t.result.against_best]
    unclear = sum(one.verdict == "cannot tell" for one in compared)
    if compared and (rows := compared[0].rows) < LEAST_ROWS:
        lines.append(f"{counted(rows, 'held-out row')} are too few for verdicts: at least {LEAST_ROWS} are needed")
    elif unclear:
        lines.append(f"{counted(unclear, 'trial')} may be as good: the difference may be chance")
    if compared:
        chosen = f"it was chosen from {counted(len(compared) + 1, 'trial')} by these rows"
        lines += wrapped(f"{chosen}, so its loss on other rows is likely higher", width)
    return [
        *lines,
        "",
        f"try it              smollm3 generate {path} --prompt '…'",
        f"measure other rows  smollm3 eval {path} --data FILE",
        f"train with it       smollm3 train --config {shlex.quote(str(best.trial.run.config))}",
    ]


def _cells(trial: TrialStatus) -> tuple[str, ...]:
    steps = ""
    if trial.steps is not None:
        of = "" if trial.planned_steps is None or trial.steps >= trial.planned_steps else f"/{trial.planned_steps}"
        steps = f"{trial.steps}{of}"
    difference = verdict = ""
    if trial.result is not None and (found := trial.result.against_best) is not None:
        values = {"low": found.low, "high": found.high}
        half = half_of(values)
        digits = digits_of(half)
        difference = signed(found.difference, digits) + ("" if half is None else f" ± {half:.{digits}f}")
        verdict = found.verdict
    times = f" (x{trial.trial.times})" if trial.trial.times > 1 else ""
    return (
        f"{trial.trial.name}{times}",
        trial.state,
        "" if not trial.seconds else f"{trial.seconds:.1f} s",
        steps,
        _loss(trial),
        in_characters(difference),
        verdict,
    )


def _loss(trial: TrialStatus) -> str:
    """`0.585 ± 0.012`: the held-out loss with half of its 95 % interval over the rows."""
    if trial.result is None:
        return ""
    half = trial.result.half
    text = f"{trial.result.loss:.4f}" + ("" if half is None else f" ± {half:.{digits_of(half)}f}")
    return in_characters(text)


def shown_plan(sweep: Sweep, plans: Sequence[tuple[SweepTrial, PlannedRun | None]], *, as_json: bool) -> str:
    """What happens to each trial, and what all of them have in common."""
    from smollm3_finetune.sweep.plan import about_plan

    if as_json:
        trials = [
            {"trial": trial.name, "values": dict(trial.values), "run": str(trial.run.path), "next": trial.action,
             "reason": trial.reason, "times": trial.times, **({} if planned is None else about_plan(planned))}
            for trial, planned in plans
        ]  # fmt: skip
        named = {"name": sweep.file.name, "file": str(sweep.file.path), "directory": str(sweep.place.path)}
        return json.dumps({**named, "trials": trials}, ensure_ascii=False)
    lines = [f"sweep {sweep.file.name} in {sweep.place.path}", ""]
    width = max(len(trial.name) for trial, _ in plans)
    for trial, planned in plans:
        about = "" if planned is None else _components(about_plan(planned))
        times = f"; {trial.times} times in the file, run once" if trial.times > 1 else ""
        lines.append(f"{trial.name:<{width}}  {trial.action} ({trial.reason}{times}){about}")
    rows = {json.dumps(about_plan(planned)["rows"]) for _, planned in plans if planned is not None}
    if len(rows) == 1:
        found = json.loads(rows.pop())
        lines += ["", f"rows: {found['train']:,} training, {found['held_out']:,} held-out"]
    return "\n".join([*lines, "", "dry run: no weights were loaded and no files were written"])


def _components(about: dict[str, Any]) -> str:
    found = [about[name] for name in ("model", "quantizer", "adapter", "objective") if about[name]]
    return f": {', '.join(found)}"
