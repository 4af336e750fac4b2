"""Tries one pair: load, start, train, resume, merge, each compared with what it should be. Imports torch."""

from __future__ import annotations

import gc
import math
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, Purpose
from smollm3_finetune.cache.store import Cache
from smollm3_finetune.compatibility.children import one_line
from smollm3_finetune.compatibility.composition import Comparison, check_composition
from smollm3_finetune.compatibility.measure import MOVED, Bench, comparable
from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.components.registry import RegisteredComponent, attributed_to
from smollm3_finetune.components.requirements import unmet_distributions
from smollm3_finetune.errors import ConfigError, IncompatibleError, MissingRequirementError, SmolLM3Error
from smollm3_finetune.model.compare import apart, logits
from smollm3_finetune.model.load import build_context, compose, load_base
from smollm3_finetune.model.plan import ModelPlan, plan_model, select_model
from smollm3_finetune.model.saved_adapter import CALIBRATION, read_calibration
from smollm3_finetune.runs.reopen import run_request
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.trial.layers import layer_fault
from smollm3_finetune.trial.results import Status, Step
from smollm3_finetune.trial.training import Site, merge_fault, metrics, resume_fault, speed, train

if TYPE_CHECKING:
    from torch import Tensor

BOUND: Mapping[str, float] = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""The largest relative error against float64 on the CPU, by the dtype of the run.

A device may compute in another order: float32 has errors of about 1e-6 in eight layers, and 16 bits about 1e-2. The
`forward_rtol` of the quantizer is added.
"""
SAVED = 1e-2
"""The largest relative difference of a parameter that was saved and restored: an adapter may be saved in 16 bits."""


@dataclass
class Cell:
    """What was found so far about one pair."""

    figures: dict[str, float] = field(default_factory=dict)
    faults: dict[Step, str | None] = field(default_factory=dict)
    """The fault of each step that was reached; None if it passed."""

    def check(self, step: Step, work: Callable[[], str | None]) -> bool:
        """Carry out a part of a step, unless the step has failed; returns whether it passed."""
        if self.faults.get(step) is None:
            try:
                self.faults[step] = work()
            except Exception as e:
                self.faults[step] = said(e)
        return self.faults[step] is None

    def outcome(self, status: Status | None = None, sentence: str | None = None) -> dict[str, Any]:
        failed = next(((s, f) for s in Step if (f := self.faults.get(s)) is not None), None)
        if status is None:
            status = Status.FAILS if failed else Status.WORKS
            sentence = one_line(f"{failed[0]}: {failed[1]}") if failed else None
        return {
            "status": status.value,
            "sentence": sentence,
            "steps": {s.value: self.faults[s] is None if s in self.faults else None for s in Step},
            "figures": {n: float(f"{v:.3g}") if math.isfinite(v) else None for n, v in self.figures.items()},
        }


def said(error: Exception) -> str:
    """An exception in one sentence."""
    if isinstance(error, MissingRequirementError) and error.hint:
        return one_line(f"{error.message} ({error.hint})")
    if isinstance(error, SmolLM3Error):
        return one_line(error.message)
    return one_line(str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}")


def try_pair(site: Site, quantizer: RegisteredComponent, adapter: RegisteredComponent) -> dict[str, Any]:
    """Try one pair; returns the fields `status`, `sentence`, `steps` and `figures` of a result."""
    cell, run = Cell(), site.work / "run"
    for directory in site.work.glob("run*"):
        shutil.rmtree(directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            planned = site.plan(quantizer.full_name, adapter.full_name, run)
        except MissingRequirementError as e:
            missing = any(unmet_distributions(c.spec.requires, c.title) for c in (quantizer, adapter))
            return cell.outcome(Status.FAILS if missing else Status.REFUSED, said(e))
        except (ConfigError, IncompatibleError) as e:
            return cell.outcome(Status.REFUSED, said(e))
        except Exception as e:
            return cell.outcome(Status.FAILS, said(e))
        finished, stopped = False, ""
        reset_peak(site.device)
        try:
            report = train(planned)
            cell.figures |= {"tokens_per_second": speed(run), "memory": peak_memory(site.device, report)}
            finished = True
        except Exception as e:
            stopped = said(e)
        free(site.device)
        bench = _Bench(registry=site.registry, model=Path("tiny"), device=site.device, work=site.work, dtype=site.dtype)
        plan = bench.plan(quantizer.full_name, adapter.full_name, {}, Purpose.TRAIN)
        rtol: list[float] = []
        if cell.check(Step.LOAD, lambda: _load(plan, cell.figures, rtol)):
            cell.check(Step.TRAIN, lambda: _losses(run) if finished else stopped)
            compare_with_dense_copy(cell, plan, BOUND[site.dtype] + max(rtol, default=0.0))
        if finished and cell.faults[Step.LOAD] is None:
            cell.check(Step.START, lambda: _same_again(site, run))
            cell.check(Step.RESUME, lambda: resume_fault(site, run, cell.figures))
            cell.check(Step.MERGE, lambda: merge_fault(site, run, cell.figures))
    free(site.device)
    return cell.outcome()


@dataclass(frozen=True, kw_only=True)
class _Bench(Bench):
    """A bench whose calibration rows are those of the run, so that its base is not quantized twice."""

    def context(self, purpose: Purpose) -> BuildContext:
        own = super().context(purpose)
        kept = self.work / "run" / CALIBRATION
        context = replace(own, cache=Cache.default())
        return replace(context, calibration=lambda: read_calibration(kept)) if kept.exists() else context


def _load(plan: ModelPlan, figures: dict[str, float], rtol: list[float]) -> str | None:
    """Load the base alone and check its layers; adds their `forward_rtol` to `rtol`."""
    import torch

    base = load_base(plan.quantizer, plan.quantizer.create(), plan.source, plan.context)
    rtol += [ops.forward_rtol for m in base.model.modules() if (ops := base.ops_for(m)) is not None]
    with attributed_to(plan.quantizer.component):
        if fault := layer_fault(base, plan.source.load(dtype=torch.float32), BOUND[plan.context.dtype], figures):
            return fault
    ids = torch.arange(3, 35, device=plan.context.device)[None]  # (1, T)
    difference = _difference(base.model, ids)
    return None if difference is None else f"two evaluations of the base differ: {difference}"


def _losses(run: Path) -> str | None:
    """What is wrong with the losses of a run."""
    wrong = next((m for m in metrics(run) if not math.isfinite(m["loss"])), None)
    return None if wrong is None else f"the loss of step {wrong['step']} is {wrong['loss']}"


def compare_with_dense_copy(cell: Cell, plan: ModelPlan, bound: float) -> None:
    """Compare the pair with its dense copy in float64 on the CPU, through evaluations, steps, saving and restoring."""
    assert plan.adapter is not None
    adapter = refined(plan.adapter, plan.env)
    found: list[Comparison] = []

    def run() -> str | None:
        found.append(check_composition(comparable(plan, force=False), exact=True))
        if found[0].saved > SAVED:  # then the dense copy, which restored it, is another model
            return None
        return _train_fault(found[0], bound, disables=adapter.disables)

    cell.check(Step.TRAIN, run)
    free(plan.context.device)
    if not found:
        return
    one = found[0]
    losses = [abs(a - b) / abs(b) for a, b in one.losses.values()]
    cell.figures |= {
        "identity": one.identity, "gradients": max(one.gradients.values()), "logits": max(one.logits.values()),
        "loss": max(losses), "weights": max(one.weights.values(), default=0.0), "restored": one.restored,
    }  # fmt: skip
    if adapter.identity_at_start and not one.identity <= bound:
        cell.check(Step.START, lambda: f"a fresh adapter changes the logits by {one.identity:.1e} (limit {bound:.0e})")
    else:
        cell.check(Step.START, lambda: None)
    if one.saved > SAVED:
        cell.check(Step.RESUME, lambda: f"after saving and restoring, {one.worst['saved']}")
    elif not one.restored <= bound:
        cell.check(Step.RESUME, lambda: f"after saving and restoring, the logits differ by {one.restored:.1e}")


def _train_fault(found: Comparison, bound: float, *, disables: bool) -> str | None:
    """What differs in training from the dense copy, in one sentence."""
    if any(found.weights.values()):
        return f"read_weight() returns other values for layer {found.worst['weights']}"
    for point, error in found.gradients.items():
        if not error <= bound:
            return f"{found.worst[point]} of float64 on the CPU, at {point!r} (error {error:.1e}, limit {bound:.0e})"
    for point, error in found.logits.items():
        if not error <= bound:
            return f"the logits differ from float64 on the CPU by {error:.1e} at {point!r} (limit {bound:.0e})"
    for point, (loss, right) in found.losses.items():
        if not abs(loss - right) <= bound * abs(right):
            return f"the loss is {loss:.6g} at {point!r}, and {right:.6g} in float64 on the CPU"
    if disables and not found.moved > MOVED:
        return f"the adapter moves the logits by only {found.moved:.1e}"
    return None


def _same_again(site: Site, run: Path) -> str | None:
    """Whether the model with the adapter of the run computes the same in two evaluations with different seeds."""
    import torch

    request, _ = run_request(RunDir(run), (), {}, "generate", Purpose.INFER)
    context = build_context(Purpose.INFER, site.device, site.dtype, 0)
    loaded = compose(plan_model(site.registry, select_model(site.registry, request), context))
    ids = torch.arange(3, 35, device=loaded.plan.context.device)[None]  # (1, T)
    difference = _difference(loaded.model, ids)
    return None if difference is None else f"two evaluations with the adapter differ: {difference}"


def _difference(model: Any, ids: Tensor) -> str | None:
    """Which module makes two evaluations with different random seeds differ; None if they are equal."""
    import torch

    outputs: list[dict[str, Tensor]] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                outputs[-1].setdefault(name, output.detach().cpu())

        return hook

    hooks = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if not any(m.children())]
    found = []
    try:
        for seed in (1, 2):
            torch.manual_seed(seed)
            outputs.append({})
            found.append(logits(model, ids).cpu())
    finally:
        for hook in hooks:
            hook.remove()
    error = apart(found[1].double(), found[0].double())
    if error <= 1e-6:
        return None
    first, second = outputs
    changed = [n for n in first if n in second and not torch.equal(first[n], second[n])]
    return f"the logits by {error:.1e}" + (f", first in the output of {changed[0]}" if changed else "")


def reset_peak(device: str) -> None:
    if device.partition(":")[0] == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str, report: Mapping[str, Any]) -> float:
    """The largest memory of a run, in bytes: of its tensors on a GPU, of the whole process on a CPU; 0: not known."""
    if device.partition(":")[0] == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated(device))
    known = report["memory"]
    return float(known.get("floor", 0) + known.get("peak", 0))


def free(device: str) -> None:
    """Free the memory of what is not referenced any more."""
    gc.collect()
    if device.partition(":")[0] == "cuda":
        import torch

        torch.cuda.empty_cache()
