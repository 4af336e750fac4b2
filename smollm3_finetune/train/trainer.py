"""transformers' Trainer, adjusted for an `Adapted` model: its own save and restore, and the order of rows."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, TrainingArguments

from smollm3_finetune.api import CountedObjective, Objective, Observer
from smollm3_finetune.batching.filler import IDLE, Filled
from smollm3_finetune.batching.order import LengthGrouped, Shuffled
from smollm3_finetune.errors import (
    ConfigError,
    ModelError,
    PluginError,
    SmolLM3Error,
    first_line,
    is_resource_error,
)
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.room import check_room, checkpoint_bytes
from smollm3_finetune.model.load import LoadedModel
from smollm3_finetune.runs.checkpoints import Checkpoints
from smollm3_finetune.train.callback import RunCallback
from smollm3_finetune.train.compiling import configure_compile
from smollm3_finetune.train.distributed.sharded_trainer import ShardedTrainer
from smollm3_finetune.train.distributed.sharding import gathered_weights
from smollm3_finetune.train.distributed.unused import find_unused
from smollm3_finetune.train.finite import STABILITY_HINT, check_weights
from smollm3_finetune.train.learning_rate import recompute, start_above_zero
from smollm3_finetune.train.plugin_optimizer import PluginOptimizer
from smollm3_finetune.train.resumed_state import check_state
from smollm3_finetune.train.save_times import SaveTimes

if TYPE_CHECKING:
    from transformers import Trainer

    from smollm3_finetune.batching.packing import Ints


class AdaptedTrainer(ShardedTrainer):
    """A mixin for an objective's Trainer class; `loaded` is set before training begins."""

    lengths: Ints | None = None
    """The lengths of the examples, if batches are grouped by length."""
    saved_steps: int | None = None
    """The steps of the whole run when its checkpoint was saved."""
    order: Shuffled | None = None
    """The order of the examples in each pass."""
    count_terms: Callable[[Mapping[str, Any]], int] | None = None
    """The objective's `terms`, if it has this method."""
    refer: Callable[[Any, Any], Any] | None = None
    """Adds the values of the reference to a batch, if the loss has one that is computed in each step."""
    idle: bool = False
    """Whether this process has no rows for the current batch, so that its loss counts nothing (`batching.filler`)."""
    counted: bool = True
    """Whether the loss of every step so far was divided by the number of its terms."""
    save_times: SaveTimes
    own_optimizer: PluginOptimizer | None = None
    """The optimizer of a plugin."""
    optimizer: Any
    rates: Mapping[str, float] = MappingProxyType({})
    """The learning rates of the groups after the first one that differ from it, in the last step."""
    observer: Observer | None = None
    """Receives every checkpoint."""
    keep: int
    """The number of checkpoints that are kept."""
    with_best: Callable[[str], str]
    """Adds the place of the best adapter so far to a sentence."""
    tokens_seen: Any = 0
    """Tokens seen by this process since it started: a number, or a tensor with one element."""
    largest: int = 0
    """The tokens of the largest batch of this process, with padding."""
    tokens_before: int = 0
    """Tokens seen by all processes before the checkpoint from which the run continues."""

    def tokens_of_all(self) -> int:
        """The tokens that all processes have seen in the whole run; every process must call this."""
        import torch

        accelerator = self.accelerator  # type: ignore[attr-defined]
        return self.tokens_before + int(
            accelerator.reduce(torch.tensor(int(self.tokens_seen), device=accelerator.device))
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        """The terms of the loss in a step, as the objective counts them; with several processes, their mean.

        Gradients are averaged over the processes, so a loss divided by this mean has the gradient of all their rows.
        The batch of a process without rows has no terms.
        """
        import torch

        own = [batch for batch in batch_samples if IDLE not in batch]
        if self.count_terms is None:
            count = super()._get_num_items_in_batch(own or batch_samples, device)  # type: ignore[misc]
            count = count if own or count is None else count * 0
        else:
            count = torch.tensor(sum(int(self.count_terms(batch)) for batch in own), device=device)
        self.counted &= count is not None
        processes: int = self.args.world_size  # type: ignore[attr-defined]
        if count is None or processes == 1:
            return count
        return self.accelerator.reduce(count.to(device)) / processes  # type: ignore[attr-defined]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = inputs if self.refer is None else self.refer(model, inputs)
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        return loss * 0 if self.idle else loss

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.idle = IDLE in inputs
        if self.idle:
            inputs = {name: value for name, value in inputs.items() if name != IDLE}
        else:
            self.tokens_seen = self.tokens_seen + self._tokens_in(inputs)
            self.largest = max(self.largest, _size(inputs))
        return super().training_step(model, inputs, *args, **kwargs)

    def _tokens_in(self, inputs: Mapping[str, Any]) -> Any:
        """The tokens of a batch without padding; a tensor if converting it to a number would wait for the GPU."""
        mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
        if ids is None:  # the objective uses other names
            return 0 if mask is None else mask.sum()
        return ids.numel() if mask is None else mask.sum()

    def _get_train_sampler(self, train_dataset: Any = None) -> Shuffled:
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        rows = self.train_dataset if train_dataset is None else train_dataset  # type: ignore[attr-defined]
        fills = rows.fills if isinstance(rows, Filled) else 0
        if self.lengths is not None:
            self.order = LengthGrouped(self.lengths, args.train_batch_size * args.world_size, args.seed, fills)
        else:
            self.order = Shuffled(len(rows) - fills, args.seed, fills)
        return self.order

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """That of a plugin, or of transformers. Raises ConfigError if transformers cannot create it, or PluginError."""
        if self.own_optimizer is not None:
            if self.optimizer is None:
                self.optimizer = self.own_optimizer.create()
            return self.optimizer
        try:
            return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        except (ValueError, ImportError, NotImplementedError) as e:
            name = self.args.optim  # type: ignore[attr-defined]
            raise ConfigError(
                f"train.optimizer={getattr(name, 'value', name)} cannot be created: {first_line(e)}",
                hint="--set train.optimizer=adamw_torch",
            ) from e

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        """The schedule of transformers, except that the first step of a run has a learning rate above zero."""
        had = getattr(self, "lr_scheduler", None) is not None
        scheduler = super().create_scheduler(num_training_steps, *args, **kwargs)  # type: ignore[misc]
        if not had:
            start_above_zero(scheduler, self.args.get_warmup_steps(num_training_steps))  # type: ignore[attr-defined]
        return scheduler

    def _get_learning_rate(self) -> float:
        """The learning rate of the first group; those of other groups are kept for `log`."""
        if self.own_optimizer is not None:
            now = self.lr_scheduler.get_last_lr()  # type: ignore[attr-defined]
            self.rates = {key: float(now[index]) for index, key in self.own_optimizer.rate_names.items()}
        return float(super()._get_learning_rate())  # type: ignore[misc]

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if "learning_rate" in logs:
            logs |= self.rates
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """The norm of the gradients. If it is not finite, the weights are saved before the step ruins them.

        In float16 such gradients are usual: the gradient scaler skips the step.
        """
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        if not self.args.fp16 and not math.isfinite(float(norm)):  # type: ignore[attr-defined]
            self.save_before_failure(f"the gradient norm became {float(norm)}")
        return norm

    def save_before_failure(self, failure: str) -> None:
        """Save a checkpoint of the steps that were taken, unless there is one, and raise SmolLM3Error."""
        state = self.state  # type: ignore[attr-defined]
        step, place = state.global_step, self.checkpoints
        if step and not place.at(step).is_dir():
            state.num_input_tokens_seen = self.tokens_of_all()
            self._save_checkpoint(self.model, None)  # type: ignore[attr-defined]
        kept = f"the checkpoint {place.at(step)} has the weights of step {step}" if step else "nothing was trained"
        raise SmolLM3Error(f"{failure} in step {step + 1}; {kept}", hint=STABILITY_HINT)

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(Path(self.args.output_dir))  # type: ignore[attr-defined]

    def _get_output_dir(self, trial: Any) -> str:
        """The directory in which a checkpoint is written, before it is published."""
        return str(self.checkpoints.partial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside the others, and publish it when all processes have written their part."""
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        began, wait = time.monotonic(), self.accelerator.wait_for_everyone  # type: ignore[attr-defined]
        with self._writing_checkpoint() if args.should_save else contextlib.nullcontext():
            wait()
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            wait()
            if args.should_save:
                self.checkpoints.finish(self.state.global_step, self.keep)  # type: ignore[attr-defined]
        wait()
        self.save_times.saved(began)
        if args.should_save and self.observer is not None:
            step = self.state.global_step  # type: ignore[attr-defined]
            self.observer.saved(step, self.checkpoints.at(step).absolute())

    @contextlib.contextmanager
    def _writing_checkpoint(self) -> Iterator[None]:
        """Check the free space, and convert a failed write into a WriteError that says which checkpoint is usable."""
        place, before = self.checkpoints, self.checkpoints.all()
        left = f"{before[-1].path} is complete" if before else "there is no earlier checkpoint"
        resume = f"smollm3 train --resume {shlex.quote(str(place.path.parent))}" if before else ""
        trained = sum(p.numel() for p in self.loaded.model.parameters() if p.requires_grad)
        needed = checkpoint_bytes(before[-1].path if before else None, trained)
        check_room(place.path, needed, "the next checkpoint", left=left)
        target = place.at(self.state.global_step)  # type: ignore[attr-defined]
        with place.unfinished(), writing(target, left=left, again=resume):
            yield

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save with `_save`, even if the processes share weights."""
        self._save(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save what the adapter saves, not the state of the module."""
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        with gathered_weights(self.loaded.model):
            step = self.state.global_step  # type: ignore[attr-defined]
            check_weights(self.loaded, step, self.with_best("no checkpoint was saved"))
            if args.should_save:
                self.loaded.write(Path(output_dir or args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Checks the state that is read next. No weights: a resumed run is composed with the checkpoint's adapter."""
        with _attributed_to_checkpoint(resume_from_checkpoint):
            check_state(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _attributed_to_checkpoint(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.saved_steps != self.state.max_steps:  # type: ignore[attr-defined]
            recompute(self.lr_scheduler)  # type: ignore[attr-defined]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _attributed_to_checkpoint(checkpoint):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _attributed_to_checkpoint(checkpoint):
            super()._load_scaler(checkpoint)  # type: ignore[misc]


def _size(inputs: Mapping[str, Any]) -> int:
    """The tokens of a batch, with padding; 0 if the objective uses other names."""
    ids = inputs.get("input_ids", inputs.get("attention_mask"))
    return 0 if ids is None else int(ids.numel())


@contextlib.contextmanager
def _attributed_to_checkpoint(checkpoint: str | None) -> Iterator[None]:
    """Converts an error while a checkpoint is read into a ModelError that names the checkpoint."""
    try:
        yield
    except Exception as e:
        if checkpoint is None or is_resource_error(e):
            raise
        raise ModelError(
            f"the checkpoint {checkpoint} is damaged: {type(e).__name__}: {first_line(e)}",
            hint=f"rm -r {shlex.quote(checkpoint)}",
        ) from e


@contextlib.contextmanager
def _accepted_as_trainable(model: Any) -> Iterator[None]:
    """Make the Trainer accept a quantized model without a PEFT adapter while the context is open.

    Negotiation has already checked that this adapter can train on this base, so the flag that the Trainer reads is set.
    """
    had = getattr(model, "_hf_peft_config_loaded", None)
    model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        if had is None:
            del model._hf_peft_config_loaded
        else:
            model._hf_peft_config_loaded = had


def trained_dtypes(loaded: LoadedModel) -> set[str]:
    """The dtypes of the trained parameters, by torch's names."""
    return {str(p.dtype).removeprefix("torch.") for p in loaded.model.parameters() if p.requires_grad}


def _check_trained(loaded: LoadedModel, args: TrainingArguments) -> None:
    """Raises PluginError if no parameter is trained, or if the gradient scaler does not support a trained dtype."""
    assert loaded.plan.adapter is not None
    title, found = loaded.plan.adapter.component.title, trained_dtypes(loaded)
    if not found:
        raise PluginError(f"{title} leaves nothing to train: no parameter requires a gradient")
    if args.fp16 and "float16" in found:
        raise PluginError(
            f"{title} has trained weights in float16, but the gradient scaler does not support float16 gradients",
            hint="--dtype bfloat16 or --dtype float32",
        )


def make_trainer(
    loaded: LoadedModel,
    objective: Objective,
    examples: Any,
    collate: Callable[[list[dict[str, Any]]], Any],
    args: TrainingArguments,
    callback: RunCallback,
    *,
    keep: int = 2,
    saved_steps: int | None = None,
    lengths: Ints | None = None,
    refer: Callable[[Any, Any], Any] | None = None,
    optimizer: PluginOptimizer | None = None,
) -> Trainer:
    """The objective's Trainer for an adapted model. Raises PluginError if nothing can be trained.

    `keep` checkpoints are kept. A resumed run had `saved_steps` steps when its checkpoint was saved. If `lengths` of
    the examples are given, each batch has rows of similar length. `refer` adds the values of the reference to a batch.
    `optimizer` is that of a plugin: the parameters that it does not train are frozen.
    """
    _check_trained(loaded, args)
    if optimizer is not None:
        optimizer.freeze()
    own = objective.trainer_class()
    about: dict[str, Any] = {
        "loaded": loaded, "lengths": lengths, "save_times": callback.save_times, "keep": keep,
        "observer": callback.observer,
        "with_best": staticmethod(callback.measuring.with_best if callback.measuring is not None else str),
        "saved_steps": saved_steps, "refer": None if refer is None else staticmethod(refer), "own_optimizer": optimizer,
    }  # fmt: skip
    if isinstance(objective, CountedObjective):
        about |= {"count_terms": staticmethod(objective.terms), "loss_is_scaled_for_ga": True}
    cls = type(f"Adapted{own.__name__}", (AdaptedTrainer, own), about)
    if args.torch_compile:
        configure_compile()
    if args.world_size > 1:
        examples = Filled(examples, args.train_batch_size * args.world_size)
    with _accepted_as_trainable(loaded.model):
        trainer: Trainer = cls(
            model=loaded.model,
            args=args,
            train_dataset=examples,
            data_collator=callback.draws.watched(collate),
            callbacks=[callback],
        )
    trainer.remove_callback(PrinterCallback)
    callback.trainer = trainer
    callback.draws.device = args.device
    handler = getattr(trainer.accelerator, "ddp_handler", None)  # the Trainer sets it if the arguments leave it open
    if handler is not None and trainer.accelerator.distributed_type.value.startswith("MULTI_"):
        handler.find_unused_parameters = _find_unused(trainer, loaded, collate([examples[0]]))
    return trainer


def _find_unused(trainer: Trainer, loaded: LoadedModel, batch: Any) -> bool:
    """The setting of DDP for this model, from the graph of one batch; random numbers are as they were before."""
    import torch

    devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
    training = loaded.model.training
    with torch.random.fork_rng(devices=devices):
        loaded.model.train()
        loss = trainer.compute_loss(loaded.model, trainer._prepare_inputs(batch))
    loaded.model.train(training)
    return find_unused(loaded.model, loss, loaded.base.model.config.to_dict())
