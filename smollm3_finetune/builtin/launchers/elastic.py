"""What torchrun and `accelerate launch` have in common: both start processes by torch's elastic agent."""

from __future__ import annotations

import os
from collections.abc import Mapping


def environment(processes: int, device: str) -> Mapping[str, str]:
    """Variables for the agent and the processes: time to save a checkpoint, and a share of the cores of a CPU."""
    found = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600"}
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found["OMP_NUM_THREADS"] = str(max(cores // processes, 1) if device == "cpu" else 1)
    return found
