"""Several processes that train together, as torchrun or `accelerate launch` start them.

Each has the whole model and its share of every batch; transformers' Trainer adds gradients up. The first process alone
writes the run and speaks.
"""

from __future__ import annotations

import os
from pathlib import Path

from smollm3_finetune.errors import ConfigError


def world_size() -> int:
    """How many processes train together. Raises ConfigError where the launcher's variable is no number."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdigit() or not int(text):
        raise ConfigError(
            f"the environment variable WORLD_SIZE must be a number, and is {text!r}", hint="unset WORLD_SIZE"
        )
    return int(text)


def is_main_process() -> bool:
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def of_main_process(path: Path) -> Path:
    """The main process's value, in all of them: a directory that was named by the clock is one then.

    `TrainingArguments` must have been made, which connects the processes.
    """
    import torch.distributed as dist

    if world_size() == 1 or not dist.is_available() or not dist.is_initialized():
        return path
    values = [str(path)]
    dist.broadcast_object_list(values)
    return Path(values[0])
