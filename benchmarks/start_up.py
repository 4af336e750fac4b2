"""Time of help and other light commands, relative to `python -c "import click"`; medians over interleaved rounds.

    nox -s start_up [-- --rounds 15] [--only completion]

Also completion, as a shell asks for it, and root help with 50 more plugins, which are generated into a directory on the
path. The processor time is less noisy than the time where other programs run.

Targets: root help takes at most 1.5 times as long as `import click`, `train --help` at most 4 times. A wrong name is
refused on 300,000 rows in at most 1.5 times the time on none. `runs list` takes less than a second for 500 runs. An
answer of completion takes less than 150 ms, and root help with 50 more plugins as long as without them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
COMPLETED = {
    "Tab after `smollm3`": "smollm3 ",
    "Tab after `smollm3 train --qu`": "smollm3 train --qu",
    "Tab after `smollm3 train --adapter`": "smollm3 train --adapter ",
    "Tab after `smollm3 train --launcher torchrun --launcher-opt`": "smollm3 train --launcher torchrun --launcher-opt ",
    "Tab after `smollm3 train --set train.`": "smollm3 train --set train.",
    "Tab after `smollm3 runs show`": "smollm3 runs show ",
}
"""Lines that are completed; each is asked for once before the measurement, as the first Tab stores what it needs."""
PLUGINS = 50
HOOKS = """
from smollm3_finetune.api import AdapterSpec, CommandSpec, Op, QuantizerSpec, hookimpl

@hookimpl
def smollm3_quantizers():
    return [QuantizerSpec(name="q{n}", summary="quantizer {n}", factory="made{n}.q:Q", provides={{Op.FORWARD}}, api=2)]

@hookimpl
def smollm3_adapters():
    return [AdapterSpec(name="a{n}", summary="adapter {n}", factory="made{n}.a:A", needs={{Op.FORWARD}}, api=2)]

@hookimpl
def smollm3_commands():
    return [CommandSpec(name="c{n}", summary="command {n}", factory="made{n}.c:c", api=2)]
"""
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


def write_plugins(folder: Path) -> None:
    """Distributions of one plugin each, as pip installs them."""
    for n in range(PLUGINS):
        package, about = folder / f"made{n}", folder / f"made{n}-1.0.dist-info"
        package.mkdir(parents=True)
        about.mkdir()
        (package / "__init__.py").write_text(HOOKS.format(n=n), encoding="utf-8")
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made{n}\nVersion: 1.0\n", encoding="utf-8")
        (about / "entry_points.txt").write_text(f"[smollm3_finetune]\nmade{n} = made{n}\n", encoding="utf-8")


def processor_time() -> float:
    """The processor time of all child processes that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(command: list[str], **variables: str) -> tuple[float, float]:
    """The time that a command takes, and its processor time."""
    before, began = processor_time(), time.perf_counter()
    env = {**os.environ, **variables}
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    taken = time.perf_counter() - began
    if done.returncode != (2 if "gtpq" in command else 0):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return taken, processor_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds, after one warm-up round")
    parser.add_argument("--only", choices=("completion", "help"), help="measure only these")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, runs, made = Path(folder) / "rows.jsonl", Path(folder) / "runs", Path(folder) / "made"
        if arguments.only != "completion":
            write_rows(file)
            write_runs(runs)
        write_plugins(made)
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(made))))
        with_plugins = {"PYTHONPATH": path}
        commands: dict[str, tuple[list[str], dict[str, str]]] = {
            "`import click`": (COMMANDS["import click"], {}),
            "`smollm3 --help`": (COMMANDS["smollm3 --help"], {}),
            f"`smollm3 --help`, {PLUGINS} more plugins": (COMMANDS["smollm3 --help"], with_plugins),
        }
        if arguments.only != "help":
            for name, line in COMPLETED.items():
                asked = {"_SMOLLM3_COMPLETE": "zsh_complete", "_SMOLLM3_LINE": line}
                commands[name] = ([str(SCRIPT)], asked)
            name = "Tab after `smollm3 train --adapter`"
            commands[f"{name}, {PLUGINS} more plugins"] = ([str(SCRIPT)], {**commands[name][1], **with_plugins})
        if arguments.only != "completion":
            commands |= {f"`{name}`": (command, {}) for name, command in COMMANDS.items()}
            commands[f"`smollm3 runs list` ({RUNS} runs)"] = ([str(SCRIPT), "runs", "list", "--runs", str(runs)], {})
            commands["`smollm3 train --quant gtpq`"] = (WRONG, {})
            commands[f"`smollm3 train --quant gtpq --data FILE` ({ROWS:,} rows)"] = ([*WRONG, "--data", str(file)], {})
        seconds(COMMANDS["smollm3 plugins list"], **with_plugins)  # writes the snapshot, as any such command does
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for n in range(arguments.rounds + 1):
            for name, (command, variables) in commands.items():
                taken = seconds(command, **variables)
                if n:
                    times[name].append(taken)
    base = [taken for taken, _ in times["`import click`"]]
    print("| command | median, ms | ratio to `import click`, median of pairs | processor time, ms |\n|---|---|---|---|")
    for name, measured in times.items():
        ratio = statistics.median(t / b for (t, _), b in zip(measured, base, strict=True))
        median, used = (1000 * statistics.median(values) for values in zip(*measured, strict=True))
        print(f"| {name} | {median:.0f} | {ratio:.2f} | {used:.0f} |")
    if arguments.only == "completion":
        return
    without, with_rows = ([t for t, _ in times[name]] for name in list(times)[-2:])
    ratio = statistics.median(t / b for t, b in zip(with_rows, without, strict=True))
    print(f"\nA wrong name is refused on {ROWS:,} rows in {ratio:.2f} times what it takes on none.")


if __name__ == "__main__":
    main()
