"""Does each quantized layer multiply by the weight that it states, forward and backward, always in the same way?

The layers are called alone, in the order of a run: an evaluation, a training step, an evaluation. Kernels that repack
themselves, or that have no backward pass, fail here, where the layer can be named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Base, LinearOps
from smollm3_finetune.model.compare import apart, how_apart

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

ROWS = 12
RELATED = 0.5
"""Least cosine between a quantized weight and the weight of the checkpoint; two bits have 0.9, another matrix has 0."""


def layer_fault(base: Base, dense: nn.Module | None, bound: float, figures: dict[str, float]) -> str | None:
    """What is wrong with the first faulty layer of `base`, in one sentence; None if all are sound.

    `dense` is the model before it was quantized. `bound` is the largest relative error of the dtype. Adds `layers`, the
    number of quantized layers, and the largest errors of all of them to `figures`.
    """
    import torch

    weights = dict(dense.named_parameters()) if dense is not None else {}
    layers = {n: m for n, m in base.model.named_modules() if base.ops_for(m) is not None}
    figures["layers"] = len(layers)
    dtype = base.model.dtype if base.model.dtype.is_floating_point else torch.float32
    for name, layer in layers.items():
        ops = base.ops_for(layer)
        assert ops is not None
        fault = _weight_fault(ops, weights.get(f"{name}.weight")) or _call_fault(layer, ops, dtype, bound, figures)
        if fault is not None:
            return f"layer {name}: {fault}"
    return None


def _weight_fault(ops: LinearOps, source: Tensor | None) -> str | None:
    """What is wrong with the weight that a layer states; `source` is that of the checkpoint (out, in), if known."""
    weight = ops.read_weight()
    if str(weight.dtype) not in ("torch.float32", "torch.float64"):
        return f"read_weight() returns {str(weight.dtype).removeprefix('torch.')}, not float32 or wider"
    if not bool(weight.isfinite().all()):
        return "read_weight() returns values that are not finite"
    if source is None:
        return None
    if weight.shape != source.shape:
        return f"read_weight() returns the shape {tuple(weight.shape)}, but the weight is {tuple(source.shape)}"
    expected = source.detach().cpu().double()
    if _cosine(weight.cpu().double(), expected) < RELATED:
        if weight.shape[0] == weight.shape[1] and _cosine(weight.cpu().double().T, expected) > RELATED:
            return "read_weight() returns the transposed weight"
        return "read_weight() returns another weight than that of the checkpoint"
    return None


def _call_fault(
    layer: Any, ops: LinearOps, dtype: torch.dtype, bound: float, figures: dict[str, float]
) -> str | None:  # fmt: skip
    """What is wrong with the calls of a layer."""
    import torch

    bound += ops.forward_rtol
    before = ops.read_weight()
    device, exact = before.device, before.cpu().double()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, ROWS, exact.shape[1], generator=generator).to(device, dtype)  # (1, T, in)
    bias = getattr(layer, "bias", None)
    offset = 0.0 if bias is None else bias.detach().cpu().double()
    right = x.cpu().double() @ exact.T + offset  # (1, T, out)

    def forward(at: Tensor) -> Tensor:
        found: Tensor = layer(at)
        return found

    def wrong(found: Tensor, when: str) -> str | None:
        if found.dtype != dtype:
            names = [str(d).removeprefix("torch.") for d in (found.dtype, dtype)]
            return f"the forward returns {names[0]} for an input in {names[1]}"
        error = apart(found.detach().cpu().double(), right)
        figures["forward"] = max(figures.get("forward", 0.0), error)
        if error <= bound:
            return None
        square = exact.shape[0] == exact.shape[1]
        if square and apart(found.detach().cpu().double(), x.cpu().double() @ exact + offset) <= bound:
            return f"the forward{when} multiplies by the transpose of what read_weight() returns"
        return f"the forward{when} {how_apart(found, right)} the product with read_weight() (limit {bound:.0e})"

    layer.eval()
    with torch.no_grad():
        first, second = forward(x), forward(x)
    if (error := apart(second.cpu().double(), first.cpu().double())) > bound:
        return f"two forwards of one input in evaluation mode differ by {error:.1e}"
    if fault := wrong(first, ""):
        return fault
    layer.train()
    inputs = x.clone().requires_grad_()
    output = forward(inputs)
    if fault := wrong(output, " in training mode"):
        return fault
    if not output.requires_grad:
        return "no gradient reaches its input after an evaluation"
    toward = torch.randn(right.shape, generator=generator).to(device, dtype)  # (1, T, out)
    output.backward(toward)
    if inputs.grad is None:
        return "no gradient reaches its input after an evaluation"
    expected = toward.cpu().double() @ exact  # (1, T, in)
    error = apart(inputs.grad.cpu().double(), expected)
    figures["grad_input"] = max(figures.get("grad_input", 0.0), error)
    if not error <= bound:
        return f"the gradient of its input {how_apart(inputs.grad, expected)} the right one (limit {bound:.0e})"
    layer.eval()
    with torch.no_grad():
        if fault := wrong(forward(x), " after a training step"):
            return fault
    if error := apart(ops.read_weight().cpu().double(), exact):
        return f"read_weight() returns other values after a training step (relative difference {error:.1e})"
    return None


def _cosine(one: Tensor, other: Tensor) -> float:
    size = float(one.norm() * other.norm())
    return float((one * other).sum()) / size if size else 0.0
