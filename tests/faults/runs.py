"""Trains in this process again and again while writes into the run directory fail; prints the outcomes as JSON.

Started by `test_failing_runs.py`, with `shim.c` preloaded: `python runs.py RUN CALLS`, where CALLS is a JSON list of
[fraction of the calls of a run, kind]. After each failure, the same run is continued without faults.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from attempts import Counter

from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.testing.commands import Result, smollm3

TRAIN = ("train", "--adapter", "full", "--device", "cpu", "--max-steps", "2", "--set", "data.limit=20", "--set",
         "train.sample_tokens=2", "--set", "train.save_every=1")  # fmt: skip


def attempt(run: Path, counter: Counter, call: int, kind: str) -> tuple[Result, int]:
    shutil.rmtree(run, ignore_errors=True)
    counter.restart(call, kind)
    try:
        result = smollm3(*TRAIN, "--output", run)
        return result, counter.calls()
    finally:
        counter.restart(0, "")
        gc.collect()


def outcome(run: Path, counter: Counter, call: int, kind: str) -> dict[str, Any]:
    result, _ = attempt(run, counter, call, kind)
    damaged = [str(c.damage()) for c in RunDir(run).saved.all() if c.damage() is not None]
    saved = bool(RunDir(run).saved.all())
    complete = (run / "report.json").exists()
    continued = None
    if not complete:
        command = ("train", "--resume", run) if saved else (*TRAIN, "--output", run)
        continued = smollm3(*command)
    return {
        "code": result.code,
        "stderr": result.stderr[-600:],
        "damaged": damaged,
        "saved": saved,
        "complete": complete,
        "continued": None if continued is None else [continued.code, continued.stderr[-600:]],
    }


if __name__ == "__main__":
    place, counter = Path(sys.argv[1]), Counter(Path(sys.argv[2]))
    _, calls = attempt(place, counter, 0, "")
    found = {}
    for fraction, kind in json.loads(sys.argv[3]):
        call = max(1, round(fraction * calls))
        found[f"{kind} at call {call} of {calls}"] = outcome(place, counter, call, kind)
    print(json.dumps(found))
