"""Measures one pair: trains it as a run does, with tokens or with preferences, or merges it. Imports torch."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3_finetune.api import (
    ALL_OPS,
    Adapted,
    Adapter,
    Base,
    BuildContext,
    LinearOps,
    ModelSource,
    Op,
    Purpose,
    Quantizer,
)
from smollm3_finetune.cache.store import Cache
from smollm3_finetune.compatibility.results import Use
from smollm3_finetune.components.kinds import ADAPTER
from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import SelectedComponent, choose
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.model.load import LoadedModel, build_context, load_base
from smollm3_finetune.model.plan import ModelPlan, ModelRequest, plan_model, select_model
from smollm3_finetune.model.saved_adapter import SavedAdapter

NOISE = 0.02
"""Standard deviation of the noise added to a fresh adapter, so that merging it changes the weights."""
EXACT = 1e-5
"""The largest relative error that rounding in float32 explains; the `forward_rtol` of the base is added."""
MOVED = 10 * EXACT
"""How far an adapter must move the logits, so that a comparison could fail."""
SAME = 1e-6
"""The largest relative error of a reference, which the same layers compute for the same batch."""
CALIBRATION_ROWS = 8
TOTAL_STEPS = 20
"""Passed to `attach` as `total_steps`, for adapters with a schedule."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result of one pair for one purpose."""

    figures: Mapping[str, float]
    """Relative errors, except `moved` and the counts: `trained` parameters, `quantized` layers."""
    fault: str | None
    """Why the pair does not hold, in one sentence; None if it holds."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The components, the model, the device and a directory for files that measurements share."""

    registry: Registry
    model: Path
    device: str
    work: Path
    dtype: str = "float32"

    def context(self, purpose: Purpose) -> BuildContext:
        import torch

        drawn = torch.randint(3, 1000, (CALIBRATION_ROWS, 32), generator=torch.Generator().manual_seed(1))
        rows = drawn.tolist()
        return build_context(purpose, self.device, self.dtype, 0, lambda: rows, Cache(self.work / "cache"))

    def plan(
        self, quantizer: str, adapter: str, options: Mapping[str, Any], purpose: Purpose, *, saved: Path | None = None
    ) -> ModelPlan:
        """The plan of a pair, even if the pair is refused: the model is planned without the adapter, which is added."""
        request = ModelRequest(ref=str(self.model), quant=ComponentConfig(name=quantizer), purpose=purpose)
        plan = plan_model(self.registry, select_model(self.registry, request), self.context(purpose))
        chosen = choose(self.registry, ADAPTER, adapter, options)
        return dataclasses.replace(plan, adapter=chosen, saved=SavedAdapter.read(saved) if saved else None)


def comparable(plan: ModelPlan, *, force: bool) -> ModelPlan:
    """The plan with its components wrapped so that two models can be compared.

    Random numbers that an adapter draws in a forward are the same in both models, and logits of prompt tokens that the
    adapter adds are removed. With `force`, quantized layers claim every operation, so that no check refuses the pair.
    """
    quantizer, adapter = plan.quantizer, plan.adapter
    assert adapter is not None
    steady = _Steady(component=adapter.component, options=adapter.options)
    if not force:
        return dataclasses.replace(plan, adapter=steady)
    return dataclasses.replace(
        plan, adapter=steady, quantizer=_Forced(component=quantizer.component, options=quantizer.options)
    )


class _Steady(SelectedComponent):
    def create(self) -> Any:
        return _SteadyAdapter(super().create())


class _SteadyAdapter:
    """An adapter whose models are seeded at each forward, and return logits only for the T tokens passed in."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def attach(self, base: Base, ctx: BuildContext, total_steps: int | None) -> Adapted:
        return _steady(self._adapter.attach(base, ctx, total_steps))

    def restore(self, base: Base, path: Path, ctx: BuildContext, total_steps: int | None) -> Adapted:
        return _steady(self._adapter.restore(base, path, ctx, total_steps))


def _steady(adapted: Adapted) -> Adapted:
    import torch

    def seed(module: Any, args: Any) -> None:
        torch.manual_seed(0)

    def cut(module: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        output.logits = output.logits[:, -kwargs["input_ids"].shape[1] :]  # (B, T, V)

    adapted.model.register_forward_pre_hook(seed)
    adapted.model.register_forward_hook(cut, with_kwargs=True)
    return adapted


class _Forced(SelectedComponent):
    def create(self) -> Any:
        return _ForcedQuantizer(super().create())


class _ForcedQuantizer:
    """A quantizer whose layers claim every operation."""

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        base = self._quantizer.load(source, ctx)

        def ops_for(layer: Any) -> Any:
            ops = base.ops_for(layer)
            return None if ops is None else _Everything(ops)

        return dataclasses.replace(base, ops_for=ops_for)


class _Everything:
    """The view of a layer, except that it claims every operation."""

    ops: frozenset[Op] = ALL_OPS

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)


def measure_train(plan: ModelPlan) -> Measured:
    """Run the pair through evaluate, train, evaluate, save, train, restore, and compare it with the dense copy."""
    from smollm3_finetune.compatibility.composition import check_composition

    assert plan.adapter is not None
    with _quiet():
        found = check_composition(plan)
        layers = _quantized(plan)
    figures = {
        "moved": found.moved,
        "gradients": max(found.gradients.values()),
        "logits": max(found.logits.values()),
        "weights": max(found.weights.values(), default=0.0),
        "restored": found.restored,
        "identity": found.identity,
        "trained": len(found.trained),
        "quantized": len(layers),
    }
    bound = EXACT + max((ops.forward_rtol for ops in layers), default=0.0)
    names = ["gradients", "logits", "restored"]
    if refined(plan.adapter, plan.env).identity_at_start:
        names.append("identity")
    for name in names:
        if not figures[name] <= bound:
            return Measured(figures=figures, fault=f"{name}: error {figures[name]:.1e} (limit {bound:.1e})")
    if figures["weights"]:
        return Measured(figures=figures, fault="the weights of the base changed during the sequence")
    if not figures["moved"] > MOVED and refined(plan.adapter, plan.env).disables:
        return Measured(
            figures=figures,
            fault=f"the adapter moves the logits by only {figures['moved']:.1e}, too little for a comparison",
        )
    return Measured(figures=figures, fault=None)


def measure_prefer(plan: ModelPlan) -> Measured:
    """Train the pair with preferences, and compare it with the dense copy and with its reference."""
    from smollm3_finetune.batching.attention import RowsNotApart
    from smollm3_finetune.compatibility.prefer import check_preferences

    with _quiet():
        try:
            found = check_preferences(plan)
        except RowsNotApart as e:
            return Measured(figures={}, fault=f"answers cannot share their prompt: {e}")
        layers = _quantized(plan)
    figures = {
        "moved": found.moved,
        "margin": found.margin,
        "gradients": max(found.gradients.values()),
        "reference": max(found.reference.values()),
    }
    bound = EXACT + max((ops.forward_rtol for ops in layers), default=0.0)
    bounds = {"margin": SAME, "reference": SAME, "gradients": bound}
    if found.branches is not None:
        figures["branches"] = found.branches
        bounds["branches"] = bound
    for name, most in bounds.items():
        if not figures[name] <= most:
            return Measured(figures=figures, fault=f"{name}: error {figures[name]:.1e} (limit {most:.1e})")
    if not figures["moved"] > 10 * SAME:
        return Measured(
            figures=figures,
            fault=f"the adapter moves the answers by only {figures['moved']:.1e}, too little for a comparison",
        )
    return Measured(figures=figures, fault=None)


def _quantized(plan: ModelPlan) -> list[LinearOps]:
    """The views of the quantized layers of the base."""
    base = load_base(plan.quantizer, plan.quantizer.create(), plan.source, plan.context)
    return [ops for layer in base.model.modules() if (ops := base.ops_for(layer)) is not None]


def measure_merge(bench: Bench, plan: ModelPlan, merging: Callable[[Path], ModelPlan]) -> Measured:
    """Merge an adapter with noise added, by the procedure of `smollm3 merge`, and return its figures.

    `plan` is for training; `merging(path)` returns the plan for merging the adapter saved in `path`.
    """
    from smollm3_finetune.merge.report import MergeSettings
    from smollm3_finetune.merge.run import merge

    assert plan.adapter is not None
    with tempfile.TemporaryDirectory(dir=bench.work) as directory, _quiet():
        saved = Path(directory) / "adapter"
        base = load_base(plan.quantizer, plan.quantizer.create(), plan.source, plan.context)
        adapted = plan.adapter.create().attach(base, plan.context, TOTAL_STEPS)
        _push(adapted.model)
        LoadedModel(plan=plan, base=base, adapted=adapted).save(saved)
        report = merge(merging(saved), MergeSettings(output=Path(directory) / "out", dtype=bench.dtype, force=True))
    names = ("moved", "dense", "merged", "base", "drift")
    figures = {name: float("nan") if (v := report["figures"][name]) is None else v for name in names}
    return Measured(figures=figures, fault=report["fault"])


def _push(model: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((NOISE * noise).to(parameter))


@contextmanager
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def measure(
    bench: Bench, quantizer: str, adapter: str, options: Mapping[str, Any], use: Use, *, force: bool
) -> Measured:
    """Measure one pair for one use; with `force`, even if it is refused.

    Exceptions of the pair are not caught.
    """
    train = comparable(bench.plan(quantizer, adapter, options, Purpose.TRAIN), force=force)
    if use is Use.TRAIN:
        return measure_train(train)
    if use is Use.PREFER:
        return measure_prefer(train)

    def merging(saved: Path) -> ModelPlan:
        return comparable(bench.plan(quantizer, adapter, options, Purpose.MERGE, saved=saved), force=force)

    return measure_merge(bench, train, merging)
