"""Compares the memory that `smollm3 plan` predicts with the memory that runs take, for many configurations on a CPU.

    nox -s memory_plan -- --smollm2 DIR                     measure the configurations that have no result
    python benchmarks/memory_plan.py --smollm2 DIR --minutes 30     stop then; the next call continues
    python benchmarks/memory_plan.py --smollm2 DIR --only "tiny none"
    python benchmarks/memory_plan.py --predict              predict again, without measuring
    python benchmarks/memory_plan.py --write                only write the table of docs/memory.md

Each configuration takes a few optimizer steps in a process of its own, in which every batch is the longest one. The
anonymous memory of that process is sampled every 10 ms; the floor is its memory after all imports, before the model is
opened. Of training itself the exact peak is known too, because the kernel keeps it. The row in
benchmarks/results/memory-plan.json has the larger one. Predictions are made in other processes.

`--later N --seed S` adds N configurations at random, which are marked: they are chosen after the planner was frozen.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from memory_plan_cells import QUANTIZERS, Cell, all_cells, chosen, cost, is_quick, long_cells, write_shaped_model
from memory_plan_page import error_of, write_page

from smollm3_finetune.components.requirements import installed_version

RESULTS = Path(__file__).parent / "results" / "memory-plan.json"
WORK = Path(__file__).with_name("memory_plan_work.py")
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "hqq", "torchao", "gptqmodel")
PLANNER = importlib.util.find_spec("smollm3_finetune.memory")
FIRST, FIRST_SEED = 46, 1
"""The configurations that were measured while the planner was built."""
MOST_LATER = 2048
"""The most tokens of a batch of the configurations that are added later."""
PREDICTS = "predictions"
IMPORTED = (
    "smollm3_finetune.memory.estimate", "smollm3_finetune.memory.step", "smollm3_finetune.memory.reduce",
    "smollm3_finetune.memory.quantized", "torch._subclasses.fake_tensor", "peft",
    "transformers.models.smollm3.modeling_smollm3", "transformers.models.llama.modeling_llama",
)  # fmt: skip
"""Modules that predictions import, imported once."""
EVERY = 0.01
"""Seconds between samples."""
PAGE = os.sysconf("SC_PAGE_SIZE")


class Machine:
    """Where the models are, and the process from which those of the configurations are forked."""

    def __init__(self, work: Path, smollm2: Path | None) -> None:
        self.work = work
        self.models = {"tiny": "tiny", "smollm3-shaped": str(write_shaped_model(work / "smollm3-shaped"))}
        if smollm2 is not None:
            self.models["smollm2"] = str(smollm2.resolve())
        self.env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "SMOLLM3_CACHE": str(work / "cache")}
        self.quant: str | None = None
        self.server: subprocess.Popen[str] | None = None
        self.names: set[str] = set()
        self.added: dict[str, int] = {}
        """By model, the tokens that a row has beside its text."""

    def start(self, quant: str) -> None:
        """Start the server for configurations of a quantizer, unless it runs."""
        if self.server is not None and self.quant == quant:
            return
        self.stop()
        with (self.work / "errors.txt").open("w") as errors:
            self.server = subprocess.Popen(
                [sys.executable, str(WORK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True, env=self.env, start_new_session=True,
            )  # fmt: skip
        self.quant, self.names = quant, set()

    def stop(self) -> None:
        if self.server is not None and self.server.stdin is not None:
            self.server.stdin.close()
            self.server.wait()
            self.server = None

    def send(self, value: Any) -> None:
        assert self.server is not None and self.server.stdin is not None
        self.server.stdin.write(json.dumps(value) + "\n")
        self.server.stdin.flush()

    def events(self) -> Iterator[dict[str, Any]]:
        """What the server and the process of one configuration print, until that process ends."""
        assert self.server is not None and self.server.stdout is not None
        error = ""
        for line in self.server.stdout:
            event = json.loads(line)
            if "exit" in event:
                if event["exit"]:
                    raise RuntimeError(error or f"exit code {event['exit']}")
                return
            error = event.get("error", error)
            yield event
        raise RuntimeError("the process from which others are forked has ended")

    def ask(self, what: str, cell: Cell) -> Iterator[dict[str, Any]]:
        """Start the process of a configuration. Yields what it prints."""
        directory = self.work / "cell"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        about = {"cell": cell.as_json(), "model": self.models[cell.model], "work": str(directory), "nice": 15}
        about["added"] = self.added.get(cell.model, 0)
        self.send({"what": what, **about})
        yield from self.events()

    def prepare(self, cell: Cell) -> None:
        """Start the server, and make it import the modules that runs of the configuration import."""
        self.start(cell.quant)
        names = set(self.modules("tiny", cell.quant, cell.adapter)) | set(self.modules(cell.model, "none", "lora"))
        if not names <= self.names:
            self.send({"import": sorted(names - self.names)})
            self.names |= names

    def modules(self, model: str, quant: str, adapter: str) -> list[str]:
        """The modules that runs with these components import, which a short run names."""
        kept = self.work / f"modules-{model}-{quant}-{adapter}.json"
        if not kept.is_file():
            short = Cell(
                model=model, quant=quant, adapter=adapter, length=64, batch=1, checkpointing=False, packing=False
            )
            found = [event for event in self.ask("modules", short) if "modules" in event]
            kept.write_text(json.dumps(found[0]))
        about = json.loads(kept.read_text())
        self.added[model] = about["added"]
        names: list[str] = about["modules"]
        return names


def measured(machine: Machine, cell: Cell) -> dict[str, Any]:
    """The memory of one configuration, in bytes above the floor."""
    machine.prepare(cell)
    samples: list[tuple[float, int]] = []
    ended = threading.Event()

    def sample(file: Path) -> None:
        while not ended.is_set():
            try:
                _, resident, shared, *_ = file.read_text().split()
            except (OSError, ValueError):
                return
            samples.append((time.monotonic(), PAGE * (int(resident) - int(shared))))
            time.sleep(EVERY)

    threads, events = [], {}
    try:
        for event in machine.ask("run", cell):
            if "pid" in event:
                threads.append(threading.Thread(target=sample, args=(Path(f"/proc/{event['pid']}/statm"),)))
                threads[0].start()
            if "phase" in event:
                events[event["phase"]] = event
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    floor, began = events["loading"]["anonymous"], events["loading"]["time"]
    trains, after = events["training"]["time"], events["after"]["time"]

    def highest(start: float, end: float) -> int:
        return max((size for at, size in samples if start <= at <= end), default=floor) - floor

    tokens = events["end"]["tokens"]
    if tokens != cell.tokens * events["after"]["steps"]:
        raise RuntimeError(f"{tokens} tokens in {events['after']['steps']} steps of {cell.tokens}")
    figures = {
        "loading": highest(began, trains),
        "loaded": events["training"]["anonymous"] - floor,
        "training": events["after"]["high"] - floor,
        "training_sampled": highest(trains, after),
        "afterwards": highest(after, events["end"]["time"]),
    }
    return {
        **figures,
        "measured": max(figures.values()),
        "floor": floor,
        "seconds": round(events["end"]["time"] - began, 1),
        "batches": events["end"]["batches"],
    }


def predicted(machine: Machine, cell: Cell) -> dict[str, Any]:
    """The prediction for one configuration."""
    if machine.quant != PREDICTS:
        machine.start(PREDICTS)
        machine.send({"import": IMPORTED})
    found = [event for event in machine.ask("predict", cell) if "peak" in event]
    return {name: value for name, value in found[0].items() if name != "time"}


def machine_words() -> dict[str, Any]:
    """The machine and the versions that the results depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    found = {name: installed_version(name) for name in LIBRARIES}
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "versions": {name: version for name, version in found.items() if version},
    }


def read(file: Path) -> dict[str, Any]:
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    return {"machine": machine_words(), "rows": []}


def write(results: dict[str, Any], file: Path) -> None:
    """Write the results, a line for each configuration."""
    rows = ",\n  ".join(json.dumps(row) for row in results["rows"])
    head = json.dumps({name: value for name, value in results.items() if name != "rows"}, indent=1)[1:-2]
    partial = file.with_suffix(".partial")
    partial.write_text(f'{{{head},\n "rows": [\n  {rows}\n ]\n}}\n', encoding="utf-8")
    partial.replace(file)


def cells_of(results: dict[str, Any]) -> list[tuple[Cell, bool]]:
    """The configurations, and whether each was chosen after the planner was frozen."""
    first = [cell for cell in chosen(FIRST, FIRST_SEED, all_cells()) if is_quick(cell)]
    later = [Cell(**about) for about in results.get("later", {}).get("cells", ())]
    return [*((cell, False) for cell in (*first, *long_cells())), *((cell, True) for cell in later)]


def choose_later(results: dict[str, Any], count: int, seed: int, commit: str) -> None:
    """Choose configurations at random that were not measured before, and keep them in the results."""
    without = [cell for cell, _ in cells_of(results)]
    without += [Cell(**{f.name: row[f.name] for f in fields(Cell)}) for row in results["rows"]]
    cells = [cell for cell in all_cells() if is_quick(cell) and cell.tokens <= MOST_LATER]
    found = [cell.as_json() for cell in chosen(count, seed, cells, without)]
    results["later"] = {"planner": commit, "seed": seed, "cells": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=Path, metavar="DIR", help="SmolLM2-135M as transformers writes it")
    parser.add_argument("--only", action="append", help="configurations whose name contains this")
    parser.add_argument("--minutes", type=float, help="start no configuration after this time")
    parser.add_argument("--most", type=float, help="the most tokens of a batch")
    parser.add_argument("--again", action="store_true", help="measure configurations that have a result again")
    parser.add_argument("--predict", action="store_true", help="predict again, and measure nothing")
    parser.add_argument("--later", type=int, metavar="N", help="add N configurations at random, marked")
    parser.add_argument("--seed", type=int, default=2, help="of --later")
    parser.add_argument("--commit", default="", help="of the frozen planner, for --later")
    parser.add_argument("--write", action="store_true", help="only write the table of docs/memory.md")
    parser.add_argument("--work", type=Path, help="directory for the caches; default: a temporary one")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    results = read(args.results)
    if args.write:
        write_page(results)
        return
    if args.later:
        choose_later(results, args.later, args.seed, args.commit)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        machine = Machine(work, args.smollm2)
        try:
            if not args.predict:
                measure(results, args, machine)
            if PLANNER is not None:
                predict(results, args, machine)
        finally:
            machine.stop()
    write_page(results)


def order(cell: Cell) -> tuple[bool, bool, int, float]:
    """SmolLM2 last, and long batches before it; then those of one quantizer together, the quickest first."""
    return cell.model == "smollm2", cell.tokens > 2048, QUANTIZERS.index(cell.quant), cost(cell)


def measure(results: dict[str, Any], args: argparse.Namespace, machine: Machine) -> None:
    """Measure the configurations that have no result."""
    began = time.monotonic()
    known = {row["key"]: row for row in results["rows"]}
    for cell, later in sorted(cells_of(results), key=lambda item: order(item[0])):
        if args.minutes is not None and time.monotonic() - began > 60 * args.minutes:
            break
        if not asked(args, machine, cell) or (cell.key in known and not args.again):
            continue
        try:
            row = {"key": cell.key, **cell.as_json(), "later": later, **measured(machine, cell)}
        except RuntimeError as e:
            print(f"{cell.key}: {e}", file=sys.stderr, flush=True)
            continue
        known[cell.key] = {**row, "date": datetime.date.today().isoformat()}
        results["rows"] = list(known.values())
        write(results, args.results)
        print(f"{cell.key}: {row['measured'] / 1e6:.1f} MB in {row['seconds']} s", flush=True)


def predict(results: dict[str, Any], args: argparse.Namespace, machine: Machine) -> None:
    """Predict the configurations that have been measured."""
    for row in results["rows"]:
        cell = Cell(**{f.name: row[f.name] for f in fields(Cell)})
        if not asked(args, machine, cell) or ("predicted" in row and not args.predict):
            continue
        try:
            row["predicted"] = predicted(machine, cell)
        except RuntimeError as e:
            print(f"{cell.key}: no prediction: {e}", file=sys.stderr, flush=True)
            continue
        write(results, args.results)
        error = error_of(row)
        about = (
            row["predicted"]["unknown"] if error is None else f"{row['predicted']['peak'] / 1e6:.1f} MB ({error:+.1%})"
        )
        print(f"{cell.key}: {row['measured'] / 1e6:.1f} MB, predicted {about}", flush=True)


def asked(args: argparse.Namespace, machine: Machine, cell: Cell) -> bool:
    """Whether the command line asks for a configuration."""
    named = not args.only or any(part in cell.key for part in args.only)
    return named and cell.model in machine.models and (args.most is None or cell.tokens <= args.most)


if __name__ == "__main__":
    main()
