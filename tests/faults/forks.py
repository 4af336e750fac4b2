"""Commands in forks of one process that has imported everything, and what an undisturbed one makes of a directory.

Used by `kills.py` and `disks.py`. The process needs `shim.c`, preloaded, with `FAULT_DIR` and `FAULT_COUNTER`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import shim

ROOT = Path(__file__).parents[2]
HANG = 120.0
"""Seconds after which a command without a disturbance counts as hanging."""
SMALL = (
    "--set", "data.limit=24", "--set", "train.sample_tokens=2", "--max-length", "128", "--batch-size", "4",
    "--max-steps", "4", "--set", "train.save_every=1",
)  # fmt: skip
PHASES = (
    ("tokenizing", "tokenizing"),
    ("quantizing", "quantizing"),
    ("held-out loss before", "training"),
    ("measuring", "measuring"),
)
"""The last of these words on standard error names the phase."""


@dataclass(frozen=True)
class Scenario:
    """A command that is ended, and what must be equal in the end."""

    name: str
    command: tuple[str, ...]
    results: tuple[str, ...]
    """Patterns of the files that must be equal bit for bit, relative to the directory."""
    done: str
    """A file that exists only after the command has completed."""
    before: tuple[tuple[str, ...], ...] = ()
    """Commands that prepare the directory."""
    gguf: bool = False
    """Whether the directory contains the model `tiny.gguf`."""
    files: tuple[tuple[str, str], ...] = ()
    """Names and texts of files in the directory."""
    stages: int = 0
    """The stages of a pipeline."""

    def completed(self, directory: Path) -> bool:
        """Whether the command has completed: a report counts if it is about all steps."""
        done = directory / self.done
        if done.name == "pipeline.json" and done.exists():
            stages = json.loads(done.read_text())["stages"]
            return len(stages) == self.stages and all(s["state"] == "finished" for s in stages.values())
        return done.exists() and (done.name != "report.json" or json.loads(done.read_text())["steps"] == 4)

    def again(self, directory: Path) -> tuple[str, ...]:
        """The command that is typed after the disturbance."""
        if self.command[0] == "pipeline" and (directory / self.done).exists():
            return ("pipeline", "resume", *self.command[2:])
        starts = self.command[0] == "train" and "--resume" not in self.command
        return (*self.command, "--resume", "auto") if starts else self.command


def train(quant: str, adapter: str, *more: str) -> tuple[str, ...]:
    return ("train", "--quant", quant, "--adapter", adapter, *SMALL, *more, "--output", "out")


PIPELINE = f"""\
output: pipe
plugins: ["{ROOT / "tests/out_of_tree/rounding_quantizer.py"}"]
data: {{limit: 24, max_length: 128}}
train: {{max_steps: 4, batch_size: 4, sample_tokens: 2, save_every: 1}}
calibration: {{rows: 8}}
stages:
  - {{name: sft, adapter: full}}
  - {{name: more, from: sft, train: {{learning_rate: 1e-4}}}}
  - {{name: merged, from: more, merge: true}}
  - {{name: q, from: merged, quantize: rounding-rows}}
  - {{name: check, from: more, eval: {{answers: 0, null_adapter: false}}}}
"""


CHAIN = """\
output: pipe
device: cpu
data: {limit: 24, max_length: 64}
train: {max_steps: 3, batch_size: 4, sample_tokens: 2, save_every: 1}
calibration: {rows: 8}
stages:
  - {name: sft, quant: bnb-4bit, adapter: {name: lora, rank: 4, dropout: 0.1}}
  - {name: apo, from: sft, objective: apo-zero, data: {path: pairs.jsonl}, train: {learning_rate: 1e-4}}
  - {name: merged, from: apo, merge: true}
  - {name: q, from: merged, quantize: {name: gptq, group_size: 32}}
"""
"""The recipe of SmolLM3, on its built-in small form: adapters on a 4-bit base, preferences, a dense model, GPTQ."""


def scenarios() -> Iterator[Scenario]:
    weights = ("out/adapter/*.safetensors",)
    for quant, adapter in (
        ("none", "lora"), ("none", "dora"), ("none", "full"), ("bnb-4bit", "lora"), ("bnb-4bit", "dora"),
        ("gptq", "lora"), ("gptq", "dora"),
    ):  # fmt: skip
        prepared = ((*train(quant, adapter)[:-1], "seed"),) if quant == "gptq" else ()  # the cache has its base
        yield Scenario(f"train {quant} {adapter}", train(quant, adapter), weights, "out/report.json", before=prepared)
    yield Scenario("train gptq lora, base quantized", train("gptq", "lora"), weights, "out/report.json")
    yield Scenario(
        "train gguf lora", train("none", "lora", "--model", "tiny.gguf"), weights, "out/report.json", gguf=True
    )
    yield Scenario("tokens", train("none", "full"), (*weights, "cache/tokens/*/*.arrow"), "out/report.json")
    yield Scenario(
        "resume", ("train", "--resume", "out", "--max-steps", "4"), weights, "out/report.json",
        before=((*train("none", "lora"), "--max-steps", "2"),),
    )  # fmt: skip
    yield Scenario(
        "quantize gptq", ("quantize", "tiny", "--quant", "gptq", "--max-length", "128", "--output", "quantized"),
        ("quantized/*.safetensors", "quantized/config.json"), "quantized/config.json",
    )  # fmt: skip
    accumulation = ("--set", "train.gradient_accumulation=2", "--adapter-opt", "dropout=0.1")
    yield Scenario("train accumulation, dropout", train("none", "lora", *accumulation), weights, "out/report.json")
    yield Scenario(
        "merge", ("merge", "out", "--output", "merged"), ("merged/*.safetensors", "merged/config.json"),
        "merged/config.json", before=(train("none", "lora"),),
    )  # fmt: skip
    yield Scenario(
        "merge bnb-4bit dora", ("merge", "out", "--output", "merged"), ("merged/*.safetensors",),
        "merged/config.json", before=(train("bnb-4bit", "dora"),),
    )  # fmt: skip
    results = ("pipe/*/adapter/*.safetensors", "pipe/*/*.safetensors", "pipe/*/config.json")
    about: dict[str, Any] = {"command": ("pipeline", "run", "p.yaml"), "results": results, "done": "pipe/pipeline.json"}
    yield Scenario("pipeline", **about, files=(("p.yaml", PIPELINE),), stages=5)
    pairs = (ROOT / "examples/pairs.jsonl").read_text(encoding="utf-8")
    yield Scenario("sft, apo, merge, gptq", **about, files=(("p.yaml", CHAIN), ("pairs.jsonl", pairs)), stages=4)


@dataclass
class Ended:
    """How a child process ended."""

    code: int | None
    """The exit code, minus the signal's number if it was killed; None if it hung."""
    seconds: float
    stderr: str
    latency: float | None = None
    """Seconds from the signal to the end."""
    phase: str = ""


def start(directory: Path, command: Sequence[str], call: int = 0, largest: int = 0) -> int:
    """Fork a child that runs a command, killed at the counted write of number `call`; returns its process id.

    With `largest`, files may not become larger than so many bytes, as with `ulimit -f`.
    """
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        os.chdir(directory)
        kernels = Path.home() / ".cache/gptqmodel/torch_extensions"  # compiled once, not in each trial
        os.environ.setdefault("GPTQMODEL_TORCH_EXTENSIONS_DIR", str(kernels))
        os.environ.update(SMOLLM3_CACHE=str(directory / "cache"), HOME=str(directory), HF_HUB_OFFLINE="1")
        err = os.open(directory.parent / f"{directory.name}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for target in (1, 2):
            os.dup2(err, target)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if largest:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        ctypes.CDLL(None).fault_arm(ctypes.c_uint64(call), b"KILL", 0)
        from smollm3_finetune.main import main

        try:
            main(list(command))
        except SystemExit as e:
            os._exit(int(e.code or 0))
    except BaseException as e:
        os.write(2, f"unexpected {e!r}\n".encode())
    finally:
        os._exit(99)


def wait(child: int, directory: Path, deadline: float, at: float | None = None, number: int = 0) -> Ended:
    """Wait for a child; send it a signal after `at` seconds."""
    began, sent, phase = time.monotonic(), None, ""
    err = directory.parent / f"{directory.name}.err"
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        if found:
            code = os.waitstatus_to_exitcode(status)
            text = err.read_text(errors="replace") if err.exists() else ""
            return Ended(code, now - began, text, None if sent is None else now - sent, phase)
        if at is not None and sent is None and now - began >= at:
            phase = phase_of(err)
            os.kill(child, number)
            sent = time.monotonic()
        if now - began > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Ended(None, now - began, err.read_text(errors="replace"), None, phase)
        time.sleep(0.002)


def phase_of(err: Path) -> str:
    """The phase that a command says it is in."""
    text = err.read_text(errors="replace") if err.exists() else ""
    lines = text.strip().splitlines() or ["starting"]
    last = lines[-1]
    if last.startswith("step "):
        step, _, total = last.split()[1].partition("/")
        return "after the last step" if step == total else "training"
    return next((phase for word, phase in PHASES if last.startswith(word)), "starting" if len(lines) < 2 else "loading")


def digest(directory: Path, patterns: Sequence[str]) -> str:
    """One hash over the files that must be equal."""
    found = hashlib.sha256()
    for pattern in patterns:
        files = sorted(directory.glob(pattern))
        for file in files or [directory / "missing"]:
            found.update(file.name.encode())
            found.update(file.read_bytes() if file.exists() else b"missing")
    return found.hexdigest()


def prepare(scenario: Scenario, work: Path) -> tuple[Path, str, int, float]:
    """The directory before the command, the digest and the counted writes of an undisturbed command, its seconds."""
    base = work / "base"
    base.mkdir(parents=True)
    if scenario.gguf:
        sys.path.insert(0, str(ROOT / "plugins/smollm3-gguf/tests"))
        import tiny_gguf

        tiny_gguf.write(base / "tiny.gguf")
    for name, text in scenario.files:
        (base / name).write_text(text, encoding="utf-8")
    for command in scenario.before:
        ended = wait(start(base, command), base, 4 * HANG)
        if ended.code != 0:
            raise SystemExit(f"{scenario.name}: preparing failed with {ended.code}\n{ended.stderr}")
    whole = work / "whole"
    shutil.copytree(base, whole)
    child = start(whole, scenario.command)
    ended = wait(child, whole, 4 * HANG)
    if ended.code != 0:
        raise SystemExit(f"{scenario.name}: the undisturbed command failed with {ended.code}\n{ended.stderr}")
    calls = int.from_bytes(Path(os.environ["FAULT_COUNTER"]).read_bytes(), sys.byteorder)
    return base, digest(whole, scenario.results), calls, ended.seconds


def rerun_with_shim(name: str) -> int:
    """Run this script again with `shim.c` preloaded and `--work DIRECTORY`; returns its exit code."""
    with tempfile.TemporaryDirectory(prefix=f"smollm3-{name}-") as made:
        work = Path(made).resolve()
        (work / "counter").write_bytes(bytes(8))
        env = {
            **os.environ, "LD_PRELOAD": str(shim()), "FAULT_DIR": str(work), "FAULT_COUNTER": str(work / "counter"),
            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0",
        }  # fmt: skip
        return subprocess.run([sys.executable, *sys.argv, "--work", str(work)], env=env, check=False).returncode


def import_everything() -> None:
    """Import what the commands import, so that forks need not; nothing is computed, so that no thread is started."""
    import bitsandbytes
    import peft
    import torch
    import transformers

    assert bitsandbytes and peft
    torch.set_num_threads(1)
    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.merge import run as merging
    from smollm3_finetune.pipeline import run as pipelines
    from smollm3_finetune.train import loop, run

    assert loop and run and merging and pipelines
    discover(PluginSelection.of(()))
    assert transformers.Trainer and transformers.SmolLM3ForCausalLM and transformers.AutoTokenizer
