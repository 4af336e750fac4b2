"""transformers' Trainer with what an `Adapted` model needs: its own save, its own restore, its step hook."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.training_args import OptimizerNames

from smollm3_finetune.api import Objective
from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.errors import ConfigError, ModelError, PluginError
from smollm3_finetune.hf_calls import first_line
from smollm3_finetune.model import LoadedModel
from smollm3_finetune.options import did_you_mean
from smollm3_finetune.train.compiling import settle_compiler
from smollm3_finetune.train.order import LengthGrouped, Shuffled

if TYPE_CHECKING:
    from transformers import Trainer

    from smollm3_finetune.batching.packing import Ints
    from smollm3_finetune.train.display import Display


def arguments(config: RunConfig, device: str, dtype: str, output: Path) -> TrainingArguments:
    """Our configuration in the words of `TrainingArguments`."""
    t = config.train
    kind = device.partition(":")[0]
    schedule_kwargs = {"min_lr_rate": t.min_learning_rate} if t.schedule == "cosine_with_min_lr" else {}
    warmup: dict[str, Any] = {"warmup_steps": t.warmup}  # a value below 1 is a fraction of the steps
    if t.optimizer not in set(OptimizerNames):
        near = did_you_mean(t.optimizer, [str(o.value) for o in OptimizerNames])
        raise ConfigError(
            f"train.optimizer: transformers' Trainer has no optimiser {t.optimizer!r}",
            hint=f"did you mean {near!r}?" if near else "train.optimizer=adamw_torch",
        )
    return TrainingArguments(
        output_dir=str(output),
        max_steps=t.max_steps if t.max_steps is not None else -1,
        num_train_epochs=t.epochs,
        per_device_train_batch_size=t.batch_size,
        gradient_accumulation_steps=t.gradient_accumulation,
        learning_rate=t.learning_rate,
        lr_scheduler_type=t.schedule,
        lr_scheduler_kwargs=schedule_kwargs,
        **warmup,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        optim=t.optimizer,
        **({"gradient_checkpointing": True} if t.gradient_checkpointing else {}),
        **({"torch_compile": True, "tf32": False} if t.compile else {}),  # else Trainer switches TF32 on with it
        logging_steps=t.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps" if t.save_every else "no",
        save_steps=t.save_every or 500,
        save_total_limit=t.keep_checkpoints,
        seed=config.seed,
        use_cpu=kind == "cpu",
        bf16=kind != "cpu" and dtype == "bfloat16",
        fp16=kind != "cpu" and dtype == "float16",
        dataloader_pin_memory=kind == "cuda",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )


class AdaptedTrainer:
    """Mixed in front of an objective's Trainer class; `loaded` is set before training begins."""

    loaded: LoadedModel
    lengths: Ints | None = None
    """Of the examples, where batches are grouped by them."""
    tokens_seen: int = 0
    """By this process."""

    def tokens_of_all(self) -> int:
        """The tokens that all processes have seen, each of which has to ask."""
        import torch

        accelerator = self.accelerator  # type: ignore[attr-defined]
        return int(accelerator.reduce(torch.tensor(self.tokens_seen, device=accelerator.device)))

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask")
        self.tokens_seen += int(mask.sum() if mask is not None else inputs["input_ids"].numel())
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _get_train_sampler(self, train_dataset: Any = None) -> Shuffled:
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        rows = self.train_dataset if train_dataset is None else train_dataset  # type: ignore[attr-defined]
        if self.lengths is not None:
            return LengthGrouped(self.lengths, args.train_batch_size * args.world_size, args.seed)
        return Shuffled(len(rows), args.seed)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint holds what the adapter saves, not what the module happens to be."""
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        if not args.should_save:
            return
        self.loaded.save(Path(output_dir or args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: a resumed run was composed with the checkpoint's adapter already."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _blamed_on_checkpoint(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _blamed_on_checkpoint(checkpoint):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]


@contextlib.contextmanager
def _blamed_on_checkpoint(checkpoint: str | None) -> Iterator[None]:
    """What goes wrong while a checkpoint is read becomes a ModelError that names it."""
    try:
        yield
    except Exception as e:
        if checkpoint is None or type(e).__name__ == "OutOfMemoryError":
            raise
        raise ModelError(
            f"the checkpoint {checkpoint} is damaged: {type(e).__name__}: {first_line(e)}", hint=f"rm -r {checkpoint}"
        ) from e


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Calls the adapter after each optimiser step, writes metrics, and shows them."""

    def __init__(self, loaded: LoadedModel, metrics: Path, display: Display, started: float) -> None:
        self.loaded = loaded
        self.metrics = metrics
        self.display = display
        self.started = started
        """When the run began, on the monotonic clock."""
        self.seconds_to_first_step: float | None = None
        """To the end of the first step that this process makes."""
        self.trainer: Any = None
        self.last_log = 0.0
        self.shown_tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last_log = time.monotonic()
        self.display.begin(state.max_steps, state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.loaded.adapted is not None:
            self.loaded.adapted.on_step(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = round(time.monotonic() - self.started, 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        seen = self.trainer.tokens_of_all()
        if not math.isfinite(logs["loss"]):  # the same in all processes, so that none waits for another
            control.should_training_stop = True
        if not state.is_world_process_zero:
            return
        now = time.monotonic()
        tokens = seen - self.shown_tokens
        row = {
            "step": state.global_step,
            "epoch": round(float(logs.get("epoch", 0.0)), 4),
            "loss": float(logs["loss"]),
            "learning_rate": float(logs["learning_rate"]),
            "grad_norm": float(logs["grad_norm"]) if "grad_norm" in logs else None,
            "tokens_per_second": tokens / max(now - self.last_log, 1e-9),
            "memory_gb": resident_gb(),
        }
        self.last_log, self.shown_tokens = now, seen
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        self.display.step(row)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.display.end()


def resident_gb() -> float:
    """Memory in use: of the GPU where there is one, else the process's resident set. 1 GB = 10⁹ bytes."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9


@contextlib.contextmanager
def _accepted_as_trainable(model: Any) -> Iterator[None]:
    """Trainer refuses a quantised model that carries no PEFT adapter.

    Here negotiation has decided already that this adapter trains on this base, and any adapter may come, so the
    flag that Trainer looks at is set while it looks.
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


def make_trainer(
    loaded: LoadedModel,
    objective: Objective,
    examples: Any,
    collate: Callable[[list[dict[str, Any]]], Any],
    args: TrainingArguments,
    callback: RunCallback,
    lengths: Ints | None = None,
) -> Trainer:
    """The objective's Trainer, fitted to an adapted model. Raises PluginError where nothing would train.

    With the `lengths` of the examples, batches are of about one length.
    """
    if not any(p.requires_grad for p in loaded.model.parameters()):
        assert loaded.plan.adapter is not None
        raise PluginError(f"{loaded.plan.adapter.offer.title} left nothing to train: no parameter requires a gradient")
    own = objective.trainer_class()
    cls = type(f"Adapted{own.__name__}", (AdaptedTrainer, own), {"loaded": loaded, "lengths": lengths})
    if args.gradient_checkpointing and hasattr(loaded.model, "enable_input_require_grads"):
        loaded.model.enable_input_require_grads()
    if args.torch_compile:
        settle_compiler()
    with _accepted_as_trainable(loaded.model):
        trainer: Trainer = cls(
            model=loaded.model, args=args, train_dataset=examples, data_collator=collate, callbacks=[callback]
        )
    trainer.remove_callback(PrinterCallback)
    callback.trainer = trainer
    return trainer
