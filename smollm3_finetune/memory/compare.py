"""Ranks the ways to train a model by memory: quantizer, adapter, gradient checkpointing and batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.config.schema import DEFAULT_ADAPTER
from smollm3_finetune.errors import SmolLM3Error, first_line
from smollm3_finetune.memory.variants import with_components, with_training

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import RegisteredComponent, Registry
    from smollm3_finetune.memory.memory_plan import MemoryPlan
    from smollm3_finetune.train.plan import RunPlan

Predict = Callable[["RunPlan", int, int], "MemoryPlan"]
"""`(plan, length, batch)` to the prediction."""
ALL = "all"
BATCHES = (1, 4, 16)
"""Batch sizes that are compared, beside that of the run."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to train, and its prediction."""

    quantizer: str
    adapter: str
    checkpointing: bool
    batch: int
    memory: MemoryPlan
    own: bool
    """Whether it is the run as it is configured."""

    def as_json(self) -> dict[str, Any]:
        return {
            "quantizer": self.quantizer, "adapter": self.adapter, "gradient_checkpointing": self.checkpointing,
            "batch_size": self.batch, "peak": self.memory.peak, "low": self.memory.low, "high": self.memory.high,
            "own": self.own,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Left:
    """A pair that is not ranked, and why."""

    quantizer: str
    adapter: str
    reason: str
    unknown: bool
    """Whether the pair works, but its memory is unknown."""

    def as_json(self) -> dict[str, Any]:
        return {"quantizer": self.quantizer, "adapter": self.adapter, "reason": self.reason, "unknown": self.unknown}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The ways that were compared."""

    length: int
    ranked: tuple[Candidate, ...]
    """By the upper end of the interval, the smallest first."""
    left: tuple[Left, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "length": self.length,
            "ranked": [c.as_json() for c in self.ranked],
            "unknown": [c.as_json() for c in self.left if c.unknown],
            "refused": [c.as_json() for c in self.left if not c.unknown],
        }


def adapters_to_compare(plan: RunPlan, registry: Registry, others: Sequence[str]) -> list[RegisteredComponent]:
    """The adapter of the run, the default adapter, the built-in ones, and `others` by their names, or with `all` all.

    Raises UnknownComponentError for a name that no plugin offers.
    """
    if ALL in others:
        return registry.of(ADAPTER)
    assert plan.model.adapter is not None
    found = [plan.model.adapter.component, *(registry.find(ADAPTER, name) for name in others)]
    usual = (o for o in registry.of(ADAPTER) if o.origin == "built in" or o.spec.name == DEFAULT_ADAPTER)
    return list({o.full_name: o for o in (*found, *usual)}.values())


def compare(
    plan: RunPlan,
    registry: Registry,
    predict: Predict,
    *,
    quantizers: Sequence[RegisteredComponent] | None = None,
    adapters: Sequence[RegisteredComponent] | None = None,
) -> Comparison:
    """Every installed quantizer with every installed adapter, or those that are given, for the rows of this run."""
    length = plan.config.data.max_length
    ranked, left = [], []
    pairs = [
        (quantizer, adapter)
        for quantizer in (registry.of(QUANTIZER) if quantizers is None else quantizers)
        for adapter in (registry.of(ADAPTER) if adapters is None else adapters)
    ]
    with plan.model.context.progress.task("predicting", len(pairs)) as task:
        for quantizer, adapter in pairs:
            found = list(_of_pair(plan, registry, predict, quantizer, adapter, length))
            ranked += [c for c in found if isinstance(c, Candidate)]
            left += [c for c in found if isinstance(c, Left)]
            task.advance()
    ranked.sort(key=lambda c: (c.memory.high, c.quantizer, c.adapter, c.batch))
    return Comparison(length=length, ranked=tuple(ranked), left=tuple(left))


def _of_pair(
    plan: RunPlan,
    registry: Registry,
    predict: Predict,
    quantizer: RegisteredComponent,
    adapter: RegisteredComponent,
    length: int,
) -> Iterator[Candidate | Left]:
    names = {"quantizer": quantizer.spec.name, "adapter": adapter.spec.name}
    train = plan.config.train
    assert plan.model.adapter is not None
    own = (plan.model.quantizer.component.full_name, plan.model.adapter.component.full_name)
    is_own = own == (quantizer.full_name, adapter.full_name)
    try:
        paired = plan if is_own else with_components(plan, registry, quantizer, adapter)
        for checkpointing in (False, True):
            variant = with_training(paired, gradient_checkpointing=checkpointing)
            for batch in sorted({*BATCHES, train.batch_size}):
                memory = predict(variant, length, batch)
                if memory.unknown:
                    yield Left(**names, reason="; ".join(memory.unknown), unknown=True)
                    return
                same = is_own and (checkpointing, batch) == (train.gradient_checkpointing, train.batch_size)
                yield Candidate(**names, checkpointing=checkpointing, batch=batch, memory=memory, own=same)
    except SmolLM3Error as e:
        yield Left(**names, reason=first_line(e), unknown=False)
