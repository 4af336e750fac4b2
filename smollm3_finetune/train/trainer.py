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

from smollm3_finetune.api import Objective
from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.errors import ConfigError, ModelError, PluginError, SmolLM3Error
from smollm3_finetune.hf_calls import first_line
from smollm3_finetune.model import LoadedModel
from smollm3_finetune.train.compiling import settle_compiler
from smollm3_finetune.train.order import LengthGrouped, Shuffled

if TYPE_CHECKING:
    from transformers import Trainer

    from smollm3_finetune.batching.packing import Ints
    from smollm3_finetune.train.display import Display

TAMER = "a lower --learning-rate, or --dtype float32"


def arguments(config: RunConfig, device: str, dtype: str, output: Path) -> TrainingArguments:
    """Our configuration in the words of `TrainingArguments`."""
    t = config.train
    kind = device.partition(":")[0]
    schedule_kwargs = {"min_lr_rate": t.min_learning_rate} if t.schedule == "cosine_with_min_lr" else {}
    warmup: dict[str, Any] = {"warmup_steps": t.warmup}  # a value below 1 is a fraction of the steps
    args = TrainingArguments(
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
        bf16=dtype == "bfloat16",
        fp16=kind != "cpu" and dtype == "float16",  # its gradients need a scaler, which a CPU has not
        dataloader_pin_memory=kind == "cuda",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    _on_one_device(args, device)
    return args


def _on_one_device(args: TrainingArguments, device: str) -> None:
    """Without a launcher `device` is where the run is; the Trainer would take the first GPU, or all of them at once."""
    import torch
    from accelerate.utils import DistributedType

    state = args.distributed_state
    if state is None or state.distributed_type != DistributedType.NO or ":" not in device:
        return
    args.__dict__["_setup_devices"] = torch.device(device)  # a cached property, which `args.device` reads
    args._n_gpu = 1
    getattr(torch, device.partition(":")[0]).set_device(device)


@contextlib.contextmanager
def computing(args: TrainingArguments) -> Iterator[None]:
    """Computes as the Trainer does in its steps: mixed precision where the run has it."""
    import torch

    if not (args.bf16 or args.fp16):
        yield
        return
    with torch.autocast(args.device.type, torch.bfloat16 if args.bf16 else torch.float16):
        yield


class AdaptedTrainer:
    """Mixed in front of an objective's Trainer class; `loaded` is set before training begins."""

    loaded: LoadedModel
    lengths: Ints | None = None
    """Of the examples, where batches are grouped by them."""
    order: Shuffled | None = None
    """Of the examples, in each pass."""
    tokens_seen: int = 0
    """By this process, since it started."""
    tokens_before: int = 0
    """By all processes, before the checkpoint from which the run goes on."""

    def tokens_of_all(self) -> int:
        """The tokens that all processes have seen in the whole run; each of them has to ask."""
        import torch

        accelerator = self.accelerator  # type: ignore[attr-defined]
        return self.tokens_before + int(accelerator.reduce(torch.tensor(self.tokens_seen, device=accelerator.device)))

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask")
        self.tokens_seen += int(mask.sum() if mask is not None else inputs["input_ids"].numel())
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _get_train_sampler(self, train_dataset: Any = None) -> Shuffled:
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        rows = self.train_dataset if train_dataset is None else train_dataset  # type: ignore[attr-defined]
        if self.lengths is not None:
            self.order = LengthGrouped(self.lengths, args.train_batch_size * args.world_size, args.seed)
        else:
            self.order = Shuffled(len(rows), args.seed)
        return self.order

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ConfigError for one that transformers knows and cannot make here."""
        try:
            return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        except (ValueError, ImportError, NotImplementedError) as e:
            name = self.args.optim  # type: ignore[attr-defined]
            raise ConfigError(
                f"train.optimizer={getattr(name, 'value', name)} cannot be made: {first_line(e)}",
                hint="--set train.optimizer=adamw_torch",
            ) from e

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint holds what the adapter saves, not what the module happens to be."""
        args: TrainingArguments = self.args  # type: ignore[attr-defined]
        if not args.should_save:
            return
        check_weights(self.loaded, self.state.global_step, "no checkpoint was saved")  # type: ignore[attr-defined]
        self.loaded.save(Path(output_dir or args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: a resumed run was composed with the checkpoint's adapter already."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _blamed_on_checkpoint(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _blamed_on_checkpoint(checkpoint):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]


def check_weights(loaded: LoadedModel, step: int, consequence: str) -> None:
    """Raises SmolLM3Error where something that was trained is not finite."""
    for name, parameter in loaded.model.named_parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            raise SmolLM3Error(
                f"the trained weights became infinite or nan by step {step} ({name}); {consequence}", hint=TAMER
            )


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
        state.logging_steps, state.save_steps = args.logging_steps, args.save_steps  # not those of a checkpoint
        self.trainer.tokens_before = self.shown_tokens = state.num_input_tokens_seen
        self.last_log = time.monotonic()
        self.display.begin(state.max_steps, state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A sampler inside what accelerate makes of it for several processes is not told which pass it is for."""
        if self.trainer.order is not None:
            self.trainer.order.set_epoch(int(float(state.epoch or 0) + 1e-6))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.loaded.adapted is not None:
            self.loaded.adapted.on_step(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.seconds_to_first_step is None:
            self.seconds_to_first_step = round(time.monotonic() - self.started, 1)
        if control.should_save:  # the Trainer's own callback came before this one, in all processes
            state.num_input_tokens_seen = self.trainer.tokens_of_all()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        seen = self.trainer.tokens_of_all()
        if not math.isfinite(logs["loss"]):  # the same in all processes, so that none waits for another
            control.should_training_stop = True
            control.should_save = False  # so that the checkpoints before it are kept
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


def trained_dtypes(loaded: LoadedModel) -> set[str]:
    """The number formats of what is trained, by torch's names."""
    return {str(p.dtype).removeprefix("torch.") for p in loaded.model.parameters() if p.requires_grad}


def _check_trained(loaded: LoadedModel, args: TrainingArguments) -> None:
    """Raises PluginError where nothing would train, or the gradient scaler could not."""
    assert loaded.plan.adapter is not None
    title, found = loaded.plan.adapter.offer.title, trained_dtypes(loaded)
    if not found:
        raise PluginError(f"{title} left nothing to train: no parameter requires a gradient")
    if args.fp16 and "float16" in found:
        raise PluginError(
            f"{title} keeps trained weights in float16, whose gradients cannot be scaled",
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
    """The objective's Trainer, fitted to an adapted model. Raises PluginError where nothing can be trained.

    With the `lengths` of the examples, batches are of about one length.
    """
    _check_trained(loaded, args)
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
