"""Perplexity of SmolLM2-135M with each quantizer, and time of `smollm3 quantize` compared with gptqmodel alone.

    nox -s quantizers [-- --rows 16 --length 256 --pairs 3 --json results.json]

The text is `c4_demo.jsonl` in the directory $SMOLLM3_TEST_DATA; the last rows of the file are held out. Perplexity is
exp of the mean negative log-likelihood over all tokens of the held-out rows except the first token of each row. Each
row is cut to `--length` tokens and evaluated alone; the sum is in float64. It is measured for the dense model, for GPTQ
in 4 bits calibrated on other rows of the file and on random token ids, and for bnb-4bit. The first GPTQ base is that of
`smollm3 quantize`.

Times are those of whole processes, including imports, in alternating order: `smollm3 quantize` on rows of the file, and
a script that only loads, quantizes and saves with gptqmodel on the same token ids. Processor time, over all their
processes, is reported in addition to wall-clock time, because other programs affect it less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from real_model import fetch_model

HELD_OUT = 40
"""The number of rows at the end of the file on which perplexity is measured."""

DIRECT = """
import json, os, sys
job = json.loads(open(sys.argv[1]).read())
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
from gptqmodel import GPTQModel, QuantizeConfig
model = GPTQModel.load(job["source"], QuantizeConfig(**job["options"], device="cpu"))
model.quantize([{"input_ids": r, "attention_mask": [1] * len(r)} for r in job["rows"]], batch_size=1)
model.save(job["out"])
"""


def texts() -> list[str]:
    folder = os.environ.get("SMOLLM3_TEST_DATA")
    file = Path(folder or "") / "c4_demo.jsonl"
    if not folder or not file.exists():
        sys.exit("set SMOLLM3_TEST_DATA to a directory with c4_demo.jsonl")
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def perplexity(model: Any, rows: Sequence[Sequence[int]]) -> float:
    """The exponential of the mean negative log-likelihood over all predicted tokens."""
    import torch
    from torch.nn import functional as F

    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()  # (T - 1, V)
        total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += len(row) - 1
    return math.exp(total / count)


def measured_perplexities(model: Path, rows: int, length: int) -> list[dict[str, Any]]:
    from smollm3_finetune import load_model

    every = texts()
    tokenizer = load_model(str(model)).tokenizer
    ids = [tokenizer(t, add_special_tokens=False).input_ids[:length] for t in every]
    held_out = [row for row in ids[-HELD_OUT:] if len(row) > 1]
    calibration = [row for row in ids[:-HELD_OUT] if len(row) == length][:rows]
    draw = random.Random(0)
    drawn = [[draw.randrange(len(tokenizer)) for _ in row] for row in calibration]
    cases: list[tuple[str, dict[str, Any]]] = [
        ("dense", {"quant": "none"}),
        (f"GPTQ 4 bits, calibrated on {len(calibration)} rows of text", {"quant": "gptq", "rows": calibration}),
        (f"GPTQ 4 bits, calibrated on {len(drawn)} rows of random tokens", {"quant": "gptq", "rows": drawn}),
        ("bnb-4bit (NF4)", {"quant": "bnb-4bit"}),
    ]
    results = []
    for title, case in cases:
        chosen = case.get("rows")
        calibrated = {"calibration": lambda chosen=chosen: chosen} if chosen else {}
        began = time.perf_counter()
        loaded = load_model(str(model), quant=case["quant"], dtype="float32", device="cpu", **calibrated)
        seconds = time.perf_counter() - began
        found = perplexity(loaded.model.eval(), held_out)
        results.append({"weights": title, "perplexity": found, "load_s": seconds})
        print(f"| {title} | {found:.2f} | {found / results[0]['perplexity']:.3f} |", flush=True)
    return results


def measured_times(model: Path, rows: int, length: int, pairs: int) -> dict[str, Any]:
    """Seconds of each command, in alternating order, on the same calibration rows."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        data = directory / "rows.jsonl"
        data.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts()[:-HELD_OUT]), encoding="utf-8")
        ours = [
            *(sys.executable, "-m", "smollm3_finetune.main", "quantize", str(model), "--quant", "gptq"),
            *("--data", str(data), "--max-length", str(length), "--device", "cpu"),
            *("--set", f"calibration.rows={rows}", "--set", f"calibration.length={length}"),
        ]
        job = directory / "job.json"
        ids, source = _same_rows(model, data, rows, length)
        options = {"bits": 4, "group_size": 64, "desc_act": False, "sym": True, "damp_percent": 0.05}
        times: dict[str, list[float]] = {"smollm3 quantize": [], "gptqmodel directly": []}
        processor: dict[str, list[float]] = {title: [] for title in times}
        for i in range(pairs):
            job.write_text(
                json.dumps({"source": source, "options": options, "rows": ids, "out": str(directory / f"d{i}")})
            )
            direct = [sys.executable, "-c", DIRECT, str(job)]
            turns = [
                ("smollm3 quantize", [*ours, "--output", str(directory / f"o{i}")]),
                ("gptqmodel directly", direct),
            ]
            for title, command in turns if i % 2 == 0 else reversed(turns):
                began, began_cpu = time.perf_counter(), _processor_seconds()
                subprocess.run(command, check=True, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                times[title].append(time.perf_counter() - began)
                processor[title].append(_processor_seconds() - began_cpu)
                print(f"{title}: {times[title][-1]:.1f} s, {processor[title][-1]:.1f} s of processor time", flush=True)
    ratios = {
        name: statistics.median(a / b for a, b in zip(*figures.values(), strict=True))
        for name, figures in (("seconds", times), ("processor", processor))
    }
    return {"seconds": times, "processor": processor, "ratios": ratios}


def _processor_seconds() -> float:
    """Processor time of all ended child processes, direct or indirect."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _same_rows(model: Path, data: Path, rows: int, length: int) -> tuple[list[list[int]], str]:
    """The token ids on which `smollm3 quantize` calibrates, and the directory of the dense checkpoint."""
    from smollm3_finetune.api import Purpose
    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.config.load import Setting, assemble
    from smollm3_finetune.model.load import build_context
    from smollm3_finetune.quantize.run import plan_quantize

    values: dict[tuple[str, ...], Any] = {
        ("model",): str(model),
        ("quant", "name"): "gptq",
        ("data", "path"): str(data),
        ("data", "max_length"): length,
        ("calibration", "rows"): rows,
        ("calibration", "length"): length,
    }
    loaded = assemble([[Setting(key=k, value=v, origin="here") for k, v in values.items()]])
    context = build_context(Purpose.QUANTIZE, "cpu", "auto", 0)
    plan = plan_quantize(discover(PluginSelection.of(())), loaded, lambda: context, data.parent / "nowhere")
    return [list(row) for row in plan.model.context.calibration()], str(plan.model.source.path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="calibration rows")
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    parser.add_argument("--pairs", type=int, default=3, help="number of timed runs of each command; 0: none")
    parser.add_argument("--no-perplexity", action="store_true", help="measure times only")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    model = fetch_model()
    if model is None:
        return 0
    results: dict[str, Any] = {"rows": args.rows, "length": args.length}
    if not args.no_perplexity:
        print("| weights | perplexity | relative to dense |\n|---|---|---|", flush=True)
        results["perplexity"] = measured_perplexities(model, args.rows, args.length)
    if args.pairs:
        results["time"] = measured_times(model, args.rows, args.length, args.pairs)
        ratios = results["time"]["ratios"]
        print(
            f"\nsmollm3 quantize takes {ratios['seconds']:.2f} times the wall-clock time and "
            f"{ratios['processor']:.2f} times the processor time (median of the pairs)"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
