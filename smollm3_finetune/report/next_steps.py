"""The commands that continue from a run."""

from __future__ import annotations

import shlex

from smollm3_finetune.report.run_view import RunView


def next_steps(view: RunView) -> list[tuple[str, str]]:
    """(purpose, command) for a run in its state."""
    run = view.run
    name = shlex.quote(str(run.path))
    if view.summary.state == "finished":
        return [
            ("ask the tuned model", f"smollm3 generate {name} --prompt 'Your question'"),
            ("chat with it", f"smollm3 chat {name}"),
            ("judge it in more ways", f"smollm3 eval {name}"),
            ("merge the adapter into its base model", f"smollm3 merge {name} --output merged"),
            ("continue for more steps", f"smollm3 train --resume {name} --max-steps {2 * (view.summary.steps or 1)}"),
            ("repeat the run", f"smollm3 train --config {shlex.quote(str(run.config))} --output again"),
        ]
    if view.summary.state == "running":
        return [("write this page again", f"smollm3 runs report {name}")]
    steps = []
    if run.saved.all() or run.trained.exists():
        steps.append(("continue from the newest checkpoint", f"smollm3 train --resume {name}"))
    else:
        steps.append(("start it again", run.start_again()))
    return steps
