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
    """Of the quantizer, not of a layer: FSDP 2 can divide its layers among the processes of a run. Otherwise each
    process keeps all of their weights. `smollm3_finetune.api.FrozenTensor` states what a layer must fulfill."""


ALL_OPS: frozenset[Op] = frozenset(Op) - {Op.ROUND_TRIP, Op.SHARDS}
"""Every operation of a layer: what ordinary layers support."""


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
    """For `QuantizerSpec.bytes_for`: the dtype of the run, in which its model computes and a layer is given its weight:
    `float32`, `bfloat16`, `float16` or `float64`."""
