"""The commands that continue from a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from smollm3_finetune.paths import plugin_flags
from smollm3_finetune.report.run_view import RunView
from smollm3_finetune.report.values import count, mapping
from smollm3_finetune.runs.details import is_resumable


def next_steps(view: RunView) -> list[tuple[str, str]]:
    """(purpose, command) for a run in its state."""
    run = view.run
    name, flags = shlex.quote(str(run.path)), plugin_flags(view.plugin_files)
    if view.summary.state == "finished":
        return [
            ("ask the tuned model", f"smollm3 generate {name}{flags} --prompt 'Your question'"),
            ("chat with it", f"smollm3 chat {name}{flags}"),
            ("judge it in more ways", f"smollm3 eval {name}{flags}"),
            ("merge the adapter into its base model", f"smollm3 merge {name}{flags} --output merged"),
            *_more_steps(view, f"smollm3 train --resume {name}{flags}"),
            ("repeat the run", f"smollm3 train --config {shlex.quote(str(run.config))}{flags} --output again"),
        ]
    if view.summary.state == "running":
        return [("write this page again", f"smollm3 runs report {name}")]
    steps = []
    if is_resumable(run, view.summary):
        steps.append(("continue from the newest checkpoint", f"smollm3 train --resume {name}{flags}"))
    else:
        steps.append(("start it again, with the same settings", f"{run.start_again()}{flags}"))
    return steps


def _more_steps(view: RunView, resume: str) -> Iterator[tuple[str, str]]:
    """How a finished run takes more steps; nothing if it has no checkpoint. One that ended early would end again."""
    if not view.run.saved.all():
        return
    if not mapping(view.report.get("stopped_early")):
        yield "continue for more steps", f"{resume} --max-steps {2 * (view.summary.steps or 1)}"
    elif patience := count(view.values.get("train.stop_after")):
        yield "continue although it ended early", f"{resume} --set train.stop_after={2 * patience}"
