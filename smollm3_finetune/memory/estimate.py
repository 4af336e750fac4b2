"""Predicts the peak memory of a run from its plan. Reads no weights and no rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune import stopping
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.memory.allocators import huge_pages, process_bytes, rounding
from smollm3_finetune.memory.build import Built, Plan, Unknown, build
from smollm3_finetune.memory.heap import PADDING
from smollm3_finetune.memory.mapped import mapped_bytes
from smollm3_finetune.memory.memory_plan import MemoryPlan
from smollm3_finetune.memory.replay import Before, kept_by_heap

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.memory.optimizer import OptimizerBytes
    from smollm3_finetune.memory.step import Step
    from smollm3_finetune.train.distributed.layout import Layout

SFT = "smollm3-finetune:sft"
LIKELY, MOST = 0.8, 1.0
"""Small objects take this share of the pieces of the heap: fitted to measured runs, and at most."""
OF_GPU = 0.15
"""Half the width of the interval on a GPU, relative to the peak. It is assumed: nothing was measured on a GPU."""

log = logging.getLogger("smollm3_finetune")


def estimate(
    plan: Plan,
    registry: Registry,
    *,
    length: int | None = None,
    batch: int | None = None,
    layout: Layout | None = None,
) -> MemoryPlan:
    """The memory that a run needs on each of its devices, at a batch of `batch` rows of `length` tokens.

    By default, the batch is the largest that the configuration allows: `train.batch_size` rows of `data.max_length`
    tokens. `layout` says how many processes the run has and what they share; by default, those of the plan.
    """
    return Estimator(plan, registry, layout=layout)(length=length, batch=batch)


class Estimator:
    """Predicts one plan at several lengths and batch sizes; the model is composed once."""

    def __init__(self, plan: Plan, registry: Registry, *, layout: Layout | None = None) -> None:
        self.plan, self.registry = plan, registry
        self.layout = layout or plan.layout
        self.device = plan.model.context.device.partition(":")[0]
        self._built: Built | None = None
        self._optimizer: OptimizerBytes | None = None

    def __call__(self, *, length: int | None = None, batch: int | None = None) -> MemoryPlan:
        """See `estimate`."""
        config = self.plan.config
        length, batch = length or config.data.max_length, batch or config.train.batch_size
        about: dict[str, Any] = {"device": self.device, "length": length, "batch": batch}
        about["processes"] = self.layout.processes or 1
        unknown = [*self._unknown()]
        if unknown:
            return MemoryPlan(**about, unknown=tuple(unknown))
        try:
            with stopping.deferred():  # an exception of a signal handler inside torch's dispatch ends the process
                return self._predicted(about, length, batch)
        except (Unknown, SmolLM3Error) as e:
            return MemoryPlan(**about, unknown=(str(e),))
        except Exception as e:  # code of a model or an adapter that needs values
            log.debug("the memory cannot be predicted", exc_info=True)
            return MemoryPlan(**about, unknown=(f"the run cannot be traced without weights ({type(e).__name__})",))

    def _unknown(self) -> list[str]:
        """Reasons that need no model."""
        train = self.plan.config.train
        found = []
        if self.plan.objective.component.full_name != SFT:
            found.append(f"the memory of {self.plan.objective.component.title} was not measured")
        if train.compile:
            found.append("the memory of compiled models was not measured (train.compile)")
        if self.plan.model.ship is not None:
            found.append("the memory of train.ship_as was not measured")
        if self.layout.processes is None:
            found.append("the number of processes may change while the run lasts")
        if self.device not in ("cpu", "cuda"):
            found.append(f"the memory of the device {self.device!r} was not measured")
        return found

    def _predicted(self, about: dict[str, Any], length: int, batch: int) -> MemoryPlan:
        from smollm3_finetune.memory.optimizer import optimizer_bytes
        from smollm3_finetune.memory.step import trace_step
        from smollm3_finetune.model_files.loading import quiet_transformers

        quiet_transformers()
        round_up = rounding(self.device)
        if self._built is None:
            self._built = build(self.plan)
        with self._built.mode:
            if self._optimizer is None:
                self._optimizer = optimizer_bytes(self._built, self.plan, self.device, round_up)
            step = trace_step(self._built, self.plan, length, batch, round_up)
        return self._added_up(about, self._built, self._optimizer, step, round_up)

    def _added_up(
        self,
        about: dict[str, Any],
        built: Built,
        optimizer: OptimizerBytes,
        step: Step,
        round_up: Callable[[int], int],
    ) -> MemoryPlan:
        held, shares = built.held, _shares(self.layout)
        mapped = mapped_bytes(self.plan, held) if self.device == "cpu" else 0
        whole = held.weights - mapped
        dividing = min(held.sharded, whole)
        resident = {
            "weights": whole - dividing + math.ceil(dividing / shares.weights),
            "adapter": math.ceil(held.adapter / shares.weights),
            "optimizer": math.ceil(optimizer.state / shares.optimizer),
        }
        moment = step.moment
        gradients = math.ceil(moment.gradients / shares.gradients)
        buckets = built.gradients if shares.buckets else 0  # allocated before the first step
        training = {
            **resident,
            "gradients": gradients + buckets,
            "activations": moment.activations,
            "logits": moment.logits,
            "transient": moment.transient + shares.gathered(built),
        }
        stepping = {
            **resident,
            "gradients": math.ceil(built.gradients / shares.gradients) + buckets,
            "transient": math.ceil(optimizer.transient / shares.optimizer),
        }
        phases = {"training": training, "optimizer step": stepping}
        phase = max(phases, key=lambda name: sum(phases[name].values()))
        parts = phases[phase]
        parts["process"] = process_bytes(self.plan, self.device)
        parts["slack"] = most = 0
        if phase == "training":
            parts["slack"] = self._slack(built, optimizer, step, moment.total, LIKELY)
            most = max(self._slack(built, optimizer, step, moment.total, MOST), parts["slack"])
        peak = sum(parts.values())
        if self.device == "cpu":
            own = parts["process"]  # libraries that are imported before or while the run is measured
            low, high = peak - parts["slack"] - own, peak - parts["slack"] + most + own
        else:
            low, high = int(peak * (1 - OF_GPU)), int(peak * (1 + OF_GPU))
        return MemoryPlan(
            **about,
            parts=parts,
            phase=phase,
            low=low,
            high=high,
            mapped=mapped,
            replicated=whole - dividing if shares.weights > 1 else 0,
            notes=tuple(_notes(step, self.device, self.layout)),
        )

    def _slack(self, built: Built, optimizer: OptimizerBytes, step: Step, live: int, share: float) -> int:
        """What the allocator of a CPU holds beside the tensors; `share`: see `memory.heap`."""
        if self.device != "cpu" or len(built.reduced.stacks) != 1:
            return 0
        adapter = [p.nbytes for p, times in built.trained for _ in range(times)]
        before = Before(
            resident=adapter,
            after_first_step=optimizer.tensors,
            threshold=PADDING,
            share=share,
            huge_pages=huge_pages(),
        )
        return kept_by_heap(step.segments, built.reduced.stacks[0], before, live)


@dataclass(frozen=True)
class _Shares:
    """By what each part is divided among the processes."""

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    buckets: bool = False
    """Whether gradients are copied into buckets to be summed."""

    def gathered(self, built: Built) -> int:
        """The weights of the largest layer, and of the next one, which FSDP 2 gathers while it computes."""
        if self.weights == 1:
            return 0
        base = built.base.model
        sizes = [sum(t.nbytes for t in base.get_submodule(name).parameters()) for name in built.reduced.counts]
        return 2 * max(sizes, default=0)


def _shares(layout: Layout) -> _Shares:
    count = layout.processes or 1
    if count == 1:
        return _Shares()
    return {
        "none": _Shares(buckets=True),
        "zero1": _Shares(optimizer=count),
        "zero2": _Shares(optimizer=count, gradients=count),
        "fsdp2": _Shares(weights=count, optimizer=count, gradients=count),
    }[layout.sharding]


def _notes(step: Step, device: str, layout: Layout) -> list[str]:
    found = []
    if step.padded:
        found.append("rows are padded to the longest row of their batch")
    if device != "cpu":
        found.append("predictions for a GPU were not compared with measurements; the interval is assumed")
    if layout.processes != 1:
        found.append("predictions for several processes were not compared with measurements")
    return found
