"""What `train` prints: a plan, a report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from smollm3_finetune.cli.options import plugin_flags
from smollm3_finetune.cli.output.configuration import with_origins
from smollm3_finetune.config.yaml12 import one_line

if TYPE_CHECKING:
    from smollm3_finetune.train.start import PlannedRun


def shown_plan(planned: PlannedRun, *, as_json: bool) -> str:
    about = planned.summary()
    if as_json:
        return json.dumps(about, ensure_ascii=False)
    head = (
        f"# would be written to {one_line(about['run'])}\n"
        f"# {about['rows']['train']} training rows, {about['rows']['held_out']} held-out rows\n"
        "# dry run: no weights were loaded and no files were written\n"
    )
    head += "".join(f"# warning: {one_line(w)}\n" for t in about["rows"]["turns"].values() for w in t["warnings"])
    return head + with_origins(planned.plan.config, planned.plan.origins)


def shown_report(report: Mapping[str, Any], plugins: Iterable[str] = ()) -> str:
    """The report of a run as human-readable text; `plugins` are the values of `-p` that it used."""
    before, after = report["before"], report["after"]
    lines = [""]
    if before["held_out_loss"] is not None:
        lines.append(f"held-out loss  {before['held_out_loss']:.4f} before, {after['held_out_loss']:.4f} after")
        for title, loss in after.get("by_source", {}).items():
            lines.append(f"               {before['by_source'][title]:.4f} before, {loss:.4f} after: {title}")
    lines += [
        f"prompt         {report['prompt'][-1]['content']}",
        f"before         {before['sample']}",
        f"after          {after['sample']}",
        f"adapter        {report['adapter']} ({report['trained_parameters']:,} parameters)",
        f"took           {report['seconds']} s ({report['seconds_to_first_step']} s to the end of the first step), "
        f"{report['steps']} steps, {report['tokens']:,} tokens",
        "",
        f"try it         smollm3 generate {shlex.quote(report['run'])}{plugin_flags(plugins)} --prompt '…'",
    ]
    return "\n".join(lines)
