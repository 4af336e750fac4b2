"""Several processes that train together, started by torchrun or `accelerate launch`.

Each process has the whole model and its share of every batch; transformers' Trainer sums the gradients. Only the first
process writes the run and prints.
"""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

from smollm3_finetune.errors import ConfigError


def world_size() -> int:
    """The number of processes that train together. Raises ConfigError if WORLD_SIZE is not a positive integer."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or not int(text):
        raise ConfigError(
            f"the environment variable WORLD_SIZE must be a positive integer, not {text!r}", hint="unset WORLD_SIZE"
        )
    return int(text)


def is_main_process() -> bool:
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def of_main_process(path: Path) -> Path:
    """The main process's value of `path`, in every process: a directory named by the time would differ otherwise.

    Call it after `TrainingArguments` was created, which connects the processes.
    """
    import torch.distributed as dist

    if world_size() == 1 or not dist.is_available() or not dist.is_initialized():
        return path
    values = [str(path)]
    dist.broadcast_object_list(values)
    return Path(values[0])


def shut_down_processes() -> None:
    """Destroy the process group, if there is one; call it at the end of a program whose processes all succeeded.

    A process that exits while a thread of the group still holds a tensor may abort after all work is done
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    if world_size() == 1:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        gc.collect()  # an uncollected wrapped model would keep the threads alive
        with contextlib.suppress(RuntimeError):  # another process may have exited; everything is written already
            dist.destroy_process_group()
