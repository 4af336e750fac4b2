"""What a run with FSDP shards, decided before weights are read: checks, and what stays whole on each process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smollm3_finetune.api import Op
from smollm3_finetune.components.kinds import ADAPTER
from smollm3_finetune.components.layer_bytes import layer_bytes
from smollm3_finetune.components.negotiation import provided, refined
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.schema import DEFAULT_ADAPTER, TrainConfig
from smollm3_finetune.errors import ConfigError, IncompatibleError
from smollm3_finetune.model.plan import ModelPlan
from smollm3_finetune.train.distributed.held import shown_bytes
from smollm3_finetune.train.distributed.layout import Layout
from smollm3_finetune.train.distributed.sharding import WITHOUT_FSDP, check_environment

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop")
"""The optimizers, by their name in transformers, that update the part of each process as they update the whole."""
FSDP = "fsdp2"


@dataclass(frozen=True, kw_only=True)
class ShardingPlan:
    """What the processes of a run share, and what they do not."""

    processes: int | None
    replicated: str | None = None
    """Why each process keeps all quantized weights, as a clause; None if they are shared too."""
    replicated_bytes: int | None = None
    """The size of these weights; None if the quantizer does not state it."""

    def line(self) -> str:
        """One line for the user."""
        among = "the processes" if self.processes is None else f"{self.processes} processes"
        shared = f"FSDP 2 divides the weights among {among}"
        if self.replicated is None:
            return shared
        size = "" if self.replicated_bytes is None else f": {shown_bytes(self.replicated_bytes)}"
        return f"{shared}; quantized weights are replicated on each process{size} ({self.replicated})"

    def about(self) -> dict[str, Any]:
        """For the JSON of a dry run."""
        return {
            "processes": self.processes,
            "replicated": self.replicated,
            "replicated_bytes": self.replicated_bytes,
            "line": self.line(),
        }


def plan_sharding(
    layout: Layout, model: ModelPlan, train: TrainConfig, optimizer: SelectedComponent | None = None
) -> ShardingPlan | None:
    """What is shared by the processes of a run; None if each has all weights.

    `optimizer` is that of a plugin, whose descriptor was checked; without one, `train.optimizer` is checked.
    Raises IncompatibleError or ConfigError if the settings of the launcher do not work, or do not work with the run.
    """
    check_environment()
    if layout.sharding != FSDP:
        return None
    if model.new_tokens:
        raise IncompatibleError(
            "data.add_tokens was not tested with FSDP, which shards the rows that new tokens add to the embeddings",
            hint=f"{WITHOUT_FSDP}; or leave data.add_tokens out",
        )
    if train.compile:
        raise IncompatibleError(
            "train.compile was not tested with FSDP, which replaces the parameters of a compiled model",
            hint="--set train.compile=false",
        )
    if optimizer is None and train.optimizer not in OPTIMIZERS:
        raise IncompatibleError(
            f"train.optimizer={train.optimizer} was not tested with FSDP: it may not update a part of a weight as it "
            "updates all of it",
            hint=f"--set train.optimizer={OPTIMIZERS[0]}",
        )
    assert model.adapter is not None
    if not refined(model.adapter, model.env).shards:
        raise IncompatibleError(
            f"{ADAPTER.flag} {model.adapter.spec.name} does not work with FSDP: it needs whole parameters or gradients "
            "where FSDP has divided them",
            hint=f"{ADAPTER.flag} {DEFAULT_ADAPTER}; or {WITHOUT_FSDP}",
        )
    _check_device(model.context.device)
    if layout.processes == 1:
        return None
    ops, absent = provided(model.quantizer, model.env)
    if Op.SHARDS in ops:
        return ShardingPlan(processes=layout.processes)
    reason = absent.get(Op.SHARDS, f"quantizer {model.quantizer.spec.name!r} does not declare that its layers shard")
    return ShardingPlan(processes=layout.processes, replicated=reason, replicated_bytes=_quantized_bytes(model))


def _check_device(device: str) -> None:
    """Raises ConfigError if a run on a CPU would be sharded on a GPU, which torch prefers."""
    if device.partition(":")[0] != "cpu":
        return
    import torch

    if torch.accelerator.is_available():
        kind = str(torch.accelerator.current_accelerator())
        raise ConfigError(
            f"FSDP cannot be used on the CPU of a machine with a {kind} device, because torch shards on that device",
            hint=f"export CUDA_VISIBLE_DEVICES=, or --device {kind}" if kind == "cuda" else WITHOUT_FSDP,
        )


def _quantized_bytes(model: ModelPlan) -> int | None:
    """The memory of the layers that the quantizer quantizes, as it states it; None if unknown."""
    from smollm3_finetune.api import architecture_of, linear_layers

    stated = layer_bytes(model.quantizer, model.source, model.env, model.context.dtype)
    skeleton = architecture_of(model.source)
    if stated is None or skeleton is None:
        return None
    linears = linear_layers(skeleton)[0].values()
    return sum(stated((linear.out_features, linear.in_features)).kept for linear in linears)
