"""What torchrun and `accelerate launch` have in common: both start processes by torch's elastic agent."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping

ROOT = re.compile(r"Root Cause.*?rank\s*: (?P<rank>\d+)[^\n]*\n[^\n]*exitcode\s*: (?P<code>-?\d+)", re.DOTALL)
TIMEOUT = re.compile(r"RendezvousTimeoutError|RendezvousConnectionError|timed out", re.IGNORECASE)


def explain(text: str) -> str | None:
    """Which process failed first, in the output of the agent."""
    if (found := ROOT.search(text)) is not None:
        code = int(found["code"])
        if code < 0:
            return f"process {found['rank']} was killed by {_signal(-code)}"
        return f"process {found['rank']} ended with exit code {code}"
    if TIMEOUT.search(text):
        return "the machines did not meet in time"
    return None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def environment(processes: int, device: str) -> Mapping[str, str]:
    """Variables for the agent and the processes: time to save a checkpoint, and a share of the cores of a CPU."""
    found = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600"}
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found["OMP_NUM_THREADS"] = str(max(cores // processes, 1) if device == "cpu" else 1)
    return found
