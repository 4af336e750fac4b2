"""Parts of `nox -s gpu` in a process of their own: `python benchmarks/gpu_work.py PART --device cuda --json FILE`.

qlora        smollm3 train --quant bnb-4bit on a model of SmolLM3-3B's shape with random weights
dequantize   the time of the layers with quantized weights beside the same layers with dequantized ones that are kept
gptq         the kernels of gptq: the built-in model, compared with float64 on the CPU, and their speed
fsdp         two processes that share the weights, beside one process

On a CPU, each has small sizes: a rehearsal of the steps, whose figures say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_models import SHRUNKEN, SMOLLM3, conversations, write_model

Found = dict[str, Any]
QUANTIZERS = ("bnb-4bit", "bnb-8bit", "gptq", "hqq", "torchao-int8", "compressed-tensors")


def figure(what: str, value: float, unit: str = "") -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit}


def smollm3(*words: str) -> dict[str, Any]:
    """The report of a run of the command line. Raises SystemExit with its last lines if it fails."""
    command = [sys.executable, "-m", "smollm3_finetune.main", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(" ".join(done.stderr.strip().splitlines()[-3:]))
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def step_rows(report: Found) -> list[dict[str, Any]]:
    lines = (Path(report["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def qlora(device: str, work: Path) -> Found:
    cpu = device == "cpu"
    shape, length, batch, steps = (SHRUNKEN, 128, 2, 4) if cpu else (SMOLLM3, 1024, 4, 10)
    dtype = "float32" if cpu else "bfloat16"
    began = time.monotonic()
    model = write_model(shape, work / "model", dtype)
    written = time.monotonic() - began
    rows = work / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(r)}\n" for r in conversations(batch * steps, length)), encoding="utf-8")
    settings = {"data.held_out": 0, "data.max_length": length, "train.gradient_checkpointing": "true",
                "train.sample_tokens": 4, "train.save_minutes": "off"}  # fmt: skip
    report = smollm3(
        *("train", "--model", str(model), "--data", str(rows), "--output", str(work / "run")),
        *("--quant", "bnb-4bit", "--device", device, "--dtype", dtype, "--batch-size", str(batch)),
        *("--max-steps", str(steps)),
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    )
    found = step_rows(report)
    speed = statistics.median(row["tokens_per_second"] for row in found[2:])
    memory = report["memory"].get("peak", 0) + report["memory"].get("floor", 0)
    wrong = [row["loss"] for row in found if not row["loss"] < 30]
    return {
        "conditions": f"{shape.parameters / 1e6:.3g} million parameters, {batch} × {length} tokens, {dtype}, "
        "LoRA, gradient checkpointing",
        "fault": f"losses are not finite or too large: {wrong}" if wrong or len(found) != steps else None,
        "figures": [
            figure("speed", speed, "tokens/s"),
            figure("largest memory", memory, "bytes"),
            figure("to the end of the first step", report["seconds_to_first_step"], "s"),
            figure("loss of the first step", found[0]["loss"]),
            figure("loss of the last step", found[-1]["loss"]),
            figure("writing the random model", written, "s"),
        ],
    }


def synchronized(device: str) -> None:
    if device.partition(":")[0] == "cuda":
        import torch

        torch.cuda.synchronize()


def dequantize(device: str, work: Path) -> Found:
    """The share of dequantizing: one minus the time with kept weights over the time with quantized ones.

    Both models have the same adapter, and compute the layers of the model, without embeddings and head. A step of a
    whole model, which has these too, has a smaller share.
    """
    import torch

    from smollm3_finetune.components.discovery import discover
    from smollm3_finetune.errors import SmolLM3Error

    cpu = device == "cpu"
    shape = SHRUNKEN if cpu else SMOLLM3
    batch, length, rounds = (2, 128, 5) if cpu else (4, 1024, 8)
    shape = type(shape)(**{**vars(shape), "layers": 2 if cpu else 4, "vocabulary": 2048})
    dtype = "float32" if cpu else "bfloat16"
    model = write_model(shape, work / "model", dtype)
    ids = torch.randint(3, 2000, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    figures, missing, slow = [], [], []
    registry = discover()
    for name in QUANTIZERS:
        try:
            seconds = both(model, name, device, dtype, ids, rounds, work, registry)
        except SmolLM3Error as e:
            missing.append(f"{name}: {e.message}")
            continue
        share = 1 - seconds["kept"] / seconds["quantized"]
        figures += [
            figure(f"{name}: step", 1e3 * seconds["quantized"], "ms"),
            figure(f"{name}: step with kept weights", 1e3 * seconds["kept"], "ms"),
            figure(f"{name}: share of dequantizing", 100 * share, "%"),
        ]
        if share > 0.15:
            slow.append(f"{name} {100 * share:.0f} %")
        print(f"{name}: {100 * share:.1f} %", flush=True)
        gc.collect()
    notes = [f"above 15 %: {', '.join(slow)}"] if slow else []
    return {
        "conditions": f"{shape.layers} layers of width {shape.width}, {batch} × {length} tokens, {dtype}, LoRA, no "
        "gradient checkpointing; forward and backward of the layers, median of "
        f"{rounds} alternating rounds",
        "fault": None if figures else "; ".join(missing),
        "note": "; ".join([*notes, *missing]) or None,
        "figures": figures,
    }


def both(
    model: Path, quantizer: str, device: str, dtype: str, ids: Any, rounds: int, work: Path, registry: Any
) -> dict[str, float]:  # fmt: skip
    """The median seconds of a step, with quantized weights and with kept ones."""
    import torch

    from smollm3_finetune.api import Base, Purpose
    from smollm3_finetune.compatibility.measure import Bench
    from smollm3_finetune.model.dense_copy import dense_copy
    from smollm3_finetune.model.load import load_base

    bench = Bench(registry=registry, model=model, device=device, work=work, dtype=dtype)
    plan = bench.plan(quantizer, "lora", {}, Purpose.TRAIN)
    assert plan.adapter is not None
    base = load_base(plan.quantizer, plan.quantizer.create(), plan.source, plan.context)
    kept = Base(model=dense_copy(base, getattr(torch, dtype)), fingerprint=base.fingerprint)
    bodies = {
        name: plan.adapter.create().attach(one, plan.context, 20).model.get_base_model().model
        for name, one in (("quantized", base), ("kept", kept))
    }
    embedded = torch.randn(*ids.shape, base.model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    inputs = embedded.to(device, getattr(torch, dtype))  # (B, T, D)
    taken: dict[str, list[float]] = {name: [] for name in bodies}
    for number in range(rounds + 2):
        for name, body in bodies.items():
            body.train()
            synchronized(device)
            began = time.perf_counter()
            body(inputs_embeds=inputs, use_cache=False)[0].float().square().mean().backward()
            synchronized(device)
            if number > 1:  # the first ones start kernels
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def gptq(device: str, work: Path) -> Found:
    """Each kernel of gptq on the built-in model."""
    import torch

    from smollm3_finetune.errors import SmolLM3Error
    from smollm3_finetune.model import load_model
    from smollm3_finetune.model.compare import apart, logits
    from smollm3_finetune.model.dense_copy import dense_copy

    dtype = "float32" if device == "cpu" else "bfloat16"
    drawn = torch.randint(3, 2000, (8, 64), generator=torch.Generator().manual_seed(1)).tolist()
    ids = torch.arange(3, 131)[None]  # (1, T)
    figures, faults = [], []
    right = None
    for kernel in ("dequantize", "gptqmodel"):
        try:
            loaded = load_model(
                "tiny", quant={"name": "gptq", "kernel": kernel}, device=device, dtype=dtype, calibration=lambda: drawn
            )
            found = logits(loaded.model, ids.to(device))
            if right is None:
                right = logits(dense_copy(loaded.base, torch.float64, "cpu"), ids)
            error, limit = apart(found.double().cpu(), right), 1e-4 if dtype == "float32" else 5e-2
            seconds = timed(lambda loaded=loaded: logits(loaded.model, ids.to(device)), device)  # type: ignore[misc]
        except SmolLM3Error as e:
            faults.append(f"kernel {kernel}: {e.message}")
            continue
        if kernel == "gptqmodel":
            limit = max(limit, 5e-2)  # it rounds scales and activations
        if not error <= limit:
            faults.append(f"kernel {kernel}: the logits differ from float64 on the CPU by {error:.1e}")
        figures += [
            figure(f"kernel {kernel}: logits against float64", error),
            figure(f"kernel {kernel}: forward of {ids.numel()} tokens", 1e3 * seconds, "ms"),
        ]
        del loaded
    return {"conditions": f"built-in model, 4 bits, {dtype}", "fault": "; ".join(faults) or None, "figures": figures}


def timed(work: Callable[[], Any], device: str, times: int = 10) -> float:
    taken = []
    for _ in range(times):
        synchronized(device)
        began = time.perf_counter()
        work()
        synchronized(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def fsdp(device: str, work: Path) -> Found:
    """Two processes with a batch of two rows each beside one process with four."""
    import torch

    if device != "cpu" and torch.cuda.device_count() < 2:
        return {"skipped": f"this machine has {torch.cuda.device_count()} GPU"}
    dtype = "float32"
    figures, faults = [], []
    for quant in ("none", "bnb-4bit"):
        runs = {}
        for title, launcher, batch in (
            ("one process", (), 4),
            (
                "two processes, fsdp2",
                ("--launcher", "accelerate", "--launcher-opt", "profile=fsdp2", "--launcher-opt", "processes=2"),
                2,
            ),
        ):
            settings = {"data.held_out": 0, "data.limit": 16, "data.max_length": 128, "train.sample_tokens": 1}
            report = smollm3(
                *("train", "--output", str(work / f"{quant}-{len(runs)}"), "--quant", quant, "--device", device),
                *("--dtype", dtype, "--batch-size", str(batch), "--max-steps", "4", *launcher),
                *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
            )
            runs[title] = step_rows(report)
            speed = statistics.median(row["tokens_per_second"] for row in runs[title][1:])
            figures.append(figure(f"{quant}, {title}: speed", speed, "tokens/s"))
        one, two = ([row["loss"] for row in rows] for rows in runs.values())
        apart = max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True))
        figures.append(figure(f"{quant}: losses of two processes against one", apart))
        if not apart <= 1e-4:
            faults.append(f"{quant}: the losses of two processes differ from one by {apart:.1e}: {two} and {one}")
    return {
        "conditions": f"built-in model, {dtype}, 4 rows in each step",
        "fault": "; ".join(faults) or None,
        "figures": figures,
    }


PARTS = {"qlora": qlora, "dequantize": dequantize, "gptq": gptq, "fsdp": fsdp}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = PARTS[args.part](args.device, Path(directory))
    args.json.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
