"""Whether `dpo` and `apo-zero` learn a public preference set: the held-out accuracy of SmolLM2-135M, with its interval.

    nox -s preference_held_out -- --data dpo_en_demo.json [--write]
    nox -s preference_held_out -- --data dpo_en_demo.json --tokens [--write]

Trains LoRA of rank 16 with each objective on the dense base, on bnb-4bit and on gptq, in float32 on a CPU, one pass or
less over the pairs that are not held out. The preference set is https://github.com/hiyouga/LLaMA-Factory,
data/dpo_en_demo.json (300 pairs, Apache-2.0), which is not downloaded; without `--data`, the pairs are made of
alpaca_en_demo.json in $SMOLLM3_TEST_DATA: an answer, and its first half. The model is that of real_model.py, or the
directory `--model`.

`--tokens` instead counts the tokens of each pair with the prompt computed once and computed with each answer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from preference import title
from real_model import rows
from speed import dense_model
from speed_peers.job import chat

RESULTS = Path(__file__).parent / "results" / "held-out-preferences.json"
PAGE = Path(__file__).parents[1] / "docs" / "preferences.md"
BEGIN, END = "<!-- measured from here: nox -s preference_held_out -->\n", "<!-- measured to here -->\n"
OBJECTIVES = ("dpo", "apo-zero")
QUANTIZERS = ("none", "bnb-4bit", "gptq")
MEASURES = ("accuracy", "margin", "chosen_reward", "rejected_reward")
SOURCES = {
    "dpo_en_demo.json": "[`dpo_en_demo.json`](https://github.com/hiyouga/LLaMA-Factory/blob/main/data/dpo_en_demo.json)"
    " of LLaMA-Factory",
    "pairs.jsonl": "made of `alpaca_en_demo.json`: an answer of 20 to 60 words, and as the rejected one its first half",
}


def train(
    args: argparse.Namespace, model: Path, data: Path, objective: str, quant: str, output: Path
) -> dict[str, Any]:
    """The report of a run in a child process."""
    command = [
        *(sys.executable, "-m", "smollm3_finetune.main", "train", "--json", "--model", str(model), "--quant", quant),
        *("--adapter", "lora", "--adapter-opt", "rank=16", "--objective", objective, "--data", str(data)),
        *("--objective-opt", f"beta={args.beta}", "--learning-rate", str(args.rate), "--batch-size", str(args.batch)),
        *("--max-steps", str(args.steps), "--max-length", str(args.max_length), "--dtype", "float32"),
        *("--device", "cpu", "--set", f"data.held_out={args.held_out}", "--set", "train.sample_tokens=1"),
        *("--set", f"train.gradient_accumulation={args.accumulation}", "--set", "train.report=false"),
        *("--set", "calibration.rows=32", "--output", str(output)),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def binomial(successes: int, count: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson, Biometrika 26, 1934)."""

    def at_most(successes: int, share: float) -> float:
        return math.fsum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(successes + 1))

    def share_at(successes: int, probability: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):  # `at_most` falls with the share
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(successes, middle) > probability else (low, middle)
        return low

    tail = 0.025
    return (
        0.0 if successes == 0 else share_at(successes - 1, 1 - tail),
        1.0 if successes == count else share_at(successes, tail),
    )


def exact(accuracy: Mapping[str, Any]) -> tuple[float, float] | None:
    """The exact interval of the accuracy after training; None if a margin is 0, which counts half."""
    successes = accuracy["after"]["mean"] * accuracy["rows"]
    return binomial(round(successes), accuracy["rows"]) if abs(successes - round(successes)) < 1e-6 else None


def verdict(accuracy: Mapping[str, Any]) -> str:
    """Of a difference of the accuracy: a higher one is better.

    If nearly all pairs are alike, resampling gives no interval. The accuracy before is 0.5, so the exact interval of
    the share after is compared with it.
    """
    low, high = accuracy["difference"]["low"], accuracy["difference"]["high"]
    if low is None:
        share = exact(accuracy) or (0.0, 1.0)
        low, high = (limit - accuracy["before"]["mean"] for limit in share)
    return "better" if low > 0 else "worse" if high < 0 else "cannot tell"


def cell(report: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What is kept of a report."""
    found = {name: report["measures"][name] for name in MEASURES}
    return {
        "measures": found,
        "loss": {k: report["comparison"][k] for k in ("before", "after", "difference", "low", "high", "verdict")},
        "steps": report["steps"],
        "seconds": round(seconds),
    }


def table(cells: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "| objective | base | held-out pairs | accuracy before | after (exact interval) | difference | margin after "
        "| verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in cells.items():
        objective, quant = name.split("/")
        accuracy, margin = one["measures"]["accuracy"], one["measures"]["margin"]
        lines.append(
            f"| `{objective}` | `{quant}` | {accuracy['rows']} | {accuracy['before']['mean']:.3f} "
            f"| {accuracy['after']['mean']:.3f}{_exact(accuracy)} | {_change(accuracy['difference'])} "
            f"| {margin['after']['mean']:+.3f} ± {_half(margin['after']):.3f} | {verdict(accuracy)} |"
        )
    return "\n".join(lines)


def _exact(accuracy: Mapping[str, Any]) -> str:
    share = exact(accuracy)
    return "" if share is None else f" ({share[0]:.3f} to {share[1]:.3f})"


def _half(of: Mapping[str, float]) -> float:
    return (of["high"] - of["low"]) / 2


def _change(of: Mapping[str, Any]) -> str:
    half = "" if of["low"] is None else f" ± {_half(of):.3f}"
    return f"{of['mean']:+.3f}{half}"


def tokens(model: Path, data: Path, max_length: int) -> dict[str, Any]:
    """The tokens of a mean pair of a file, as `smollm3 data stats` counts them."""
    command = (
        *(sys.executable, "-m", "smollm3_finetune.main", "data", "stats", "--json", "--objective", "dpo"),
        *("--model", str(model), "--data", str(data), "--max-length", str(max_length)),
    )
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    (source,) = json.loads(done.stdout)["sources"]
    parts = {name: about["mean"] for name, about in source["parts"].items()}
    shared = sum(parts.values())
    return {
        "max_length": max_length,
        "rows": source["rows"],
        "pairs": source["rows"] - source["empty"],
        "cut": source["cut"],
        "parts": parts,
        "separate": shared + parts["prompt"],
        "shared": shared,
    }


def tokens_table(counts: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| `data.max_length` | pairs | prompt | chosen | rejected | tokens, prompt twice | prompt once | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in counts:
        parts = " | ".join(f"{one['parts'][name]:.0f}" for name in ("prompt", "chosen", "rejected"))
        lines.append(
            f"| {one['max_length']} | {one['pairs']} | {parts} | {one['separate']:.0f} | {one['shared']:.0f} "
            f"| {one['shared'] / one['separate']:.2f} |"
        )
    return "\n".join(lines)


def page(stored: Mapping[str, Any]) -> str:
    """The section of docs/preferences.md."""
    parts = [section(one) for one in stored["sets"].values()]
    if stored.get("tokens"):
        source, model = SOURCES[stored["tokens"]["file"]], stored["tokens"]["model"]
        counted = tokens_table(stored["tokens"]["lengths"])
        parts.append(f"Mean tokens of a pair of {source}, with the tokenizer of {model} (`--tokens`):\n\n{counted}\n")
    return "\n".join(parts)


def section(about: Mapping[str, Any]) -> str:
    """The runs on one set of pairs."""
    job = about["job"]
    better = sum(verdict(one["measures"]["accuracy"]) == "better" for one in about["cells"].values())
    return (
        f"`nox -s preference_held_out`: {about['model']} in float32 on a CPU, LoRA of rank 16, beta {job['beta']:g}, "
        f"learning rate {job['rate']:g}, {job['steps']} steps of {job['batch'] * job['accumulation']} pairs. The rows "
        f"are {SOURCES[about['file']]}; `data.held_out` is {job['held_out']:g}. At most {job['max_length']} tokens of "
        "an answer with its prompt are used; pairs with a longer prompt are left out. Before training, every margin is "
        f"0, so the accuracy is 0.5 ({about['date']}, torch {about['versions']['torch']}).\n\n"
        f"{table(about['cells'])}\n\nThe accuracy rose, with an interval that excludes 0.5, in "
        f"{better} of {counted_runs(len(about['cells']))}.{about.get('note', '')}\n"
    )


def counted_runs(runs: int) -> str:
    return f"{runs} run{'' if runs == 1 else 's'}"


def write_page(about: Mapping[str, Any]) -> None:
    """Fill the region of docs/preferences.md. Raises ValueError if the page has no such region."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    if not begin:
        raise ValueError(f"{PAGE} has no line {BEGIN.strip()}")
    PAGE.write_text(f"{before}{BEGIN}{page(about)}{END}{rest.partition(END)[2]}", encoding="utf-8")


def save(about: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    write_page(about)


def made_pairs(directory: Path, count: int) -> Path | None:
    """A file of pairs made of the alpaca rows: an answer, and its first half."""
    alpaca = rows()
    if alpaca is None:
        return None
    found: list[dict[str, Any]] = []
    for row in json.loads(alpaca.read_text(encoding="utf-8")):
        question, answer = chat(row)["messages"]
        words = answer["content"].split(" ")
        if 20 <= len(words) <= 60 and len(found) < count:
            half = {**answer, "content": " ".join(words[: len(words) // 2])}
            found.append({"prompt": [question], "chosen": [answer], "rejected": [half]})
    file = directory / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in found), encoding="utf-8")
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a file with pairs; default: pairs made of alpaca_en_demo.json")
    parser.add_argument("--pairs", type=int, default=200, help="how many are made without --data")
    parser.add_argument("--model", type=Path, help="a directory with weights and tokenizer; default: SmolLM2-135M")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--quants", nargs="+", choices=QUANTIZERS, default=QUANTIZERS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4, help="pairs per forward pass")
    parser.add_argument("--accumulation", type=int, default=2, help="forward passes per step")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of an answer with its prompt")
    parser.add_argument("--held-out", type=float, default=0.5, help="fraction of the rows")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="OMP_NUM_THREADS of the runs")
    parser.add_argument("--tokens", type=int, nargs="*", metavar="LENGTH", help="only count tokens, with these lengths")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} and {PAGE.name}")
    parser.add_argument("--page", action="store_true", help=f"only write {PAGE.name} from {RESULTS.name}")
    args = parser.parse_args()
    if args.page:
        write_page(stored())
        return 0
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        model, data = args.model or dense_model(), args.data or made_pairs(Path(folder), args.pairs)
        if data is None or model is None:
            print("skipped: needs the wheel of the model, and --data or alpaca_en_demo.json in $SMOLLM3_TEST_DATA")
            return 0
        if args.tokens is not None:
            counts = [tokens(model, data, length) for length in args.tokens or (512, 1024, 4096)]
            print(tokens_table(counts))
            if args.write:
                save({**stored(), "tokens": {"file": data.name, "model": title(model), "lengths": counts}})
            return 0
        return measure(args, model, data, Path(folder))


def stored() -> dict[str, Any]:
    """The results of earlier commands: `sets`, by the name of their file, and `tokens`."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"sets": {}}
    return found


def add(about: Mapping[str, Any], cells: Mapping[str, Any]) -> None:
    """Store cells beside those of earlier commands with the same rows and settings, and write the page."""
    found = stored()
    known = found["sets"].get(about["file"], {})
    same = (known.get("job"), known.get("model")) == (about["job"], about["model"])
    all_cells = {**(known["cells"] if same else {}), **cells}
    order = [f"{o}/{q}" for o in OBJECTIVES for q in QUANTIZERS]
    note = {"note": known["note"]} if same and "note" in known else {}
    found["sets"][about["file"]] = {**about, **note, "cells": {n: all_cells[n] for n in order if n in all_cells}}
    save(found)


def measure(args: argparse.Namespace, model: Path, data: Path, folder: Path) -> int:
    """Train and measure each cell; `--write` keeps the cells of other commands with the same settings."""
    names = ("steps", "batch", "accumulation", "max_length", "held_out", "rate", "beta")
    job = {name: getattr(args, name) for name in names}
    about: dict[str, Any] = {
        "model": title(model),
        "file": data.name,
        "job": job,
        "date": f"{date.today()}",
        "machine": platform.machine(),
        "threads": args.threads,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "gptqmodel")},
    }
    cells: dict[str, Any] = {}
    for quant in args.quants:
        for objective in args.objectives:
            began = time.monotonic()
            report = train(args, model, data, objective, quant, folder / f"{objective}-{quant}")
            cells[f"{objective}/{quant}"] = one = cell(report, time.monotonic() - began)
            accuracy = one["measures"]["accuracy"]
            print(f"{objective:<10} {quant:<10} accuracy {accuracy['before']['mean']:.3f} → "
                  f"{accuracy['after']['mean']:.3f} ({_change(accuracy['difference'])}, {verdict(accuracy)}) on "
                  f"{accuracy['rows']} held-out pairs, {one['seconds']} s", flush=True)  # fmt: skip
            if args.write:
                add(about, cells)
    print(f"\n{table(cells)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
