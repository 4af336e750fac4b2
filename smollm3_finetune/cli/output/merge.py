"""The report of a merge, in a few lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from smollm3_finetune.evaluation.line import retained_line
from smollm3_finetune.paths import plugin_flags


def shown_perplexity(value: float | None) -> str:
    return "too large" if value is None else f"{value:.4g}"


def shown_merge(report: Mapping[str, Any], plugins: Iterable[str] = ()) -> str:
    """The report of a merge as human-readable text; `plugins` are the values of `-p` that it used."""
    figures, limits, requantized = report["figures"], report["limits"], report["requantized"]

    def number(value: float | None) -> str:
        return "not a number" if value is None else f"{value:.1e}"

    lines = [
        "",
        f"adapter        {report['adapter']} changes the logits of {report['model']} by {number(figures['moved'])} "
        f"(relative, {figures['positions']} positions)",
        f"merged         merge error {number(figures['merged_excess'])} (limit {limits['merged']:.1e}): "
        f"vs adapter on base {number(figures['merged'])}, base vs dense copy {number(figures['dense'])}",
        f"reloaded       merge error {number(figures['excess'])} in {report['dtype']} (limit {limits['excess']:.1e}): "
        f"vs adapter on base {number(figures['drift'])}, base vs rounded dense copy {number(figures['base'])}",
    ]
    if requantized is not None:
        change = number(requantized["drift"])
        lines.append(f"quantized      {requantized['quantizer']} changes the merged model's logits by {change}")
        found = requantized["predictions"]
        before, after = (shown_perplexity(found[f"perplexity_{when}"]) for when in ("before", "after"))
        lines += [
            f"perplexity     {before} merged, {after} quantized, on {found['tokens']:,} tokens of {found['row_count']} "
            f"rows ({found['rows']})",
            f"               {found['meaning']}",
            f"retained       {retained_line(requantized['retained'])}",
        ]
        if report["dense"]:
            lines.append(f"dense          {report['dense']} ({report['parameters']:,} parameters, {report['dtype']})")
    if (shipped := report.get("shipped")) is not None:
        compared = f"{shipped['layers']} layers ({shipped['compared']})"
        lines.append(f"shipped        {compared} equal the weights of training bit for bit")
    flags = plugin_flags(plugins) if requantized is not None else ""
    shape = f"{report['parameters']:,} parameters, {requantized['quantizer'] if requantized else report['dtype']}"
    lines += [
        f"model          {report['output']} ({shape})",
        f"took           {report['seconds']} s",
        "",
        f"try it         smollm3 generate {shlex.quote(report['output'])}{flags} --prompt '…'",
    ]
    return "\n".join(lines)
