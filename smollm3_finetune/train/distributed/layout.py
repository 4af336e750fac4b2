"""How many processes a run has, and what they share: of the launcher that will start them, or that started this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smollm3_finetune.api import LauncherSpec, Sharding
from smollm3_finetune.train.distributed.processes import world_size
from smollm3_finetune.train.distributed.sharding import is_requested, is_set, zero_stage


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The processes of a run."""

    processes: int | None = 1
    """None: the number may change while the run lasts."""
    sharding: Sharding = "none"


def of_launcher(spec: LauncherSpec, options: Any) -> Layout:
    """The layout of a run that a launcher with these options will start."""
    processes = 1 if spec.processes is None else spec.processes(options)
    return Layout(processes=processes, sharding="none" if spec.sharding is None else spec.sharding(options))


def of_environment() -> Layout:
    """The layout of the run that this process is a part of. Raises ConfigError if WORLD_SIZE is not a number."""
    return Layout(processes=world_size(), sharding=_sharding())


def _sharding() -> Sharding:
    if is_requested():
        return "fsdp2"
    if is_set("ACCELERATE_USE_DEEPSPEED"):
        return "zero1" if zero_stage() == "1" else "zero2"
    return "none"
