"""What is known about the built-in launchers before anything is started. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from smollm3_finetune.api import ConfigError, Env, IncompatibleError, MissingRequirementError, Sharding

NVIDIA = Path("/proc/driver/nvidia/gpus")


def gpus() -> int:
    """The CUDA GPUs that a process of this machine may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"])
    return len(list(NVIDIA.iterdir())) if NVIDIA.is_dir() else 0


def processes_here(options: Any) -> int:
    """The processes on this machine."""
    return options.processes or gpus() or 1


def all_processes(options: Any) -> int:
    return processes_here(options) * int(options.nodes)


def joins(options: Any) -> bool:
    return bool(options.node_rank > 0)


def sharding(options: Any) -> Sharding:
    found: Sharding = "none" if options.profile == "ddp" else options.profile
    return found


def check_torchrun(options: Any, env: Env) -> None:
    _check_processes("torchrun", options, env)
    if options.nodes > 1 and options.rendezvous is None:
        raise ConfigError(
            f"launcher torchrun needs the place where {options.nodes} machines meet",
            hint="--launcher-opt rendezvous=HOST:29500, with the host name of machine 0",
        )
    if options.rendezvous is not None:
        host, colon, port = options.rendezvous.rpartition(":")
        if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"launcher.rendezvous must be HOST:PORT, not {options.rendezvous!r}",
                hint="--launcher-opt rendezvous=HOST:29500",
            )


def check_accelerate(options: Any, env: Env) -> None:
    _check_processes("accelerate", options, env)
    if options.nodes > 1 and options.main_address is None:
        raise ConfigError(
            f"launcher accelerate needs the address of machine 0 for {options.nodes} machines",
            hint="--launcher-opt main_address=HOST",
        )
    if options.offload and options.profile != "fsdp2":
        raise ConfigError(
            f"launcher.offload works with profile fsdp2, not with {options.profile}",
            hint="--launcher-opt profile=fsdp2",
        )
    if options.profile in ("zero1", "zero2"):
        _check_deepspeed(options.profile, env)


def _check_deepspeed(profile: str, env: Env) -> None:
    import importlib.metadata

    try:
        importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        raise MissingRequirementError(
            f"profile {profile} of launcher accelerate requires deepspeed, but it is not installed",
            hint="pip install deepspeed",
        ) from None
    if env.device == "cpu":
        raise IncompatibleError(
            f"profile {profile} of launcher accelerate is not supported on a CPU",
            hint="--launcher-opt profile=fsdp2",
        )


def _check_processes(name: str, options: Any, env: Env) -> None:
    if options.node_rank >= options.nodes:
        raise ConfigError(
            f"launcher.node_rank={options.node_rank} must be smaller than launcher.nodes={options.nodes}",
            hint=f"--launcher-opt nodes={options.node_rank + 1}, or node_rank={options.nodes - 1}",
        )
    if options.processes is None and not gpus():
        raise ConfigError(
            f"launcher {name} needs the number of processes: this machine has no CUDA GPU",
            hint="--launcher-opt processes=2",
        )
    if options.processes is None and env.device != "cuda":
        raise ConfigError(
            f"launcher {name} needs the number of processes on {env.device}", hint="--launcher-opt processes=2"
        )
    if env.device == "cuda" and options.processes is not None and options.nodes == 1 and 0 < gpus() < options.processes:
        raise ConfigError(
            f"launcher.processes={options.processes}, but this machine has {gpus()} CUDA "
            f"{'GPU' if gpus() == 1 else 'GPUs'}",
            hint=f"--launcher-opt processes={gpus()}",
        )
