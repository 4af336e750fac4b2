"""The run of a trial: a few steps on the built-in model, the same run resumed in its middle, and its merge.

These are the commands of a user: `smollm3 train`, `smollm3 train --resume` and `smollm3 merge`. Imports torch.
"""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Purpose
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.load import Setting
from smollm3_finetune.merge.report import MergeSettings
from smollm3_finetune.merge.start import plan_merge
from smollm3_finetune.model.compare import apart, how_apart
from smollm3_finetune.progress import Silent
from smollm3_finetune.runs.reopen import run_request
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.display import NoDisplay
from smollm3_finetune.train.start import PlannedRun, plan_training

if TYPE_CHECKING:
    from torch import Tensor

ORIGIN = "doctor --try"
STEPS, MIDDLE = 6, 3
SETTINGS: dict[str, Any] = {
    "data.limit": 16, "data.max_length": 128, "train.max_steps": STEPS, "train.batch_size": 2,
    "train.save_every": MIDDLE, "train.save_minutes": None, "train.sample_tokens": 1, "train.report": False,
    "train.schedule": "constant", "train.warmup": 0.0, "calibration.rows": 8, "calibration.length": 64,
}  # fmt: skip
"""The settings of the run; everything else has its default."""
AFTER = ("adapter", "after.json", "report.json", "trained.json")
"""The files that a run has only after its last step."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a trial takes place."""

    registry: Registry
    plugins: tuple[str, ...]
    device: str
    dtype: str
    work: Path

    def plan(self, quantizer: str, adapter: str, output: Path) -> PlannedRun:
        """Plan the run of a pair. Raises a SmolLM3Error if it is refused."""
        chosen = {"model": "tiny", "quant.name": quantizer, "adapter.name": adapter, "output": str(output)}
        return self._planned({**chosen, **SETTINGS, "device": self.device, "dtype": self.dtype}, None)

    def resumed(self, run: Path) -> PlannedRun:
        return self._planned({}, run)

    def _planned(self, values: dict[str, Any], resume: Path | None) -> PlannedRun:
        settings = [Setting(key=tuple(k.split(".")), value=v, origin=ORIGIN) for k, v in values.items()]
        return plan_training(
            settings,
            resume=resume,
            plugins=self.plugins,
            find_plugins=lambda names: self.registry,
            progress=Silent(),
            warn=lambda line: None,
        )


def train(planned: PlannedRun) -> dict[str, Any]:
    """Train without output, and return the report."""
    return planned.train(NoDisplay())


def resume_fault(site: Site, run: Path, figures: dict[str, float]) -> str | None:
    """Resume a copy of a finished run in its middle, and compare the two; what differs, in one sentence.

    Adds `resumed`, the relative difference of the saved tensors, to `figures`.
    """
    copy = run.with_name(f"{run.name}-resumed")
    shutil.copytree(run, copy)
    for name in AFTER:
        path = copy / name
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    shutil.rmtree(copy / "checkpoints" / f"checkpoint-{STEPS}")
    train(site.resumed(copy))
    whole, again = metrics(run), metrics(copy)
    bound = 1e-5 if site.device == "cpu" else 1e-3
    if [m["step"] for m in again][-1] != STEPS:
        return f"resumed at step {MIDDLE}, it ended at step {again[-1]['step']}, not {STEPS}"
    for one, other in zip(whole[MIDDLE:], again[-(STEPS - MIDDLE) :], strict=True):
        if not abs(other["loss"] - one["loss"]) <= bound * abs(one["loss"]):
            return (
                f"resumed at step {MIDDLE}, the loss of step {one['step']} is {other['loss']:.6g}, and "
                f"{one['loss']:.6g} in the uninterrupted run"
            )
    right, found = tensors(run / "adapter"), tensors(copy / "adapter")
    if right.keys() != found.keys():
        return f"resumed at step {MIDDLE}, the saved adapter has {len(found)} tensors, not {len(right)}"
    errors = {name: apart(found[name].double(), right[name].double()) for name in right}
    figures["resumed"] = max(errors.values(), default=0.0)
    if figures["resumed"] <= bound:
        return None
    worst = max(errors, key=errors.__getitem__)
    how = how_apart(found[worst], right[worst])
    return f"resumed at step {MIDDLE}, the tensor {worst} {how} that of the uninterrupted run"


def merge_fault(site: Site, run: Path, figures: dict[str, float]) -> str | None:
    """Merge the adapter of a run as `smollm3 merge` does; why the merge is refused, in one sentence.

    Adds `merged` and `dense`, figures of the merge check, to `figures`.
    """
    request, _ = run_request(RunDir(run), (), {}, "merge", Purpose.MERGE)
    settings = MergeSettings(output=run.with_name(f"{run.name}-merged"), dtype="float32", force=True)
    report = plan_merge(
        *(site.registry, request, settings),
        run=None, loaded=None, requantize=None, device=site.device, compute_dtype=site.dtype, progress=Silent(),
    ).merge()  # fmt: skip
    for name, key in (("merged", "merged_excess"), ("dense", "dense"), ("moved", "moved")):
        value = report["figures"][key]
        figures[name] = float("nan") if value is None else value
    fault: str | None = report["fault"]
    if fault is None and not figures["moved"] > 0:
        return "the adapter changes nothing after training: the logits with it equal those of the base alone"
    return fault


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, a row for each step; of a step that was repeated, the last one."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return list({row["step"]: row for row in rows}.values())


def speed(run: Path) -> float:
    """The median of the tokens per second of all steps but the first, which starts kernels and allocators."""
    return float(statistics.median(row["tokens_per_second"] for row in metrics(run)[1:]))


def tensors(directory: Path) -> dict[str, Tensor]:
    """The tensors of a saved adapter."""
    from safetensors.torch import load_file

    return {
        f"{file.name}: {n}": t for file in sorted(directory.glob("*.safetensors")) for n, t in load_file(file).items()
    }
