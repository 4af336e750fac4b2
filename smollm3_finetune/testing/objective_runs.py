"""Short training runs of one objective: the batches, the Trainer and the held-out loss of a run, on the small model."""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import torch
from transformers import TrainerCallback

from smollm3_finetune.api import RowObjective, without_adapter
from smollm3_finetune.api.helpers import evaluating
from smollm3_finetune.batching.probe import on_device
from smollm3_finetune.batching.strategy import Batches, batching
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.config.schema import ComponentConfig, RunConfig, TrainConfig
from smollm3_finetune.model.compare import push
from smollm3_finetune.model.load import LoadedModel, compose
from smollm3_finetune.model.plan import ModelRequest, plan_model, select_model
from smollm3_finetune.reference.computed import NAME, EachBatch, Values
from smollm3_finetune.reference.start import Start
from smollm3_finetune.testing.parts import context
from smollm3_finetune.testing.small import small_model_directory, small_source
from smollm3_finetune.train.arguments import arguments
from smollm3_finetune.train.callback import RunCallback
from smollm3_finetune.train.display import NoDisplay
from smollm3_finetune.train.trainer import make_trainer

if TYPE_CHECKING:
    from torch import Tensor

    from smollm3_finetune.api import Objective, ReferenceObjective
    from smollm3_finetune.components.registry import Registry

Example = dict[str, list[int]]
KIT_ADAPTER = Path(__file__).with_name("kit_adapter.py")


@cache
def _adapters() -> Registry:
    return discover(PluginSelection(files=(str(KIT_ADAPTER),), entry_points=False))


def adapted_model(cache: Path, device: str, dtype: str, saved: Path | None = None) -> LoadedModel:
    """The small model with the adapter of the kit: a fresh one, or the one in `saved`."""
    from smollm3_finetune.api import Purpose

    request = ModelRequest(
        ref=str(small_model_directory()),
        adapter=None if saved else ComponentConfig(name="kit-scale"),
        adapter_path=saved,
        purpose=Purpose.TRAIN,
        compared=True,
    )
    about = context(cache, device=device, dtype=dtype)
    return compose(plan_model(_adapters(), select_model(_adapters(), request), about))


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
    each: EachBatch | None = None
    """Adds the values of the reference to a batch, if the objective has one."""

    @property
    def model(self) -> Any:
        return self.loaded.model

    def batch(self, rows: Sequence[Example]) -> Any:
        """The batch of some rows, on the device of the model, with the values of the reference."""
        found = on_device(self.batches([{n: list(v) for n, v in r.items()} for r in rows]), self.model)
        return found if self.each is None else self.each(self.model, found, range(len(rows)))

    def reference(self, rows: Sequence[Example]) -> Values:
        """The values of the reference for some rows, computed in one batch."""
        found: Values = self.batch(rows)[NAME]
        return found

    def loss_sum(self, batch: Any) -> tuple[float, int]:
        """The summed held-out loss of a batch, and the number of its terms."""
        with evaluating(self.model), torch.no_grad():
            return self.objective.loss_sum(self.model, batch)

    def loss(self, batch: Any, values: Values, terms: int | None = None) -> float:
        """The loss of training on a batch with these values of the reference, without dropout."""
        with tempfile.TemporaryDirectory(prefix="smollm3-kit-") as out, evaluating(self.model), torch.no_grad():
            trainer = self.trainer(Path(out), 1)
            trainer.refer = None
            self.model.eval()
            counted = {} if terms is None else {"num_items_in_batch": torch.tensor(terms)}
            return float(trainer.compute_loss(self.model, {**batch, NAME: values}, **counted))

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
        refer = None if self.each is None else self.each.in_step
        return make_trainer(self.loaded, self.objective, examples, self.batches, args, callback, refer=refer)

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
    saved: Path | None = None, reference: str = "none",
) -> Iterator[Lab]:  # fmt: skip
    """A model for the batches of `objective`, padded or `flat`, while the context is open.

    Its weights are moved away from its start, or are those in `saved`.
    """
    train = TrainConfig(
        padding="never" if flat else "always", learning_rate=1e-3, warmup=0.0, schedule="constant", max_grad_norm=1e9
    )
    fresh = adapted_model(cache, device, dtype)
    start = Start(fresh.model)
    loaded = fresh
    if saved is None:
        push(fresh.model)
    else:
        loaded = adapted_model(cache, device, dtype, saved)
        start = Start(loaded.model, start.values())
    each = None
    if reference != "none" and hasattr(objective, "reference_values"):
        context = {"base": without_adapter, "start": start.at_start, "model": _other_model(device, dtype)}[reference]
        each = EachBatch(objective=cast("ReferenceObjective", objective), context=context)
    with (
        batching(train, loaded, objective, loaded.tokenizer, lambda line: None) as batches,
        mock.patch.object(gc, "collect", return_value=0),  # each Trainer runs it twice, longer than its steps
    ):
        yield Lab(objective, loaded, examples, batches, train, each)


def _other_model(device: str, dtype: str) -> Callable[[Any], contextlib.AbstractContextManager[Any]]:
    """A context that gives the small model with other weights."""

    @contextlib.contextmanager
    def context(model: Any) -> Iterator[Any]:
        with torch.no_grad():
            yield small_source(seed=1).load(dtype=getattr(torch, dtype)).to(device).eval()

    return context
