"""Several processes that train together, as torchrun or `accelerate launch` start them.

Each has the whole model and its share of every batch; transformers' Trainer adds gradients up. The first process alone
writes the run and speaks.
"""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

from smollm3_finetune.errors import ConfigError


def world_size() -> int:
    """How many processes train together. Raises ConfigError where the launcher's variable is no number."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or not int(text):
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


def shut_down_processes() -> None:
    """End what connects the processes, if anything does; for the end of a program whose processes all went well.

    One that exits while a thread of the connection still holds a tensor may be aborted by it, when all work is done
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    if world_size() == 1:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        gc.collect()  # a wrapped model that is garbage would keep the threads alive
        with contextlib.suppress(RuntimeError):  # another process may be gone: everything is written by now
            dist.destroy_process_group()
