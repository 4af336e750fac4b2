"""The end of a merge, in a few lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from smollm3_finetune.cli.options import plugin_flags


def shown_merge(report: Mapping[str, Any], plugins: Iterable[str] = ()) -> str:
    """The end of a merge, for a person; `plugins` are the values of `-p` with which it was made."""
    figures, limits, again = report["figures"], report["limits"], report["requantized"]

    def number(value: float | None) -> str:
        return "not a number" if value is None else f"{value:.1e}"

    lines = [
        "",
        f"adapter        {report['adapter']} moves the logits of {report['model']} by {number(figures['moved'])}, "
        f"over {figures['positions']} positions",
        f"merged         {number(figures['merged'])} off the adapter on its base, the base's dense copy "
        f"{number(figures['dense'])} off; the merge adds {number(figures['merged_excess'])}, "
        f"at most {limits['merged']:.1e}",
        f"reloaded       in {report['dtype']} {number(figures['drift'])} off, the base's dense copy "
        f"{number(figures['base'])} off; the merge adds {number(figures['excess'])}, at most {limits['excess']:.1e}",
    ]
    if again is not None:
        lines.append(f"quantized      {again['quantizer']} moves the merged model's logits by {number(again['drift'])}")
        if report["dense"]:
            lines.append(f"dense          {report['dense']} ({report['parameters']:,} parameters, {report['dtype']})")
    flags = plugin_flags(plugins) if again is not None else ""
    shape = f"{report['parameters']:,} parameters, {again['quantizer'] if again else report['dtype']}"
    lines += [
        f"model          {report['output']} ({shape})",
        f"took           {report['seconds']} s",
        "",
        f"try it         smollm3 generate {shlex.quote(report['output'])}{flags} --prompt '…'",
    ]
    return "\n".join(lines)
