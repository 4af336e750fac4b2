"""The optimizer's state of sharded weights, saved and loaded as that of one process.

So a run can continue with another number of processes, and without FSDP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smollm3_finetune.train.distributed.sharding import whole_tensor

if TYPE_CHECKING:
    from torch.optim import Optimizer


def whole_state(optimizer: Optimizer) -> dict[str, Any]:
    """The state dict with whole tensors, on the CPU; every process must call this. Only the main process needs it."""
    from torch.distributed.tensor import DTensor

    state: dict[str, Any] = optimizer.state_dict()

    def whole(value: Any) -> Any:
        return whole_tensor(value).cpu() if isinstance(value, DTensor) else value

    return {**state, "state": {i: {k: whole(v) for k, v in of.items()} for i, of in state["state"].items()}}


def load_whole_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict with whole tensors; each process keeps its part of the state of sharded parameters."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part(index: int, value: Any) -> Any:
        parameter = parameters[index]
        if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
            return value
        on_device = value.to(parameter.device)
        return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)

    parts = {i: {k: part(i, v) for k, v in of.items()} for i, of in state["state"].items() if i < len(parameters)}
    optimizer.load_state_dict({**state, "state": parts})
