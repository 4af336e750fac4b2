"""What can be done with a layer, and what a descriptor may know about the machine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Op(StrEnum):
    """What can be done with one base linear layer after the quantizer loaded it.

    Declaring an operation promises it in any sequence (evaluate, train, evaluate, save, train again), not for a
    single call: kernels that repack themselves at the first forward break exactly this.
    """

    FORWARD = "forward"
    """y = x Wᵀ + b can be computed, and added to in place."""
    GRAD_INPUT = "grad-input"
    """The gradient flows through the layer to its input, also after a forward in eval mode."""
    READ_WEIGHT = "read-weight"
    """`LinearOps.read_weight()` gives the weight that the forward uses."""
    GRAD_WEIGHT = "grad-weight"
    """The weight itself can be trained."""
    DENSE = "dense"
    """`.weight` is an ordinary floating-point Parameter, which may be replaced (PiSSA and OLoRA alter the base)."""


ALL_OPS: frozenset[Op] = frozenset(Op)


class Purpose(StrEnum):
    """Why a model is being loaded; a quantizer may choose another kernel for it."""

    TRAIN = "train"
    INFER = "infer"
    MERGE = "merge"
    QUANTIZE = "quantize"


@dataclass(frozen=True, kw_only=True)
class Env:
    """What a descriptor's `refine` may look at, without importing torch."""

    device: str
    """`cpu`, `cuda`, `mps`, `xpu`, … without an index."""
    purpose: Purpose = Purpose.TRAIN
    tools: frozenset[str] = frozenset()
    """Programs found on this machine: `c++` when there is a C++ compiler."""
