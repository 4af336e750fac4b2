"""Measures real losses of single rows, for the simulation of benchmarks/verdict.py.

    python benchmarks/verdict_rows.py tiny [--rows 600 200]
    python benchmarks/verdict_rows.py smollm2 [--ref PATH]

Of the embedded model, or of SmolLM2-135M (see real_model.py), on rows of two sources, `alpaca_en_demo.json` and
`c4_demo.jsonl` in $SMOLLM3_TEST_DATA: the losses of the base, of the base with null adapters (random weights of rank 8
in every linear layer, of the given norm relative to the layer's), and of the base with a LoRA adapter that `smollm3
train` trained on other rows of both files. Writes results/verdict-rows-MODEL.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from smollm3_finetune.api import Conversation, NoOptions
from smollm3_finetune.builtin.sft import SupervisedFineTuning
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.evaluation.row_losses import RowLosses, joined, measure_rows
from smollm3_finetune.model.load import load_model

sys.path.insert(0, str(Path(__file__).parent))
RESULTS = Path(__file__).parent / "results"
FILES = ("alpaca_en_demo.json", "c4_demo.jsonl")
STEPS = {"tiny": 60, "smollm2": 6}


def conversations(folder: Path) -> list[list[tuple[Conversation, dict[str, Any]]]]:
    """The rows of each file, and the same as rows that `smollm3 train` reads."""
    found = []
    for name in FILES:
        text = (folder / name).read_text(encoding="utf-8")
        rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
        pairs: list[tuple[Conversation, dict[str, Any]]] = []
        for row in rows:
            if "text" in row:
                pairs.append((Conversation(text=row["text"]), {"text": row["text"]}))
                continue
            asked = "\n".join(filter(None, (row["instruction"], row["input"])))
            messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]})
            pairs.append((Conversation(messages=messages), {"messages": list(messages)}))
        found.append(pairs)
    return found


@contextlib.contextmanager
def null_adapter(model: torch.nn.Module, norm: float, seed: int) -> Iterator[None]:
    """Random weights of rank 8 added to every linear layer, with `norm` times the norm of its own weights."""
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    saved = [layer.weight.detach().clone() for layer in layers]
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            rows, columns = layer.weight.shape
            added = torch.randn(rows, 8, generator=random) @ torch.randn(8, columns, generator=random)
            layer.weight += (added * (norm * layer.weight.norm() / added.norm())).to(layer.weight)
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, saved, strict=True):
                layer.weight.copy_(weight)


def trained(model: str, rows: Sequence[Sequence[dict[str, Any]]], steps: int, length: int, out: Path) -> Path:
    """An adapter that `smollm3 train` trained on the rows of each source."""
    sources = []
    for n, source in enumerate(rows):
        file = out / f"source-{n}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in source), encoding="utf-8")
        sources += ["--data", str(file)]
    command = [
        *(sys.executable, "-m", "smollm3_finetune.main", "train", "--json", "--model", model, "--adapter", "lora"),
        *("--max-steps", str(steps), "--batch-size", "4", "--max-length", str(length), "--output", str(out / "run")),
        *("--learning-rate", "5e-4", "--set", "data.held_out=0", "--set", "train.sample_tokens=1", *sources),
    ]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return out / "run" / "adapter"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=tuple(STEPS))
    parser.add_argument("--ref", help="SmolLM2-135M as a GGUF file or a directory; by default it is downloaded")
    parser.add_argument("--rows", type=int, nargs=2, default=(240, 80), help="rows to measure, of each source")
    parser.add_argument("--nulls", type=int, default=4, help="null adapters of each norm")
    parser.add_argument("--norms", type=float, nargs="+", default=[0.01], help="norms of the null adapters")
    parser.add_argument("--length", type=int, default=128, help="longest row, in tokens")
    args = parser.parse_args()
    ref = "tiny"
    if args.model == "smollm2":
        from real_model import fetch_model

        ref = args.ref or str(fetch_model() or sys.exit(0))
    pairs = conversations(Path(os.environ["SMOLLM3_TEST_DATA"]))

    def measure(loaded: Any) -> RowLosses:
        renderer = Renderer(loaded.tokenizer)
        objective = SupervisedFineTuning(NoOptions())
        collate = objective.collator(loaded.tokenizer)
        parts = []
        for source, count, name in zip(pairs, args.rows, FILES, strict=True):
            prepared = (objective.prepare(row, renderer, args.length) for row, _ in source[:count])
            examples = [e for e in prepared if e is not None]
            parts.append(measure_rows(loaded.model, objective, examples, collate, 8, title=name))
        print(joined(parts).report(), flush=True)
        return joined(parts)

    base = load_model(ref, dtype="float32")
    before = measure(base)
    nulls = []
    for norm in args.norms:
        for seed in range(args.nulls):
            with null_adapter(base.model, norm, seed):
                nulls.append({"norm": norm, "seed": seed, "losses": rounded(measure(base))})
    del base
    with tempfile.TemporaryDirectory() as out:
        rest = [[row for _, row in source[count:]] for source, count in zip(pairs, args.rows, strict=True)]
        adapter = trained(ref, rest, STEPS[args.model], args.length, Path(out))
        after = measure(load_model(ref, adapter_path=adapter, dtype="float32"))
    found = {
        "model": args.model, "sources": list(FILES), "length": args.length, "steps": STEPS[args.model],
        "rows_by_source": before.as_json()["rows_by_source"], "terms": before.terms.tolist(),
        "base": rounded(before), "trained": rounded(after), "null": nulls,
    }  # fmt: skip
    (RESULTS / f"verdict-rows-{args.model}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def rounded(losses: RowLosses) -> list[float]:
    return [round(float(value), 6) for value in losses.sums]


if __name__ == "__main__":
    main()
