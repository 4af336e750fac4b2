"""The report of an export, in a few lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smollm3_finetune.data.counts import counted
from smollm3_finetune.evaluation.line import retained_line
from smollm3_finetune.export.card import is_model
from smollm3_finetune.paths import plugin_flags

MARKS = {True: "✓", False: "✗", None: "–"}


def shown_export(report: Mapping[str, Any], plugins: Iterable[str] = (), file: Path | None = None) -> str:
    """The report of an export as human-readable text.

    `plugins` are the values of `-p` that it used, and `file` is a written file that a loader opens as a model.
    """
    lines = [""]
    if report["adapter"] is not None:
        merge = report["merge"]
        how = "not merged"
        if merge is not None:
            how = f"merged in {merge['dtype']}: merge error {merge['figures']['excess']:.1e} (limit " + (
                f"{merge['limits']['excess']:.1e})"
            )
        lines.append(f"adapter        {report['adapter']} on {report['model']}, {how}")
    width = max(len(check["name"]) for check in report["checks"])
    for check in report["checks"]:
        lines.append(f"verified       {MARKS[check['passed']]} {check['name']:<{width}}  {check['says']}")
    if report["retained"] is not None:
        lines.append(f"retained       {retained_line(report['retained'])}")
    files = f"{counted(len(report['files']), 'file')}, {sum(report['files'].values()) / 1e6:.1f} MB"
    lines += [
        f"written        {report['output']} ({report['exporter']}, {files})",
        f"took           {report['seconds']} s",
    ]
    model = report["output"] if is_model(report) else file
    if model is not None:
        lines += ["", f"try it         smollm3 generate {shlex.quote(str(model))}{plugin_flags(plugins)} --prompt '…'"]
    return "\n".join(lines)
