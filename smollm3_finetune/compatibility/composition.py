"""Runs a quantizer with an adapter through the sequence of a training run, and compares it with the dense copy.

The dense copy is the same model with every quantized layer replaced by `nn.Linear(read_weight())`. On both, the adapter
must compute the same gradients. The sequence reveals kernels that repack, detach or round at some call; a single call
does not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3_finetune.api import Adapted, Adapter, Base, Purpose, UnsupportedOp
from smollm3_finetune.model.compare import (
    apart,
    descend,
    logits,
    loss_and_gradients,
    most_different,
    push,
    relative_error,
)
from smollm3_finetune.model.dense_copy import dense_copy

if TYPE_CHECKING:
    from torch import Tensor

    from smollm3_finetune.model.plan import ModelPlan

TOTAL_STEPS = 20
"""Passed to `attach` and `restore` as `total_steps`, for adapters with a schedule."""


@dataclass
class Comparison:
    """The figures of a comparison; each is a relative norm."""

    identity: float = 0.0
    """Logits of the fresh adapter compared with those of its base."""
    moved: float = 0.0
    """How far the adapter moves the logits after noise was added to it; if too little, no comparison could fail."""
    gradients: dict[str, float] = field(default_factory=dict)
    """At each point of the sequence, the adapter's gradients compared with those on the dense copy."""
    logits: dict[str, float] = field(default_factory=dict)
    """At each point of the sequence, the logits compared with those on the dense copy."""
    weights: dict[str, float] = field(default_factory=dict)
    """At each point of the sequence, `read_weight()` of every quantized layer compared with its first value."""
    restored: float = 0.0
    """Logits after save and restore on a freshly loaded base, compared with those before."""
    saved: float = 0.0
    """After save and restore, the parameter that differs most from before; rounding to the saved dtype included."""
    losses: dict[str, tuple[float, float]] = field(default_factory=dict)
    """At each training step of the sequence, the loss, and that of the dense copy."""
    worst: dict[str, str] = field(default_factory=dict)
    """At each training step, which gradient differs most and how; at `saved`, which parameter; at `weights`, the
    layer whose weight changed. Clauses."""
    trained: list[str] = field(default_factory=list)
    """Names of the parameters that require a gradient."""
    base_trained: list[str] = field(default_factory=list)
    """The names in `trained` that belong to the base; empty unless the weights themselves are trained."""


def check_composition(plan: ModelPlan, *, ids: Tensor | None = None, exact: bool = False) -> Comparison:
    """Build the model of `plan` (for training, with an adapter), run the sequence on it and return the figures.

    `ids` (B, T) are the token ids to use; None: random ones. The dense copy computes on the same device, in float64 if
    the dtype of the plan is float64, otherwise in float32; with `exact`, in float64 on the CPU. Only the caller
    compares the figures with bounds. Raises AssertionError if a trained parameter receives no gradient.
    """
    import torch

    assert plan.adapter is not None
    assert plan.context.purpose is Purpose.TRAIN
    adapter: Adapter = plan.adapter.create()
    base = _load(plan)
    wide = torch.float64 if exact or plan.context.dtype == "float64" else torch.float32
    where = replace(plan.context, device="cpu", dtype="float64") if exact else plan.context
    dense = Base(model=dense_copy(base, wide, "cpu" if exact else None), fingerprint=base.fingerprint)
    before = {p.data_ptr(): n for n, p in base.model.named_parameters()}
    layers = {n: ops for n, m in base.model.named_modules() if (ops := base.ops_for(m)) is not None}
    weights = {n: ops.read_weight() for n, ops in layers.items()}
    if ids is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, base.model.config.vocab_size, (2, 16), generator=generator)
    tokens, same = ids.to(plan.context.device), ids.to(where.device)  # (B, T)

    torch.manual_seed(plan.context.seed)
    adapted = adapter.attach(base, plan.context, TOTAL_STEPS)
    result = Comparison(identity=_effect(adapted, tokens))
    trained = [(n, p) for n, p in adapted.model.named_parameters() if p.requires_grad]
    result.trained = [n for n, _ in trained]
    result.base_trained = [before[p.data_ptr()] for _, p in trained if p.data_ptr() in before]

    def compare_saved(kept: Mapping[str, Tensor], restored: Adapted) -> None:
        """Find a trained parameter that `save` or `restore` changed, beyond the dtype of the saved adapter."""
        again = _trained(restored)
        if kept.keys() == again.keys():
            name, how = most_different(again, kept)
            error = apart(again[name].cpu(), kept[name].cpu())
            if error > result.saved:
                result.saved, result.worst["saved"] = error, f"{name} {how} the one that was saved"

    push(adapted.model)
    result.moved = _effect(adapted, tokens)

    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory)
        adapted.save(saved / "pushed")
        right = adapter.restore(dense, saved / "pushed", where, TOTAL_STEPS)
        compare_saved(_trained(adapted), right)
        steps = 0

        def evaluate(point: str) -> None:
            result.logits[point] = apart(logits(adapted.model, tokens), logits(right.model, same))
            compare_weights(point)

        def train(point: str) -> None:
            nonlocal steps
            steps += 1
            loss, found = loss_and_gradients(adapted.model, tokens)
            exact_loss, expected = loss_and_gradients(right.model, same)
            result.losses[point] = loss, exact_loss
            result.gradients[point] = relative_error(found, expected)
            if result.gradients[point]:
                result.worst[point] = "the gradient of {} {} that".format(*most_different(found, expected))
            for one in (adapted, right):
                descend(one, steps)
            compare_weights(point)

        def compare_weights(point: str) -> None:
            if layers:
                now = {n: ops.read_weight() for n, ops in layers.items()}
                result.weights[point] = relative_error(now, weights)
                if result.weights[point]:
                    result.worst.setdefault("weights", f"{most_different(now, weights)[0]} after the step {point!r}")

        evaluate("evaluate")
        train("train")
        evaluate("evaluate again")
        adapted.save(saved / "saved")
        train("train after save")
        last = logits(adapted.model, tokens)
        adapted.save(saved / "last")
        kept = _trained(adapted)
        adapted = adapter.restore(_load(plan), saved / "last", plan.context, TOTAL_STEPS)
        result.restored = apart(logits(adapted.model, tokens), last)
        layers = {}  # they belong to the first base
        compare_saved(kept, adapted)
        train("train after restore")
    return result


def _trained(adapted: Adapted) -> dict[str, Tensor]:
    """Copies of the parameters that require a gradient."""
    return {n: p.detach().clone() for n, p in adapted.model.named_parameters() if p.requires_grad}


def _load(plan: ModelPlan) -> Base:
    base: Base = plan.quantizer.create().load(plan.source, plan.context)
    return base


def _effect(adapted: Adapted, ids: Tensor) -> float:
    """How far the adapter moves the logits, relative to its base; 0 if the adapter cannot be disabled."""
    found = logits(adapted.model, ids)
    try:
        with adapted.disabled():
            return apart(found, logits(adapted.model, ids))
    except UnsupportedOp:
        return 0.0
