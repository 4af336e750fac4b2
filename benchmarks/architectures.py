"""Runs every causal language model of transformers, tiny and with random weights, with each way to use it.

    python benchmarks/architectures.py                        architectures without a result for these versions
    python benchmarks/architectures.py --again                all of them; takes hours
    python benchmarks/architectures.py --only gpt2 --only phi3
    python benchmarks/architectures.py --column load --column lora
    python benchmarks/architectures.py --minutes 30           stop then; the next call continues
    python benchmarks/architectures.py --page                 only write docs/architectures.md

Each architecture and column is measured in a process of its own with a time limit, gptq last. Results are written to
benchmarks/results/architectures.json after each cell, and from there to docs/architectures.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from architecture_cells import COLUMNS
from architecture_page import write_page

from smollm3_finetune.components.requirements import installed_version

RESULTS = Path(__file__).parent / "results" / "architectures.json"
CELLS = Path(__file__).with_name("architecture_cells.py")
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "hqq", "torchao", "gptqmodel")
EXITED = {-signal.SIGKILL: "the process was killed (out of memory?)"}


def model_types() -> list[str]:
    """The types of all causal language models of the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def versions() -> str:
    """The versions that a result depends on, without builds such as `+cpu`: `torch 2.13.0, transformers …`."""
    found = {name: installed_version(name) for name in LIBRARIES}
    return ", ".join(f"{name} {version.partition('+')[0]}" for name, version in found.items() if version)


def measured(kind: str, columns: list[str], work: Path, limit: float) -> dict[str, dict[str, Any]]:
    """Measure columns of one architecture in one process; a crash or a timeout is the result of its column."""
    found: dict[str, dict[str, Any]] = {}
    rest = list(columns)
    while rest:
        for column, result in _process(kind, rest, work, limit):
            found[column] = result
            rest.remove(column)
    return found


def _process(kind: str, columns: list[str], work: Path, limit: float) -> list[tuple[str, dict[str, Any]]]:
    """The results of one process: of all columns, or up to the one at which it ended."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "SMOLLM3_CACHE": str(work / "cache")}
    answers = work / "answers.jsonl"
    answers.write_text("", encoding="utf-8")
    command = [sys.executable, str(CELLS), kind, str(work), str(answers), *columns]
    log = work / "output.txt"
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            code: int | None = child.wait(limit * len(columns))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    done = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    results = [(d.pop("column"), d) for d in done]
    if len(results) < len(columns):
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        why = f"timed out after {limit:.0f} s" if code is None else EXITED.get(code, f"exit code {code}: {last}"[:300])
        results.append((columns[len(results)], {"state": "fails", "note": why}))
    return results


def write(results: dict[str, Any]) -> None:
    """Write the results, a line for each cell; an architecture that was not run has none."""
    kinds = []
    for kind, cells in sorted(results.items()):
        lines = [f"  {json.dumps(c)}: {json.dumps(cells[c], ensure_ascii=False)}" for c in COLUMNS if c in cells]
        kinds.append(
            f" {json.dumps(kind)}: {{\n" + ",\n".join(lines) + "\n }" if lines else f" {json.dumps(kind)}: {{}}"
        )
    RESULTS.write_text("{\n" + ",\n".join(kinds) + "\n}\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="TYPE", help="model_type of a config.json")
    parser.add_argument("--column", action="append", default=[], choices=COLUMNS)
    parser.add_argument("--again", action="store_true", help="also cells with a result for these versions")
    parser.add_argument("--limit", type=float, default=120.0, metavar="SECONDS", help="time limit for one cell")
    parser.add_argument("--minutes", type=float, metavar="N", help="stop after N minutes")
    parser.add_argument("--page", action="store_true", help="only write docs/architectures.md")
    arguments = parser.parse_args()
    known = model_types()
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results: dict[str, Any] = {kind: before.get(kind, {}) for kind in known}
    if unknown := sorted(set(arguments.only) - set(known)):
        parser.error(f"transformers has no causal language model of type {unknown[0]!r}")
    if not arguments.page:
        end = time.monotonic() + 60 * arguments.minutes if arguments.minutes is not None else None
        chosen = [c for c in COLUMNS if c in (arguments.column or COLUMNS)]
        now = versions()
        for columns in ([c for c in chosen if c != "gptq"], [c for c in chosen if c == "gptq"]):
            for kind in arguments.only or known:
                old = results[kind]
                fresh = arguments.again or arguments.only
                todo = [c for c in columns if fresh or old.get(c, {}).get("versions") != now]
                if not todo or (end is not None and time.monotonic() > end):
                    continue
                with tempfile.TemporaryDirectory() as work:
                    found = measured(kind, todo, Path(work), arguments.limit)
                about = {"date": datetime.date.today().isoformat(), "versions": now}
                old.update({column: {**result, **about} for column, result in found.items()})
                write(results)
                states = ", ".join(f"{column} {result['state']}" for column, result in found.items())
                print(f"{kind}: {states}", flush=True)
    write(results)
    write_page(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
