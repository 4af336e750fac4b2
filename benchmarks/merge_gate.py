"""The error of a merge in the logits, for each bundled quantizer with LoRA and DoRA: the table in docs/measurements.md.

    python benchmarks/merge_gate.py [STEPS [QUANTIZER …]]

Trains the embedded model for STEPS steps (default 60) with each pair, or with the pairs of the named quantizers. Then
merges each adapter into float32, float16 and bfloat16, computing in float32 and in bfloat16, and prints one row per
merge. Takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smollm3_finetune.main import main

QUANTIZERS = ("none", "bnb-4bit", "bnb-8bit", "gptq")
FORMATS = (("float32", "float32"), ("float32", "float16"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"))
"""Dtype of the computation, and dtype of the saved weights."""
FEW = ("--set", "calibration.rows=16")
COLUMNS = ("moved", "dense", "merged", "base", "drift", "merged_excess", "excess")


def command(*arguments: str) -> dict[str, Any]:
    """The report of `smollm3 ARGUMENTS --json`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*arguments, "--json"])
    report: dict[str, Any] = json.loads(out.getvalue())
    return report


def rows(steps: str, quantizers: Sequence[str], directory: Path) -> None:
    print("| quantizer | adapter | computed in | saved in | " + " | ".join(COLUMNS) + " |")
    print("|---" * (4 + len(COLUMNS)) + "|")
    for quant, adapter in itertools.product(quantizers, ("lora", "dora")):
        run = str(directory / f"{quant}-{adapter}")
        command("train", "--quant", quant, "--adapter", adapter, "--max-steps", steps, "--output", run, *FEW)
        for computed, saved in FORMATS:
            out = f"{run}-{computed}-{saved}"
            formats = ("--compute-dtype", computed, "--dtype", saved)
            figures = command("merge", run, "--output", out, "--force", *formats)["figures"]
            numbers = " | ".join(f"{figures[c]:.1e}" for c in COLUMNS)
            print(f"| `{quant}` | {adapter} | {computed} | {saved} | {numbers} |", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        steps, *quantizers = sys.argv[1:] or ["60"]
        rows(steps, quantizers or QUANTIZERS, Path(directory))
