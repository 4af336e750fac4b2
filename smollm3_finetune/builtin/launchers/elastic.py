"""What torchrun and `accelerate launch` have in common: both start processes by torch's elastic agent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.builtin.launchers.checks import processes_here


def environment(options: Any, device: str) -> Mapping[str, str]:
    """Variables for the agent and the processes: time to save a checkpoint, and a share of the cores of a CPU.

    With restarts on several machines, each start of the processes gets a store of its own; the agent's keeps the
    addresses of ended processes (https://github.com/pytorch/pytorch/issues/135712).
    """
    found = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600"}
    if options.restarts and options.nodes > 1:
        found["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found["OMP_NUM_THREADS"] = str(max(cores // processes_here(options), 1) if device == "cpu" else 1)
    return found
