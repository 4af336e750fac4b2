"""Time of help and other light commands, relative to `python -c "import click"`; medians over interleaved rounds.

    nox -s start_up [-- --rounds 15]

Targets: root help takes at most 1.5 times as long as `import click`, `train --help` at most 4 times. A wrong name is
refused on 300,000 rows in at most 1.5 times the time on none. `runs list` takes less than a second for 500 runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(sys.executable).with_name("smollm3")
COMMANDS = {
    "import click": [sys.executable, "-c", "import click"],
    "smollm3 --help": [str(SCRIPT), "--help"],
    "smollm3 train --help": [str(SCRIPT), "train", "--help"],
    "smollm3 train --adapter lora --help": [str(SCRIPT), "train", "--adapter", "lora", "--help"],
    "smollm3 generate --help": [str(SCRIPT), "generate", "--help"],
    "smollm3 plugins list": [str(SCRIPT), "plugins", "list"],
    "smollm3 config validate --adapter full": [str(SCRIPT), "config", "validate", "--adapter", "full"],
}
WRONG = [str(SCRIPT), "train", "--quant", "gtpq"]
ROWS = 300_000
RUNS = 500


def write_rows(file: Path) -> None:
    """A file of so many rows that reading them would show."""
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]}
    file.write_text(f"{json.dumps(row)}\n" * ROWS, encoding="utf-8")


def write_runs(folder: Path) -> None:
    """Finished runs with the files of a run that takes 60 steps and saves two checkpoints; tensors are empty files."""
    from smollm3_finetune.config.load import Setting, assemble
    from smollm3_finetune.runs.facts import record_facts
    from smollm3_finetune.runs.rundir import RunDir

    names = {"loader": "hf", "quant": "none", "adapter": "lora", "objective": "sft"}
    config = assemble([[Setting(key=(k, "name"), value=v, origin="") for k, v in names.items()]]).config
    line = {"step": 60, "epoch": 1.5, "loss": 0.25, "learning_rate": 2e-4, "grad_norm": 1.5, "tokens_per_second": 1e3}
    after = {"held_out_loss": 1.8, "perplexity": 6.0, "sample": "The capital of France is Paris."}
    report = {"steps": 60, "seconds": 30.8, "before": after, "after": after, "rows": [{"title": "rows.jsonl"}]}
    common = ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md", "checksums.json",
              "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "smollm3.json")  # fmt: skip
    own = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
    for number in range(RUNS):
        run = RunDir(folder / f"20261129-{number:06}-SmolLM2-135M-lora")
        run.make()
        run.create(config, {"plugins": {}, "libraries": {}, "plugin_files": {}}, lambda text: None)
        record_facts(run, config, ["rows.jsonl"], 60)
        run.metrics.write_text(f"{json.dumps(line)}\n" * 60, encoding="utf-8")
        for file, about in ((run.report, report), (run.trained, {"steps": 60}), (run.before, {"held_out_loss": 2.0})):
            file.write_text(json.dumps(about), encoding="utf-8")
        for directory, more in ((run.adapter, ()), *((run.saved.at(step), own) for step in (30, 60))):
            directory.mkdir(parents=True)
            for name in (*common, *more):
                (directory / name).touch()


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    taken = time.perf_counter() - began
    if done.returncode != (2 if "gtpq" in command else 0):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds, after one warm-up round")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        file, runs = Path(folder) / "rows.jsonl", Path(folder) / "runs"
        write_rows(file)
        write_runs(runs)
        commands = {
            **COMMANDS,
            f"smollm3 runs list ({RUNS} runs)": [str(SCRIPT), "runs", "list", "--runs", str(runs)],
            "smollm3 train --quant gtpq": WRONG,
            f"smollm3 train --quant gtpq --data FILE ({ROWS:,} rows)": [*WRONG, "--data", str(file)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for n in range(rounds + 1):
            for name, command in commands.items():
                taken = seconds(command)
                if n:
                    times[name].append(taken)
    base = times["import click"]
    print("| command | median, ms | ratio to `import click`, median of pairs |\n|---|---|---|")
    for name, all_taken in times.items():
        ratio = statistics.median(t / b for t, b in zip(all_taken, base, strict=True))
        print(f"| `{name}` | {1000 * statistics.median(all_taken):.0f} | {ratio:.2f} |")
    without, with_rows = (times[name] for name in list(times)[-2:])
    ratio = statistics.median(t / b for t, b in zip(with_rows, without, strict=True))
    print(f"\nA wrong name is refused on {ROWS:,} rows in {ratio:.2f} times what it takes on none.")


if __name__ == "__main__":
    main()
