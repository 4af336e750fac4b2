"""Sharded weights (FSDP, DeepSpeed): which launcher settings are supported, and how weights are saved.

FSDP 2 shards a model in place, so training, measuring and generating work unchanged. Saved weights are not sharded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.errors import ConfigError, IncompatibleError
from smollm3_finetune.files.limits import load_json
from smollm3_finetune.train.distributed.processes import is_main_process

if TYPE_CHECKING:
    from torch import nn

RAM_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"
WITHOUT_FSDP = "--launcher-opt profile=ddp, or start the processes without FSDP"


def check_environment() -> None:
    """Raises IncompatibleError or ConfigError if a setting of the launcher of this process is not supported."""
    if is_set("ACCELERATE_USE_DEEPSPEED") and zero_stage() == "3":
        raise IncompatibleError(
            "DeepSpeed ZeRO 3 is not supported: it shards weights while they are loaded, before an adapter is attached",
            hint="accelerate launch --use_fsdp --fsdp_version 2, or accelerate launch --zero_stage 2",
        )
    if not is_requested():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise IncompatibleError(
            "FSDP 1 is not supported: it wraps the model, and an adapter cannot be saved from the wrapper",
            hint="accelerate launch --use_fsdp --fsdp_version 2",
        )
    if is_set("FSDP_ACTIVATION_CHECKPOINTING"):
        raise IncompatibleError(
            "FSDP's own activation checkpointing is not supported: it renames the weights of the model",
            hint="accelerate launch --fsdp_activation_checkpointing false, and --set train.gradient_checkpointing=true",
        )
    if is_set(RAM_EFFICIENT):  # only the first process would have weights, but every process reads them
        raise ConfigError(
            "FSDP is configured to load weights in one process only, but every process needs them",
            hint="accelerate launch --fsdp_cpu_ram_efficient_loading false",
        )


def is_requested() -> bool:
    """Whether the launcher of this process asks for FSDP."""
    return is_set("ACCELERATE_USE_FSDP")


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def zero_stage() -> str:
    """DeepSpeed's ZeRO stage as text: from its configuration file if there is one."""
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file and file != "none":
        try:
            return str(load_json(Path(file))["zero_optimization"]["stage"])
        except (OSError, ValueError, TypeError, KeyError):  # DeepSpeed reports the error itself
            return ""
    return os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")


GATHERED_ON_DEVICE = 2**26
"""Bytes of a parameter that is gathered on the device of the run; larger ones are gathered on the CPU."""


def is_sharded(model: nn.Module) -> bool:
    """Whether the processes share parameters of the model."""
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in model.parameters())


def whole_tensor(shared: Any) -> Any:
    """The whole tensor of a DTensor; every process must call this. Offloaded parts go through the device."""
    device = shared.device_mesh.device_type
    return (shared if shared.device.type == device else shared.to(device)).full_tensor()


@contextmanager
def gathered_weights(model: nn.Module, *, everywhere: bool = False) -> Iterator[None]:
    """Gather sharded parameters in the main process while the context is open, for saving; all processes must enter it.

    `everywhere`: in all processes. The parameters are gathered one by one. Large ones are moved to the CPU: the device
    may have no room for the whole model. Other processes keep their parts. Changes to the weights are lost. Does
    nothing if no parameter is sharded.
    """
    import torch

    if not is_sharded(model):
        yield
        return
    from torch.distributed.tensor import DTensor

    found: dict[int, Any] = {}
    replaced: list[tuple[nn.Module, str, Any]] = []
    keeps = everywhere or is_main_process()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in found:  # tied parameters are gathered once
                tensor = whole_tensor(parameter.detach())
                if not keeps:
                    found[id(parameter)] = parameter
                    continue
                if tensor.nbytes > GATHERED_ON_DEVICE:
                    tensor = tensor.cpu()
                found[id(parameter)] = torch.nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            if keeps:
                replaced.append((module, name, parameter))
                module._parameters[name] = found[id(parameter)]
    try:
        yield
    finally:
        for module, name, parameter in replaced:
            if module._parameters[name] is found[id(parameter)]:  # otherwise FSDP replaced it in a forward
                module._parameters[name] = parameter
