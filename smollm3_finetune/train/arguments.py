"""Converts a run's configuration to transformers' `TrainingArguments`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.config.schema import RunConfig, TrainConfig
from smollm3_finetune.errors import ConfigError, did_you_mean
from smollm3_finetune.train.compiling import compiled

if TYPE_CHECKING:
    from transformers import TrainingArguments


def arguments(config: RunConfig, device: str, dtype: str, output: Path) -> TrainingArguments:
    """The `TrainingArguments` of a configuration."""
    from transformers import TrainingArguments

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
        **(_checkpointing() if t.gradient_checkpointing else {}),
        **(compiled() if t.compile else {}),
        logging_steps=t.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps" if t.save_every else "no",
        save_steps=t.save_every or 500,
        seed=config.seed,
        use_cpu=kind == "cpu",
        bf16=dtype == "bfloat16",
        fp16=kind != "cpu" and dtype == "float16",  # float16 gradients need a scaler, which does not exist on a CPU
        dataloader_pin_memory=kind == "cuda",
        remove_unused_columns=False,
        average_tokens_across_devices=False,  # AdaptedTrainer counts them, also for objectives with their own loss
        report_to=[],
        disable_tqdm=True,
    )
    _on_one_device(args, device)
    return args


def _checkpointing() -> dict[str, Any]:
    """Activation checkpointing, by the name that this version of transformers has for it; 5.x renamed the arguments."""
    from transformers import TrainingArguments

    names = {f.name for f in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _on_one_device(args: TrainingArguments, device: str) -> None:
    """Without a launcher, use only `device`; the Trainer would use the first GPU, or all GPUs."""
    import torch
    from accelerate.utils import DistributedType

    state = args.distributed_state
    if state is None or state.distributed_type != DistributedType.NO or ":" not in device:
        return
    args.__dict__["_setup_devices"] = torch.device(device)  # a cached property, which `args.device` reads
    args._n_gpu = 1
    kind = getattr(torch, device.partition(":")[0])
    if hasattr(kind, "set_device"):  # mps has no set_device: there is one device at most
        kind.set_device(device)


def check_optimizer(train: TrainConfig) -> None:
    """Raises ConfigError if the optimizer is unknown. Imports transformers only if it is not the default."""
    if train.optimizer == TrainConfig().optimizer:
        return
    from transformers.training_args import OptimizerNames

    names = [str(o.value) for o in OptimizerNames]
    if train.optimizer not in names:
        near = did_you_mean(train.optimizer, names)
        raise ConfigError(
            f"train.optimizer: transformers' Trainer has no optimizer {train.optimizer!r}",
            hint=f"did you mean {near!r}?" if near else "--set train.optimizer=adamw_torch",
        )
