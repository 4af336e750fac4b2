"""Operations of a layer, purposes of loading a model, and the facts about the machine that a descriptor may use."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Op(StrEnum):
    """An operation on one linear layer of the base, after the quantizer loaded it.

    A declared operation must work in every sequence of calls (evaluate, train, evaluate, save, train again), not only
    in the first one. Kernels that repack their weights at the first forward violate this.
    """

    FORWARD = "forward"
    """The layer computes y = x Wᵀ + b; the result can be modified in place."""
    GRAD_INPUT = "grad-input"
    """The gradient flows through the layer to its input, also after a forward in eval mode."""
    READ_WEIGHT = "read-weight"
    """`LinearOps.read_weight()` returns the weight that the forward uses."""
    GRAD_WEIGHT = "grad-weight"
    """The weight itself can be trained."""
    DENSE = "dense"
    """`.weight` is an ordinary floating-point Parameter that may be replaced (PiSSA and OLoRA change the base)."""
    ROUND_TRIP = "round-trip"
    """Of the quantizer, not of a layer: it quantizes and dequantizes a dense weight as its checkpoints do; see
    `RoundTripMaker`."""
    SHARDS = "shards"
    """Everything that is large in the layer's frozen state is a Parameter that FSDP 2 may cut along its first dimension
    and gather again before each forward and backward, whatever its dtype. Otherwise each process keeps all of it."""


ALL_OPS: frozenset[Op] = frozenset(Op) - {Op.ROUND_TRIP, Op.SHARDS}
"""Every operation of a layer in one process: what ordinary layers support. They also shard."""


class Purpose(StrEnum):
    """Why a model is loaded; a quantizer may choose its kernel accordingly."""

    TRAIN = "train"
    INFER = "infer"
    MERGE = "merge"
    QUANTIZE = "quantize"
    EXPORT = "export"


@dataclass(frozen=True, kw_only=True)
class Env:
    """The facts about a run that a descriptor's `refine` may use, available without importing torch."""

    device: str
    """Device type, without an index: `cpu`, `cuda`, `mps`, `xpu`, …"""
    purpose: Purpose = Purpose.TRAIN
    tools: frozenset[str] = frozenset()
    """Programs found on this machine: contains `c++` if there is a C++ compiler."""
    dtype: str = "float32"
    """For `QuantizerSpec.bytes_for`: the dtype of the run, in which its model computes."""
