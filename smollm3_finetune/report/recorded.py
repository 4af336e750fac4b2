"""Files of a run that only the page needs: counts and lengths of the rows, three rows, origins, warnings.

The run writes them when the values are known; `RunDir` lists them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from smollm3_finetune.files.json import json_object, write_json
from smollm3_finetune.files.writing import append_text
from smollm3_finetune.report.values import text
from smollm3_finetune.runs.details import saved_warnings
from smollm3_finetune.runs.rundir import RunDir


def write_data(run: RunDir, about: Mapping[str, Any]) -> None:
    """Write data.json, whole or not at all."""
    write_json(run.data, about)


def write_origins(run: RunDir, origins: Mapping[str, str], *, resumed: bool) -> None:
    """Write where the values of run.yaml come from.

    The values that a resumed run reads from its own run.yaml keep the origins of the first command.
    """
    own = f"{run.config.name}:"
    kept = {k: v for k, v in json_object(run.origins).items() if text(v) is not None} if resumed else {}
    write_json(run.origins, {**kept, **{k: o for k, o in origins.items() if not (resumed and own in o)}})


def add_warnings(run: RunDir, warnings: Iterable[str]) -> None:
    """Append to warnings.jsonl; a warning that it holds already is not repeated."""
    known = saved_warnings(run)
    lines = [json.dumps({"warning": w}, ensure_ascii=True) for w in dict.fromkeys(warnings) if w not in known]
    if lines:
        append_text(run.warnings, "".join(f"{line}\n" for line in lines))
