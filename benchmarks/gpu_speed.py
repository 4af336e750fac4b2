"""The speed job of `nox -s gpu`: smollm3 train, transformers.Trainer and trl sft on rows of one length, in rounds.

Time is wall-clock time after the first step; on a GPU each step waits for what was queued there. Memory is the largest
of torch's tensors on a GPU, and the anonymous memory of the process on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from gpu_models import SHRUNKEN, SMALL, conversations, write_model
from speed_peers.contestants import OURS, PADDED, TRL, command
from speed_peers.job import Job, write_rows
from speed_peers.measure import observed


def one_run(name: str, job: Job, python_trl: Path, positions: int) -> dict[str, Any]:
    """The figures of one contestant. `positions` is the number of tokens in each step."""
    with observed(name, partial(command, name, job, python_trl=python_trl), 1 if job.device == "cpu" else 4) as seen:
        steps = seen.of("step")
        took = steps[-1]["time"] - steps[0]["time"]
        gpu = max(s["gpu"] for s in steps)
        losses = [row["loss"] for row in seen.logs() if "loss" in row]
        return {
            "tokens_per_second": positions * (len(steps) - 1) / took,
            "memory": gpu or seen.peak,
            "first_step_seconds": steps[0]["time"] - seen.began,
            "first_loss": losses[0],
            "steps": len(steps),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quant", default="none", choices=("none", "bnb-4bit"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--python-trl", type=Path, help="an interpreter in the directory of `trl`")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    cpu = args.device == "cpu"
    length, batch, steps, shape = (64, 2, 4, SHRUNKEN) if cpu else (1024, 4, 12, SMALL)
    dtype = "float32" if cpu else "bfloat16"
    names = [OURS, PADDED, *([TRL] if args.python_trl is not None else [])]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        model = write_model(shape, Path(temporary) / "model", dtype)
        job = Job(
            model=str(model), directory=f"{temporary}/job", batch=batch, max_length=length, device=args.device,
            dtype=dtype, quant=args.quant,
        )  # fmt: skip
        write_rows(job, conversations(batch * steps, length))
        for number in range(args.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                results[name].append(one_run(name, job, args.python_trl or Path(sys.executable), batch * length))
                print(f"round {number + 1}  {name}: {results[name][-1]['tokens_per_second']:.0f} tokens/s", flush=True)
    first = [runs[0]["first_loss"] for runs in results.values()]
    figures: list[dict[str, Any]] = []
    for name, runs in results.items():
        title = name if args.quant == "none" else f"{name}, {args.quant}"
        for key, unit in (("tokens_per_second", "tokens/s"), ("memory", "bytes"), ("first_step_seconds", "s")):
            value = statistics.median(r[key] for r in runs)
            figures.append({"what": f"{title}: {key.replace('_', ' ')}", "value": value, "unit": unit})
    apart = (max(first) - min(first)) / min(first)
    figures.append({"what": "first losses of all contestants, relative difference", "value": apart, "unit": ""})
    limit = 1e-4 if dtype == "float32" else 2e-2
    fault = None if apart <= limit else f"the first losses differ by {apart:.1e} (limit {limit:.0e}): {first}"
    conditions = f"{batch} × {length} tokens, {dtype}, LoRA rank {job.rank}, {shape.parameters / 1e6:.1f} M parameters"
    args.json.write_text(json.dumps({"figures": figures, "fault": fault, "conditions": conditions}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
