"""The report of a quantization, in a few lines."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from smollm3_finetune.paths import plugin_flags


def shown_quantized(report: Mapping[str, Any], plugins: Iterable[str] = ()) -> str:
    """The report of a quantization as human-readable text; `plugins` are the values of `-p` that it used."""
    lines = ["", f"quantizer      {report['quantizer']}"]
    if report["calibration_rows"] is not None:
        lines.append(f"calibration    {report['calibration_rows']} rows, {report['calibration_tokens']:,} tokens")
    lines += [
        f"weights        {report['bytes'] / 1e6:.1f} MB, {report['bytes_before'] / 1e6:.1f} MB before",
        f"checkpoint     {report['output']}",
        f"took           {report['seconds']} s",
        "",
        f"try it         smollm3 generate {shlex.quote(report['output'])}{plugin_flags(plugins)} --prompt '…'",
    ]
    return "\n".join(lines)
