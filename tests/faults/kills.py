"""Ends commands at random moments, runs them again, and compares the result with that of an undisturbed command.

    python tests/faults/kills.py --trials 1000 --seed 0 --jobs 2

Each trial ends a command with `kill -9` at a counted write below its directory, with `kill -9` at a random time, or
with a signal at a random time. The next command must complete, and the final files must equal those of an undisturbed
run bit for bit. Commands run in forks of one process that has imported everything, so that a trial takes a few seconds.
The counted writes need `shim.c`, preloaded; `faults.py` builds it.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from faults import shim

ROOT = Path(__file__).parents[2]
HANG = 120.0
"""Seconds after which a command without a disturbance counts as hanging."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
SMALL = (
    "--set", "data.limit=24", "--set", "train.sample_tokens=2", "--max-length", "128", "--batch-size", "4",
    "--max-steps", "4", "--set", "train.save_every=1",
)  # fmt: skip
PHASES = (
    ("tokenizing", "tokenizing"),
    ("quantizing", "quantizing"),
    ("held-out loss before", "training"),
    ("measuring", "measuring"),
    ("merging", "merging"),
    ("checking", "checking the merge"),
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

    def completed(self, directory: Path) -> bool:
        """Whether the command has completed: a report counts if it is about all steps."""
        done = directory / self.done
        return done.exists() and (done.name != "report.json" or json.loads(done.read_text())["steps"] == 4)

    def again(self) -> tuple[str, ...]:
        """The command that is typed after the disturbance."""
        starts = self.command[0] == "train" and "--resume" not in self.command
        return (*self.command, "--resume", "auto") if starts else self.command


def train(quant: str, adapter: str, *more: str) -> tuple[str, ...]:
    return ("train", "--quant", quant, "--adapter", adapter, *SMALL, *more, "--output", "out")


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


def start(directory: Path, command: Sequence[str], call: int = 0) -> int:
    """Fork a child that runs a command, killed at the counted write of this number; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        os.chdir(directory)
        os.environ.update(SMOLLM3_CACHE=str(directory / "cache"), HOME=str(directory), HF_HUB_OFFLINE="1")
        err = os.open(directory.parent / f"{directory.name}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for target in (1, 2):
            os.dup2(err, target)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
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


@dataclass
class Table:
    """The figures of all trials."""

    counts: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    phases: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    """How many commands were ended in each phase, by kind."""
    latencies: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))
    failures: list[dict[str, object]] = field(default_factory=list)

    def merge(self, other: dict[str, object]) -> None:
        for name, counts in other["counts"].items():  # type: ignore[attr-defined]
            self.counts[name].update(counts)
        for phase, kinds in other["phases"].items():  # type: ignore[attr-defined]
            self.phases[phase].update(kinds)
        for phase, found in other["latencies"].items():  # type: ignore[attr-defined]
            self.latencies[phase] += found
        self.failures += other["failures"]  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, object]:
        return {"counts": self.counts, "phases": self.phases, "latencies": self.latencies, "failures": self.failures}

    def shown(self) -> str:
        columns = ("kill at a write", "kill at a time", "signal", "equal", "different", "failed", "hung")
        lines = ["| command | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        total: collections.Counter[str] = collections.Counter()
        for name, counts in self.counts.items():
            total.update(counts)
            lines.append(f"| {name} | " + " | ".join(str(counts[c]) for c in columns) + " |")
        lines.append("| all | " + " | ".join(str(total[c]) for c in columns) + " |")
        kinds = columns[:3]
        lines += ["", "| phase | " + " | ".join(kinds) + " | signal to end: median | longest |", "|---" * 6 + "|"]
        for phase, ended in sorted(self.phases.items()):
            found = sorted(self.latencies[phase])
            times = f"{found[len(found) // 2]:.2f} s | {found[-1]:.2f} s" if found else "| "
            lines.append(f"| {phase} | " + " | ".join(str(ended[k]) for k in kinds) + f" | {times} |")
        return "\n".join(lines)


def prepare(scenario: Scenario, work: Path) -> tuple[Path, str, int, float]:
    """The directory before the command, the digest and the counted writes of an undisturbed command, its seconds."""
    base = work / "base"
    base.mkdir(parents=True)
    if scenario.gguf:
        sys.path.insert(0, str(ROOT / "plugins/smollm3-gguf/tests"))
        import tiny_gguf

        tiny_gguf.write(base / "tiny.gguf")
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


def attempt(
    scenario: Scenario, made: tuple[Path, str, int, float], rng: random.Random, table: Table, work: Path
) -> None:
    """One trial."""
    base, expected, writes, seconds = made
    directory = work / "trial"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(base, directory)
    kind = rng.choice(("kill at a write", "kill at a write", "kill at a time", "signal"))
    counts, deadline = table.counts[scenario.name], 2 * HANG
    at, number, call = None, 0, 0
    if kind == "kill at a write":
        call = rng.randint(1, writes)
        ended = wait(start(directory, scenario.command, call), directory, deadline)
    else:
        at = rng.uniform(0, 1.05 * seconds)
        number = int(signal.SIGKILL if kind == "kill at a time" else rng.choice(SIGNALS))
        ended = wait(start(directory, scenario.command), directory, deadline, at, number)
    if ended.code == 0:  # it was not disturbed
        attempt(scenario, made, rng, table, work)
        return
    counts[kind] += 1
    table.phases[ended.phase or phase_of(directory.parent / f"{directory.name}.err")][kind] += 1
    wrong = []
    if kind == "signal" and ended.latency is not None:
        table.latencies[ended.phase].append(ended.latency)
        if ended.code not in (128 + number, -number):  # -number: before the handlers are installed
            wrong.append(f"exit code {ended.code} for signal {number}")
    if "unexpected" in ended.stderr or "Traceback" in ended.stderr:
        wrong.append("unexpected error")
    if not scenario.completed(directory):
        first = ended
        ended = wait(start(directory, scenario.again()), directory, HANG)
        if ended.code is None:
            counts["hung"] += 1
            wrong.append("hung")
        elif ended.code != 0:
            counts["failed"] += 1
            wrong.append(f"the next command ended with {ended.code}; before: {first.stderr[-300:]}")
    if not wrong or ended.code == 0:
        equal = digest(directory, scenario.results) == expected
        counts["equal" if equal else "different"] += 1
        if not equal:
            wrong.append("other files")
        left = [str(p) for p in directory.rglob(".partial*")]
        if left:
            wrong.append(f"leftovers: {left}")
    if wrong:
        kept = work.parent / "failures" / f"{os.getpid()}-{len(table.failures)}"
        shutil.copytree(directory, kept)
        about = {"scenario": scenario.name, "kind": kind, "at": at, "number": number, "call": call, "wrong": wrong}
        table.failures.append({**about, "stderr": ended.stderr[-1500:], "directory": str(kept)})


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
    from smollm3_finetune.train import loop, run

    assert loop and run and merging
    discover(PluginSelection.of(()))
    assert transformers.Trainer and transformers.SmolLM3ForCausalLM and transformers.AutoTokenizer


def worker(options: argparse.Namespace, work: Path) -> None:
    """The trials of one process; prints its table as JSON."""
    import_everything()
    rng, table = random.Random(options.seed), Table()
    chosen = [s for s in scenarios() if not options.only or any(word in s.name for word in options.only)]
    made = {}
    for number, scenario in enumerate(chosen):
        (work / str(number)).mkdir(parents=True)
        made[scenario.name] = prepare(scenario, work / str(number))
    ends = time.monotonic() + options.minutes * 60
    for trial in range(options.trials):
        if time.monotonic() > ends:
            break
        scenario = chosen[trial % len(chosen)]
        attempt(scenario, made[scenario.name], rng, table, work)
        if trial % 10 == 9:
            (work / "table.json").write_text(json.dumps(table.as_dict()))
            print(f"{trial + 1} trials, {len(table.failures)} failures", file=sys.stderr, flush=True)
    (work / "table.json").write_text(json.dumps(table.as_dict()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=600, help="no trial begins after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="commands whose name contains one of these words")
    parser.add_argument("--keep", type=Path, help="keep the directories of failures here")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options, options.worker)
        return 0
    table = Table()
    with tempfile.TemporaryDirectory(prefix="smollm3-kills-") as name:
        root = Path(name).resolve()
        share = -(-options.trials // options.jobs)
        only = ("--only", *options.only) if options.only else ()
        running = []
        for job in range(options.jobs):
            work = root / f"job-{job}"
            work.mkdir()
            (work / "counter").write_bytes(bytes(8))
            env = {
                **os.environ, "LD_PRELOAD": str(shim()), "FAULT_DIR": str(root), "OMP_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0", "FAULT_COUNTER": str(work / "counter"),
            }  # fmt: skip
            arguments = ("--trials", str(share), "--minutes", str(options.minutes), "--seed", str(options.seed + job))
            command = [sys.executable, __file__, *arguments, "--worker", str(work), *only]
            running.append((subprocess.Popen(command, env=env), work))
        codes = [process.wait() for process, _ in running]
        for _, work in running:
            if (work / "table.json").exists():
                table.merge(json.loads((work / "table.json").read_text()))
        if options.keep and table.failures:
            for work in (w for _, w in running):
                if (work.parent / "failures").exists():
                    shutil.copytree(work.parent / "failures", options.keep, dirs_exist_ok=True)
    print(table.shown())
    for failure in table.failures:
        print(json.dumps(failure, indent=2), file=sys.stderr)
    return int(bool(table.failures) or any(codes))


if __name__ == "__main__":
    sys.exit(main())
