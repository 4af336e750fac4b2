"""What a 4-bit model gains back of its held-out loss when its dense self teaches it, beside `sft` of the same steps.

    python benchmarks/distill.py tiny [--steps 60]
    python benchmarks/distill.py smollm2 --steps 30 --batch 4 --length 96 --held-out 80 --other 40 [--ref PATH]

Trains LoRA on the bnb-4bit base twice, with `distill` and with `sft`, on the same rows in the same order. Then measures
dense, 4-bit, `sft` and `distill` on held-out rows of the same source and on rows of another source: cross-entropy, and
KL(dense || model) over the whole vocabulary. The embedded model trains on the built-in chat dataset and has no other
source; SmolLM2-135M (see real_model.py) trains once on rows of `alpaca_en_demo.json`, the other source is
`c4_demo.jsonl`, both in $SMOLLM3_TEST_DATA. A third run with the same rows shows that the teacher's values are read
from the cache. Also measures the share of the divergence between dense and 4-bit that the k most probable tokens have.

Writes results/distill-MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_model import fetch_model
from smollm3_distill.divergence import divergence, outcomes
from smollm3_distill.objective import Distillation
from smollm3_distill.options import DistillOptions
from verdict_rows import conversations

from smollm3_finetune.api import Conversation, NoOptions, pad_rows, token_values
from smollm3_finetune.builtin.sft import SupervisedFineTuning
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.evaluation.row_losses import RowLosses
from smollm3_finetune.evaluation.verdict import compare
from smollm3_finetune.model.load import load_model

RESULTS = Path(__file__).parent / "results"
CHAT = Path(__file__).parents[1] / "smollm3_finetune" / "builtin" / "chat.jsonl"
COMMAND = (sys.executable, "-m", "smollm3_finetune.main")
KS = (1, 4, 16, 64, 256, 1024)
BATCH = 8
ALL = 10**6
"""More tokens than a vocabulary has: the divergence over the whole vocabulary."""
DRAWS = 4000
COMPUTED = "computing the reference: "

Row = tuple[Conversation, dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """Rows of one source, as conversations and as rows of a file."""

    title: str
    train: Sequence[Row]
    held_out: Sequence[Row]


def sources(model: str, train: int, held_out: int, other: int) -> list[Source]:
    """The first source is trained on."""
    if model == "tiny":
        rows = map(json.loads, CHAT.read_text(encoding="utf-8").splitlines())
        pairs: list[Row] = [(Conversation(messages=tuple(row["messages"])), row) for row in rows]
        return [Source("built-in chat", pairs[held_out:], pairs[:held_out])]
    alpaca, c4 = conversations(Path(os.environ["SMOLLM3_TEST_DATA"]))
    return [Source("alpaca", alpaca[held_out : held_out + train], alpaca[:held_out]), Source("c4", [], c4[:other])]


def train(out: Path, objective: str, quant: str, args: argparse.Namespace, model: str, data: Path, steps: int) -> float:
    """A run, in a child process; returns the seconds it took, and prints what it says of the teacher."""
    command = [
        *(*COMMAND, "train", "--model", model, "--quant", quant, "--objective", objective, "--data", str(data)),
        *("--adapter", "lora", "--adapter-opt", "rank=8", "--device", "cpu", "--max-steps", str(steps)),
        *("--batch-size", str(args.batch), "--max-length", str(args.length), "--learning-rate", str(args.rate)),
        *("--set", "data.held_out=0", "--set", "train.sample_tokens=1", "--set", "train.report=false"),
        *("--output", str(out)),
    ]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    took = time.monotonic() - began
    teacher = [line for line in done.stdout.splitlines() if re.fullmatch(rf"{COMPUTED}[\d.]+ s", line)]
    print(f"{out.name}: {took:.1f} s; {teacher[0] if teacher else 'no teacher was evaluated'}", flush=True)
    (out / "seconds.json").write_text(json.dumps({"seconds": took, "teacher": _seconds(teacher)}))
    return took


def _seconds(lines: Sequence[str]) -> float | None:
    found = [re.findall(r"[\d.]+", line.removeprefix(COMPUTED)) for line in lines]
    return float(found[0][0]) if found else None


def batches(source: Source, renderer: Renderer, tokenizer: Any, length: int) -> Iterator[dict[str, Any]]:
    prepare = SupervisedFineTuning(NoOptions()).prepare
    examples = [e for e in (prepare(row, renderer, length) for row, _ in source.held_out) if e is not None]
    for start in range(0, len(examples), BATCH):
        yield dict(pad_rows(examples[start : start + BATCH], tokenizer))


@torch.no_grad()
def shares(dense: Any, student: Any, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The share of forward KL between two models over k + 1 outcomes, and the teacher's probability of the k tokens."""
    whole, tokens = 0.0, 0
    part, mass = dict.fromkeys(KS, 0.0), dict.fromkeys(KS, 0.0)
    for batch in found:
        p, q = (token_values(m, batch, lambda logits, targets: logits).double() for m in (dense, student))
        tokens += len(p)
        everything = torch.arange(p.shape[1]).expand(len(p), -1)
        whole += float(divergence(outcomes(p, everything), outcomes(q, everything), "forward-kl").sum())
        for k in KS:
            ids = p.topk(min(k, p.shape[1]), dim=1).indices
            part[k] += float(divergence(outcomes(p, ids), outcomes(q, ids), "forward-kl").sum())
            mass[k] += float(p.softmax(1).gather(1, ids).sum())
    return {
        "tokens": tokens,
        "kl": whole / tokens,
        "share": {str(k): round(part[k] / whole, 4) for k in KS},
        "mass": {str(k): round(mass[k] / tokens, 4) for k in KS},
    }


@torch.no_grad()
def measured(model: Any, found: Sequence[dict[str, Any]], title: str) -> tuple[RowLosses, RowLosses]:
    """Cross-entropy and KL(dense || model) of each row."""
    objective = Distillation(DistillOptions(top_k=ALL))
    parts = [objective.row_measures(model, batch) for batch in found]
    terms = torch.cat([p["terms"] for p in parts]).numpy()
    about: dict[str, Any] = {"terms": terms, "sources": np.zeros(len(terms), dtype=np.int64), "titles": (title,)}
    sums = [torch.cat([p[name] * p["terms"] for p in parts]).numpy() for name in ("cross_entropy", "divergence")]
    return RowLosses(sums=sums[0], **about), RowLosses(sums=sums[1], **about)


def regained(dense: RowLosses, base: RowLosses, tuned: RowLosses, seed: int = 0) -> dict[str, Any]:
    """The share of the loss of quantization that is gained back, with a 95 % interval: rows are drawn again."""
    draws = np.random.default_rng(seed).integers(0, len(dense), (DRAWS, len(dense)))

    def mean(losses: RowLosses, rows: Any) -> Any:
        return losses.sums[rows].sum(-1) / losses.terms[rows].sum(-1)

    def share(rows: Any) -> Any:
        lost = mean(base, rows) - mean(dense, rows)
        return (mean(base, rows) - mean(tuned, rows)) / lost

    low, high = np.percentile(share(draws), [2.5, 97.5])
    return {"share": float(share(np.arange(len(dense)))), "low": float(low), "high": float(high)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("tiny", "smollm2"))
    parser.add_argument("--ref", help="SmolLM2-135M as a GGUF file or a directory; by default it is downloaded")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each run")
    parser.add_argument("--batch", type=int, default=8, help="rows in each step")
    parser.add_argument("--length", type=int, default=128, help="longest row, in tokens")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of both runs")
    parser.add_argument("--held-out", type=int, default=120, help="held-out rows of the source that is trained on")
    parser.add_argument("--other", type=int, default=60, help="rows of the other source")
    args = parser.parse_args()
    ref = "tiny"
    if args.model == "smollm2":
        ref = args.ref or str(fetch_model() or sys.exit(0))
    about = sources(args.model, args.steps * args.batch, args.held_out, args.other)
    found: dict[str, Any] = {"model": args.model, **{k: v for k, v in vars(args).items() if k not in ("model", "ref")}}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SMOLLM3_CACHE"] = f"{folder}/cache"
        place = Path(folder)
        dense = load_model(ref, dtype="float32", device="cpu")
        if args.model == "smollm2":  # a directory loads faster than a GGUF file, also in the runs
            ref = str(place / "dense")
            dense.model.save_pretrained(ref)
            dense.tokenizer.save_pretrained(ref)
        data = place / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for _, row in about[0].train), encoding="utf-8")
        for name, objective, steps in (
            ("sft", "sft", args.steps), ("distill", "distill", args.steps), ("again", "distill", 1),
        ):  # fmt: skip
            train(place / name, objective, "bnb-4bit", args, ref, data, steps)
        found["runs"] = {n: json.loads((place / n / "seconds.json").read_text()) for n in ("sft", "distill", "again")}
        renderer = Renderer(dense.tokenizer)
        held = {s.title: list(batches(s, renderer, dense.tokenizer, args.length)) for s in about}
        teacher = Distillation(DistillOptions(top_k=ALL))
        with torch.no_grad():
            for batch in (b for parts in held.values() for b in parts):
                batch["reference"] = teacher.reference_values(dense.model, batch)
        models = {"dense": dense.model, "4-bit": load_model(ref, quant="bnb-4bit", dtype="float32", device="cpu").model}
        found["top_k"] = {t: shares(models["dense"], models["4-bit"], parts) for t, parts in held.items()}
        for name in ("sft", "distill"):
            models[name] = load_model(
                ref, quant="bnb-4bit", adapter_path=place / name / "adapter", dtype="float32", device="cpu"
            ).model
        found["held_out"] = {}
        for title, parts in held.items():
            losses = {name: measured(model, parts, title) for name, model in models.items()}
            found["held_out"][title] = report(losses)
    (RESULTS / f"distill-{args.model}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


def report(losses: Mapping[str, tuple[RowLosses, RowLosses]]) -> dict[str, Any]:
    """Of each model: cross-entropy and KL; of `sft` and `distill`: the change from 4-bit, and the share gained back."""
    entropies, kls = ({name: pair[i] for name, pair in losses.items()} for i in (0, 1))
    found: dict[str, Any] = {"rows": len(entropies["dense"]), "tokens": entropies["dense"].loss.terms}
    for name in losses:
        found[name] = {"cross_entropy": entropies[name].loss.mean, "kl": kls[name].loss.mean}
    pairs = [("dense", "4-bit"), ("4-bit", "sft"), ("4-bit", "distill"), ("sft", "distill")]
    for before, after in pairs:
        for what, of in (("cross_entropy", entropies), ("kl", kls)):
            comparison = compare(of[before], of[after], seed=0)
            assert comparison is not None
            about = comparison.as_json()
            kept = {k: about[k] for k in ("difference", "low", "high", "verdict")}
            found.setdefault(f"{before} to {after}", {})[what] = kept
    for name in ("sft", "distill"):
        found[name]["gained_back"] = regained(entropies["dense"], entropies["4-bit"], entropies[name])
        found[name]["kl_gained_back"] = regained(kls["dense"], kls["4-bit"], kls[name])
    return found


if __name__ == "__main__":
    sys.exit(main())
