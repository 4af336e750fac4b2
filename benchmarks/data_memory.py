"""Memory and time of the data path for several numbers of rows: shuffled, with a cold cache, over all processes.

    python benchmarks/data_memory.py [--rows 10000 100000 1000000] [--json results.json]

For each size, a separate process tokenizes a file of rows of varied length with the tokenizer of the embedded model
into an empty cache, and then reads the rows once in shuffled order. Memory is the peak anonymous memory of the process
and its children, sampled every 50 ms. Memory-mapped files are not included, because their pages can be dropped at any
time; imports are included. Processor time is reported in addition to wall-clock time, because other programs affect it
less; the times per row and per token are processor time.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

WORDS = [
    "a",
    "small",
    "bird",
    "sat",
    "on",
    "the",
    "old",
    "wall",
    "and",
    "sang",
    "to",
    "the",
    "slow",
    "river",
    "about",
    "the",
    "long",
    "way",
    "to",
    "the",
    "sea",
]


def write_rows(file: Path, count: int) -> None:
    """Write rows whose lengths have a heavy tail: most are short, some fifty times as long."""
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        for n in range(count):
            length = min(int(4 * draw.paretovariate(1.2)), 200)
            answer = " ".join(draw.choice(WORDS) for _ in range(length))
            stream.write(json.dumps({"instruction": f"Tell story {n}.", "output": answer}) + "\n")


def work(file: Path, cache: Path) -> None:
    """Do what `smollm3 train` does with rows: survey, tokenize, then read every example in the Trainer's order."""
    from torch.utils.data import DataLoader

    from smollm3_finetune.api import NoOptions
    from smollm3_finetune.batching.order import Shuffled
    from smollm3_finetune.builtin.sft import SupervisedFineTuning
    from smollm3_finetune.cache.store import Cache
    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.components.kinds import LOADER, OBJECTIVE
    from smollm3_finetune.components.selection import choose
    from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
    from smollm3_finetune.data.rows import Rows, with_formatter
    from smollm3_finetune.data.sources import find_sources
    from smollm3_finetune.data.tokenization import tokenize
    from smollm3_finetune.progress import Silent
    from smollm3_finetune.testing import context

    registry = discover(PluginSelection.of([], no_plugins=True))
    tokenizer = choose(registry, LOADER, "tiny", {}).create().open("tiny", context(cache)).tokenizer()
    began, began_cpu = time.perf_counter(), time.process_time()
    sources = tuple(with_formatter(registry, s, None, None) for s in find_sources(str(file)))
    rows = Rows(sources=sources, seed=0, held_out=0.01)
    objective = choose(registry, OBJECTIVE, "sft", {})
    survey = rows.survey()
    tokens = tokenize(rows, survey, objective, Renderer(tokenizer, RenderOptions()), 512, Cache(cache), Silent())
    prepared, prepared_cpu = time.perf_counter(), time.process_time()
    collate = SupervisedFineTuning(NoOptions()).flat_collator(tokenizer)
    order = Shuffled(len(tokens.train), seed=0)
    loader: Any = DataLoader(tokens.train, batch_size=32, sampler=order, collate_fn=collate)  # type: ignore[arg-type]
    seen = sum(batch["input_ids"].numel() for batch in loader)
    seconds = {
        "prepare_s": prepared - began,
        "cpu_s": prepared_cpu - began_cpu,
        "read_s": time.perf_counter() - prepared,
        "read_cpu_s": time.process_time() - prepared_cpu,
    }
    print(json.dumps({**seconds, "tokens": seen}))


def anonymous(process: psutil.Process) -> int:
    """Bytes of anonymous memory of a process and its children."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
            total += 1024 * int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Anonymous:")))
        except (OSError, StopIteration):
            continue
    return total


def measure(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rows.jsonl"
        write_rows(file, count)
        command = [sys.executable, __file__, "--work", str(file), str(Path(directory) / "cache")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        watched = psutil.Process(process.pid)
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous(watched))
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(process.returncode)
        assert process.stdout is not None
        figures: dict[str, Any] = json.loads(process.stdout.read().splitlines()[-1])
    return {"rows": count, "peak_mb": peak / 1e6, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--work", type=Path, nargs=2, metavar=("FILE", "CACHE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(*args.work)
        return
    results = [measure(count) for count in args.rows]
    heads = ["rows", "tokens", "peak anonymous memory, MB", "ratio", "preparing, s", "CPU-s", "CPU-ms per 1000 rows"]
    heads += ["reading, s", "CPU-µs per token"]
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for r in results:
        each = 1e6 * r["cpu_s"] / r["rows"]
        print(
            f"| {r['rows']} | {r['tokens']} | {r['peak_mb']:.0f} | {r['peak_mb'] / results[0]['peak_mb']:.2f} "
            f"| {r['prepare_s']:.1f} | {r['cpu_s']:.1f} | {each:.0f} | {r['read_s']:.1f} "
            f"| {1e6 * r['read_cpu_s'] / r['tokens']:.2f} |"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
