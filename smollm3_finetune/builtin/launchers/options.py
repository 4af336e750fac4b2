"""The options of the built-in launchers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option

PROCESSES = "Processes on each machine; default: one for each CUDA GPU of this machine."
NODES = "Number of machines. Start the same command on each of them, with its node_rank."
NODE_RANK = "Number of this machine, from 0; machine 0 plans the run and reports it."


@dataclass(frozen=True, kw_only=True)
class TorchrunOptions:
    """Launcher `torchrun`."""

    processes: int | None = option(None, PROCESSES, ge=1, le=100_000)
    nodes: int = option(1, NODES, ge=1, le=100_000)
    node_rank: int = option(0, NODE_RANK, ge=0, le=99_999)
    rendezvous: str | None = option(
        None, "Where the machines meet: HOST:PORT, the name of machine 0 and a free port of it."
    )
    rendezvous_timeout: int = option(900, "Seconds that machines wait for each other.", ge=1)
    restarts: int = option(
        0, "How often the processes are started again after one failed; the run continues from its checkpoint.", ge=0
    )


@dataclass(frozen=True, kw_only=True)
class AccelerateOptions:
    """Launcher `accelerate`."""

    profile: Literal["ddp", "fsdp2", "zero1", "zero2"] = option(
        "ddp",
        "ddp: each process has the whole model; fsdp2: the processes share weights, gradients and optimizer states; "
        "zero1, zero2: DeepSpeed shares optimizer states, with zero2 also gradients.",
    )
    processes: int | None = option(None, PROCESSES, ge=1, le=100_000)
    nodes: int = option(1, NODES, ge=1, le=100_000)
    node_rank: int = option(0, NODE_RANK, ge=0, le=99_999)
    main_address: str | None = option(None, "Address of machine 0, for several machines.")
    main_port: int = option(29500, "Free port of machine 0, for several machines.", ge=1, le=65535)
    restarts: int = option(
        0, "How often the processes are started again after one failed; the run continues from its checkpoint.", ge=0
    )
    offload: bool = option(False, "With fsdp2: keep weights in the memory of the computer while they are not used.")
