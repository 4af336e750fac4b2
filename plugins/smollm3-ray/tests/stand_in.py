"""A run that trains nothing, for tests of the launcher alone: processes that add numbers, and a state that resumes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smollm3_finetune.api import DataError, Observer

STEPS = 6


def work(run: Path, observer: Observer | None) -> Mapping[str, Any] | None:
    """Six steps; `settings.json` in the run says which mishap happens after which step of the first attempt."""
    import torch
    import torch.distributed as dist

    settings = json.loads((run / "settings.json").read_text())
    rank = int(os.environ.get("RANK", "0"))
    newest = run / "checkpoint" / "step.json"
    begun = json.loads(newest.read_text()) if newest.exists() else {"step": 0, "sum": 0.0}
    with (run / f"attempts-{rank}.jsonl").open("a") as file:
        file.write(json.dumps({"from": begun["step"], "world": os.environ.get("WORLD_SIZE"), "at": os.getcwd()}) + "\n")
    total = begun["sum"]
    first_attempt = len((run / f"attempts-{rank}.jsonl").read_text().splitlines()) == 1
    for step in range(begun["step"] + 1, STEPS + 1):
        part = torch.tensor([float(step * (rank + 1))])
        if dist.is_initialized():
            dist.all_reduce(part)
        total += part.item()
        if rank == 0:
            print(f"step {step}/{STEPS}")
        assert observer is not None
        loss = settings.get("losses", {}).get(str(step))
        continues = observer.measured(step, {"loss": 1 / step} | ({} if loss is None else {"held_out_loss": loss}))
        votes = torch.tensor([float(continues)])
        if dist.is_initialized():  # as in a run: all processes end after the same step
            dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        if not votes.item():
            return None
        if rank == 0:
            newest.parent.mkdir(exist_ok=True)
            newest.write_text(json.dumps({"step": step, "sum": total}))
            observer.saved(step, newest.parent)
        if settings.get("mishap") == [rank, step] and first_attempt:
            os.kill(os.getpid(), signal.SIGKILL)
        if settings.get("bad_row") == step:
            raise DataError(f"row {step} is not usable", hint="remove it")
        time.sleep(settings.get("seconds", 0))
    if rank != 0:
        return None
    (run / "report.json").write_text(json.dumps({"sum": total}))
    return {"sum": total}
