"""Short training runs of one objective: the batches, the Trainer and the held-out loss of a run, on the small model."""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from transformers import TrainerCallback

from smollm3_finetune.api import ReferenceObjective, RowObjective, without_adapter
from smollm3_finetune.api.helpers import evaluating
from smollm3_finetune.batching.probe import on_device
from smollm3_finetune.batching.strategy import Batches, batching
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.config.schema import ComponentConfig, RunConfig, TrainConfig
from smollm3_finetune.model.compare import push
from smollm3_finetune.model.load import LoadedModel, compose
from smollm3_finetune.model.plan import ModelRequest, plan_model, select_model
from smollm3_finetune.reference.computed import EachBatch
from smollm3_finetune.testing.parts import context
from smollm3_finetune.testing.small import small_model_directory
from smollm3_finetune.train.arguments import arguments
from smollm3_finetune.train.callback import RunCallback
from smollm3_finetune.train.display import NoDisplay
from smollm3_finetune.train.trainer import make_trainer

if TYPE_CHECKING:
    from torch import Tensor

    from smollm3_finetune.api import Objective
    from smollm3_finetune.components.registry import Registry

Example = dict[str, list[int]]
KIT_ADAPTER = Path(__file__).with_name("kit_adapter.py")


@cache
def _adapters() -> Registry:
    return discover(PluginSelection(files=(str(KIT_ADAPTER),), entry_points=False))


def adapted_model(cache: Path, device: str, dtype: str, saved: Path | None = None) -> LoadedModel:
    """The small model with the adapter of the kit, whose weights are moved; or with the adapter in `saved`."""
    from smollm3_finetune.api import Purpose

    request = ModelRequest(
        ref=str(small_model_directory()),
        adapter=None if saved else ComponentConfig(name="kit-scale"),
        adapter_path=saved,
        purpose=Purpose.TRAIN,
        compared=True,
    )
    about = context(cache, device=device, dtype=dtype)
    loaded = compose(plan_model(_adapters(), select_model(_adapters(), request), about))
    if saved is None:
        push(loaded.model)
    return loaded


@dataclass(frozen=True, kw_only=True)
class Step:
    """The first optimizer step on some rows."""

    loss: float
    """The sum of the losses of its forward passes, as the Trainer scales them."""
    gradients: Mapping[str, Tensor]
    counted: float | None
    """`num_items_in_batch`."""


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Keeps losses in full precision and the gradients before the first step."""

    def __init__(self, trainer: Any) -> None:
        self.losses: list[Tensor] = []
        self.gradients: dict[str, Tensor] = {}
        self.counted: float | None = None
        own = trainer.training_step

        def training_step(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            self.counted = None if num_items_in_batch is None else float(num_items_in_batch)
            loss = own(model, inputs, num_items_in_batch)
            self.losses.append(loss.detach())
            return loss

        trainer.training_step = training_step
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.gradients:
            named = model.named_parameters()
            self.gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}


@dataclass(frozen=True)
class Lab:
    """An objective with a model, as a run composes them."""

    objective: Objective
    loaded: LoadedModel
    examples: Sequence[Example]
    batches: Batches
    train: TrainConfig
    refer: Callable[[Any, Any], Any] | None = None
    """Adds the values of the reference to a batch. It is the model without its adapter, whatever the descriptor says."""

    @property
    def model(self) -> Any:
        return self.loaded.model

    def batch(self, rows: Sequence[Example]) -> Any:
        """The batch of some rows, on the device of the model."""
        batch = on_device(self.batches([{n: list(v) for n, v in r.items()} for r in rows]), self.model)
        return batch if self.refer is None else self.refer(self.model, batch)

    def held_out(self, rows: Sequence[Example]) -> tuple[float, int]:
        """The summed held-out loss of some rows in one batch, and the number of its terms."""
        with evaluating(self.model), torch.no_grad():
            return self.objective.loss_sum(self.model, self.batch(rows))

    def row_losses(self, rows: Sequence[Example]) -> tuple[Tensor, Tensor] | None:
        """The held-out loss and terms of each row, in one batch; None if the objective does not have the method."""
        if not isinstance(self.objective, RowObjective):
            return None
        with evaluating(self.model), torch.no_grad():
            return self.objective.row_losses(self.model, self.batch(rows))

    def trainer(self, out: Path, steps: int, *, accumulation: int = 1, save_every: int | None = None) -> Any:
        from dataclasses import replace

        size = -(-len(self.examples) // accumulation)
        settings = replace(
            self.train, max_steps=steps, batch_size=size, gradient_accumulation=accumulation, save_every=save_every
        )
        out.mkdir(parents=True, exist_ok=True)
        plan = self.loaded.plan.context
        args = arguments(RunConfig(train=settings), plan.device, plan.dtype, out)
        callback = RunCallback(self.loaded, out / "metrics", NoDisplay(), started=0.0)
        examples = [{n: list(v) for n, v in e.items()} for e in self.examples]
        return make_trainer(self.loaded, self.objective, examples, self.batches, args, callback, refer=self.refer)

    def step(self, *, accumulation: int = 1) -> Step:
        """One optimizer step on all rows, in `accumulation` batches."""
        with tempfile.TemporaryDirectory(prefix="smollm3-kit-") as out:
            trainer = self.trainer(Path(out), 1, accumulation=accumulation)
            watch = _Watch(trainer)
            trainer.train()
        return Step(loss=float(sum(watch.losses)), gradients=watch.gradients, counted=watch.counted)


@contextlib.contextmanager
def lab(
    objective: Objective, examples: Sequence[Example], cache: Path, *, device: str, dtype: str, flat: bool,
    saved: Path | None = None,
) -> Iterator[Lab]:  # fmt: skip
    """A model for the batches of `objective`, padded or `flat`, while the context is open."""
    train = TrainConfig(
        padding="never" if flat else "always", learning_rate=1e-3, warmup=0.0, schedule="constant", max_grad_norm=1e9
    )
    loaded = adapted_model(cache, device, dtype, saved)
    with (
        batching(train, loaded, objective, loaded.tokenizer, lambda line: None) as batches,
        mock.patch.object(gc, "collect", return_value=0),  # each Trainer runs it twice, longer than its steps
    ):
        refer = None
        if isinstance(objective, ReferenceObjective):
            refer = EachBatch(objective=objective, context=without_adapter).in_step
        yield Lab(objective, loaded, examples, batches, train, refer)
