"""Weights that a launcher has several processes share (FSDP, DeepSpeed): what is supported, and how they are saved.

FSDP of version 2 shards a model in place, so that it trains, measures and answers as ever. What is saved is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import ConfigError, IncompatibleError

if TYPE_CHECKING:
    from torch import nn

RAM_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def check_sharding() -> None:
    """Raises IncompatibleError or ConfigError for a launcher's settings that cannot be had here."""

    def asked(variable: str) -> bool:
        return os.environ.get(variable, "false").lower() in ("true", "1")

    if asked("ACCELERATE_USE_DEEPSPEED") and _zero_stage() == "3":
        raise IncompatibleError(
            "DeepSpeed's ZeRO 3 cuts weights up while they are loaded, before an adapter is attached",
            hint="accelerate launch --use_fsdp --fsdp_version 2, or --zero_stage 2",
        )
    if not asked("ACCELERATE_USE_FSDP"):
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise IncompatibleError(
            "FSDP of version 1 wraps the model, which an adapter cannot be saved from",
            hint="accelerate launch --use_fsdp --fsdp_version 2",
        )
    if asked(RAM_EFFICIENT):  # each process looks at its own weights, which all but the first would not have
        raise ConfigError(
            "FSDP is told to load weights in one process only, and each one needs them",
            hint="accelerate launch --fsdp_cpu_ram_efficient_loading false",
        )


def _zero_stage() -> str:
    """Of DeepSpeed, as text: from its own configuration where it has one."""
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file and file != "none":
        try:
            return str(json.loads(Path(file).read_text(encoding="utf-8"))["zero_optimization"]["stage"])
        except (OSError, ValueError, TypeError, KeyError):  # DeepSpeed itself says what is wrong with it
            return ""
    return os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")


@contextmanager
def gathered_weights(model: nn.Module) -> Iterator[None]:
    """Parameters that are shared are whole in every process while the context is open; all have to enter it.

    Changes to them are lost. Does nothing where none is shared.
    """
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        yield
        return
    from torch.distributed.tensor import DTensor

    found: dict[int, Any] = {}
    replaced: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in found:  # tied ones once
                tensor = parameter.detach().full_tensor()
                found[id(parameter)] = torch.nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            replaced.append((module, name, parameter))
            module._parameters[name] = found[id(parameter)]
    try:
        yield
    finally:
        for module, name, parameter in replaced:
            if module._parameters[name] is found[id(parameter)]:  # else a forward had FSDP put its own there
                module._parameters[name] = parameter
