"""transformers' Trainer, adjusted for an `Adapted` model: its own save and restore, and the order of rows."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, TrainingArguments

from smollm3_finetune.api import Objective
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.batching.filler import FILL_TOKENS, Filled, filled
from smollm3_finetune.batching.order import LengthGrouped, Shuffled
from smollm3_finetune.errors import ConfigError, ModelError, PluginError, first_line, is_resource_error
from smollm3_finetune.model.load import LoadedModel
from smollm3_finetune.train.callback import RunCallback
from smollm3_finetune.train.compiling import configure_compile
from smollm3_finetune.train.distributed.sharding import gathered_weights
from smollm3_finetune.train.distributed.unused import find_unused
from smollm3_finetune.train.finite import check_weights

if TYPE_CHECKING:
    from transformers import Trainer

    from smollm3_finetune.batching.packing import Ints


class AdaptedTrainer:
    """A mixin for an objective's Trainer class; `loaded` is set before training begins."""

    loaded: LoadedModel
    lengths: Ints | None = None
    """The lengths of the examples, if batches are grouped by length."""
    order: Shuffled | None = None
    """The order of the examples in each pass."""
    tokens_seen: Any = 0
    """Tokens seen by this process since it started: a number, or a tensor with one element."""
    tokens_before: int = 0
    """Tokens seen by all processes before the checkpoint from which the run continues."""

    def tokens_of_all(self) -> int:
        """The tokens that all processes have seen in the whole run; every process must call this."""
        import torch

        accelerator = self.accelerator  # type: ignore[attr-defined]
        return self.tokens_before + int(
            accelerator.reduce(torch.tensor(int(self.tokens_seen), device=accelerator.device))
        )

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.tokens_seen = self.tokens_seen + self._tokens_in(inputs)
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _tokens_in(self, inputs: Mapping[str, Any]) -> Any:
        """The tokens of a batch without padding; a tensor if converting it to a number would wait for the GPU."""
        mask, ids, labels = inputs.get("attention_mask"), inputs.get("input_ids"), inputs.get("labels")
        if ids is None:  # the objective uses other names
            return 0 if mask is None else mask.sum()
        if ids.numel() == FILL_TOKENS and labels is not None and not bool((labels != IGNORE_INDEX).any()):
            return 0  # a filler example
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
        """Raises ConfigError if transformers knows the optimizer but cannot create it."""
        try:
            return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        except (ValueError, ImportError, NotImplementedError) as e:
            name = self.args.optim  # type: ignore[attr-defined]
            raise ConfigError(
                f"train.optimizer={getattr(name, 'value', name)} cannot be created: {first_line(e)}",
                hint="--set train.optimizer=adamw_torch",
            ) from e

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save with `_save`, even if the processes share weights."""
        self._save(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save what the adapter saves, not the state of the module."""
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        with gathered_weights(self.loaded.model):
            if args.should_save:
                step = self.state.global_step  # type: ignore[attr-defined]
                check_weights(self.loaded, step, "no checkpoint was saved")
                self.loaded.save(Path(output_dir or args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Does nothing: a resumed run is composed with the checkpoint's adapter."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _attributed_to_checkpoint(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _attributed_to_checkpoint(checkpoint):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]


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
    lengths: Ints | None = None,
) -> Trainer:
    """The objective's Trainer for an adapted model. Raises PluginError if nothing can be trained.

    If `lengths` of the examples are given, each batch has rows of similar length.
    """
    _check_trained(loaded, args)
    own = objective.trainer_class()
    cls = type(f"Adapted{own.__name__}", (AdaptedTrainer, own), {"loaded": loaded, "lengths": lengths})
    if args.torch_compile:
        configure_compile()
    examples = filled(examples, args.train_batch_size * args.world_size) if args.world_size > 1 else examples
    with _accepted_as_trainable(loaded.model):
        trainer: Trainer = cls(
            model=loaded.model, args=args, train_dataset=examples, data_collator=collate, callbacks=[callback]
        )
    trainer.remove_callback(PrinterCallback)
    callback.trainer = trainer
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
