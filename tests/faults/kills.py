"""Ends commands at random moments, runs them again, and compares the result with that of an undisturbed command.

    python tests/faults/kills.py --trials 1000 --seed 0 --jobs 2

Each trial ends a command with `kill -9` at a counted write below its directory, with `kill -9` at a random time, or
with a signal at a random time. The next command must complete, and the final files must equal those of an undisturbed
run bit for bit. Commands run in forks of one process that has imported everything, so that a trial takes a few seconds.
Each command gets the same time, so that a quick one is ended more often.
The counted writes need `shim.c`, preloaded; `faults.py` builds it.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from faults import shim
from forks import HANG, Scenario, digest, import_everything, phase_of, prepare, scenarios, start, wait

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


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


def attempt(
    scenario: Scenario, made: tuple[Path, str, int, float], rng: random.Random, table: Table, work: Path
) -> None:
    """One trial."""
    base, expected, writes, seconds = made
    directory = work / "trial"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(base, directory)
    kind = rng.choice(("kill at a write", "kill at a write", "kill at a time", "signal"))
    counts, patience = table.counts[scenario.name], max(HANG, 5 * seconds)
    deadline = 2 * patience
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
    phase = ended.phase or phase_of(directory.parent / f"{directory.name}.err")
    phase = "merging" if scenario.command[0] == "merge" else phase  # it prints nothing before its result
    table.phases[phase][kind] += 1
    wrong, first = [], ended.stderr
    if kind == "signal" and ended.latency is not None:
        table.latencies[phase].append(ended.latency)
        if ended.code not in (128 + number, -number):  # -number: before the handlers are installed
            wrong.append(f"exit code {ended.code} for signal {number}")
    if "unexpected" in ended.stderr or "Traceback" in ended.stderr:
        wrong.append("unexpected error")
    if not scenario.completed(directory):
        ended = wait(start(directory, scenario.again(directory)), directory, patience)
        if ended.code is None:
            counts["hung"] += 1
            wrong.append("hung")
        elif ended.code != 0:
            counts["failed"] += 1
            wrong.append(f"the next command ended with {ended.code}; before: {first[-300:]}")
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
        table.failures.append({**about, "first": first[-1500:], "stderr": ended.stderr[-1500:], "directory": str(kept)})


def worker(options: argparse.Namespace, work: Path) -> None:
    """The trials of one process; prints its table as JSON."""
    import_everything()
    rng, table = random.Random(options.seed), Table()
    chosen = [s for s in scenarios() if not options.only or any(word in s.name for word in options.only)]
    job, jobs = options.share
    chosen = chosen[job::jobs] or chosen
    made = {}
    for number, scenario in enumerate(chosen):
        (work / str(number)).mkdir(parents=True)
        made[scenario.name] = prepare(scenario, work / str(number))
    ends = time.monotonic() + options.minutes * 60
    spent = dict.fromkeys((s.name for s in chosen), 0.0)
    for trial in range(options.trials):
        began = time.monotonic()
        if began > ends:
            break
        scenario = min(chosen, key=lambda s: spent[s.name])  # the same time for each command
        attempt(scenario, made[scenario.name], rng, table, work)
        spent[scenario.name] += time.monotonic() - began
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
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help=argparse.SUPPRESS)
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
            mine = ("--worker", str(work), "--share", str(job), str(options.jobs))
            command = [sys.executable, __file__, *arguments, *mine, *only]
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
