"""The machine of a trial: the name of the card beside each figure. Imports torch; names no host, user or directory."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def machine(device: str) -> dict[str, Any]:
    """The device and its name, and what its figures depend on."""
    import psutil
    import torch

    about: dict[str, Any] = {
        "device": device,
        "name": processor(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": int(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if device.partition(":")[0] == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "name": properties.name,
            "memory": int(properties.total_memory),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda or f"ROCm {torch.version.hip}",
            "devices": torch.cuda.device_count(),
        }
    elif device.partition(":")[0] == "xpu":
        about["name"] = torch.xpu.get_device_name(device)
    elif device == "mps":
        about["name"] = f"{processor()} GPU"
    return about


def processor() -> str:
    """The name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
