"""The device and the dtype of a run."""

from __future__ import annotations

import gc
import os
import re
import sys
from pathlib import Path

from smollm3_finetune.config.schema import DTYPES
from smollm3_finetune.errors import ConfigError, IncompatibleError, did_you_mean
from smollm3_finetune.model_files.dtypes import full_name
from smollm3_finetune.model_files.imports import quick_imports

DEVICE = re.compile(r"([a-z]+)(:\d+)?")
KINDS = ("cpu", "cuda", "mps", "xpu", "npu", "hpu", "mlu", "musa", "sdaa", "xla", "neuron")
"""The device types of torch that transformers and accelerate compute on."""
SYNONYMS = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps", "apple": "mps"}
"""Other names that users type."""


def guess_device() -> str:
    """The device that `auto` would be, guessed without torch; for checks that load nothing."""
    if Path("/proc/driver/nvidia/version").exists():
        return "cuda"
    return "mps" if sys.platform == "darwin" and os.uname().machine == "arm64" else "cpu"


def check_device(device: str) -> None:
    """Raises ConfigError if `device` does not name a device that models run on."""
    match = DEVICE.fullmatch(device)
    if match and (device == "auto" or match[1] in KINDS):
        return
    near = SYNONYMS.get(match[1], did_you_mean(match[1], ("auto", *KINDS))) if match else None
    hint = f"did you mean {near!r}?" if near else "use --device cpu or --device cuda:0"
    if near not in (None, "cpu", "auto"):
        hint += " Without such a device: --device cpu"
    raise ConfigError(f"--device must be a torch device, not {device!r}", hint=hint)


def resolve_device(device: str, elsewhere: str | None = None) -> str:
    """The torch device of a run: the requested one, if it is available, or the best one for `auto`.

    Imports torch. Under a launcher each process uses the GPU of its local rank. `elsewhere` is the device type of the
    machines on which the run will execute, if these are others: it is not examined.
    """
    check_device(device)
    if elsewhere is not None and device.partition(":")[0] in ("auto", elsewhere):
        return elsewhere
    with quick_imports():
        import torch

    rank = os.environ.get("LOCAL_RANK", "0")
    if device == "auto":
        if torch.cuda.is_available():
            return f"cuda:{rank}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    module = getattr(torch, kind, None)
    if module is None or not module.is_available():  # other torch devices come with separate packages
        raise IncompatibleError(
            f"--device {device}: torch {torch.__version__} finds no {kind} device here", hint="use --device cpu"
        )
    if index and hasattr(module, "device_count") and int(index) >= module.device_count():
        raise IncompatibleError(
            f"--device {device}: there are {module.device_count()} {kind} devices", hint=f"use --device {kind}:0"
        )
    return device if index or kind != "cuda" else f"{kind}:{rank}"


def repeatable(device: str) -> str:
    """The device that a run's configuration stores: under a launcher without the index, which differs by process."""
    return device.partition(":")[0] if "LOCAL_RANK" in os.environ else device


def resolve_dtype(dtype: str, device: str, *, here: bool = True) -> str:
    """The dtype of a run; for `auto`: float32 on a CPU, bfloat16 if the GPU supports it, else float16.

    The GPU of another machine (not `here`) is assumed to support bfloat16; each process examines its own again.
    Raises ConfigError for an unknown dtype.
    """
    dtype = full_name(dtype)
    if dtype not in DTYPES:
        near = did_you_mean(dtype, DTYPES)
        hint = f"did you mean {near!r}?" if near else f"one of: {', '.join(DTYPES)}"
        raise ConfigError(f"--dtype takes a torch dtype, got {dtype!r}", hint=hint)
    if dtype != "auto":
        return dtype
    kind = device.partition(":")[0]
    if kind == "cuda" and here:
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "float32" if kind == "cpu" else "bfloat16"


def free_memory() -> None:
    """Free the memory of deleted models: adapters create reference cycles in them."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
