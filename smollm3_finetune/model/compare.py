"""Measurements that the checks share: relative norms, logits, gradients and one training step, with their bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from smollm3_finetune.api import Adapted

if TYPE_CHECKING:
    from torch import Tensor, nn

STEP_SIZE = 1e-2
PUSH = 0.02
"""Standard deviation of the noise added to a fresh adapter, so that no gradient is zero by symmetry."""
ROUNDING: Mapping[str, float] = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}
"""For each dtype, the largest relative error allowed between two computations that differ only in their order.

A sum of a few thousand products has an error of about a thousand roundings: 1e-16 each in float64, 6e-8 in float32
(which mostly cancel), 4e-3 in bfloat16 (accumulated in float32, so only the results are rounded).
"""


def relative_error(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """The norm of the difference over the norm of `right`, over all tensors together, in float64."""
    if set(found) != set(right):
        raise AssertionError(f"different parameters: {sorted(set(found) ^ set(right))[:4]}")
    return _relative_norm((found[name].detach().cpu(), tensor.detach().cpu()) for name, tensor in right.items())


def drift(found: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """`relative_error` of two lists of tensors, pair by pair; NaN if a value is NaN."""
    return _relative_norm(zip(found, right, strict=True))


def _relative_norm(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """‖found − right‖ / ‖right‖ over all pairs together, summed in float64; NaN if `right` is all zeros."""
    difference = size = 0.0
    for one, exact in pairs:
        wide = exact.double()
        difference += float((one.double() - wide).square().sum())
        size += float(wide.square().sum())
    return math.sqrt(difference / size) if size else math.nan


def apart(found: Tensor, right: Tensor) -> float:
    """`relative_error` of one tensor; infinite if the shapes differ or a value is not finite, 0 if both are 0."""
    if found.shape != right.shape or not bool(found.isfinite().all()):
        return float("inf")
    if not bool(right.any()):
        return float("inf") if bool(found.any()) else 0.0
    return relative_error({"": found}, {"": right})


def how_apart(found: Tensor, right: Tensor) -> str:
    """How `found` differs from `right`, as a clause that ends before the name of the right one."""
    if found.shape != right.shape:
        return f"has the shape {tuple(found.shape)}, not {tuple(right.shape)}, as"
    one, exact = found.detach().cpu().double().flatten(), right.detach().cpu().double().flatten()
    if not bool(one.isfinite().all()):
        return "has values that are not finite, unlike"
    size, dot = float(exact.square().sum()), float(one @ exact)
    if not bool(one.any()):
        return "is zero, unlike"
    if (
        size
        and (factor := dot / size)
        and math.sqrt(float((one - factor * exact).square().sum()) / size) < 0.05 * abs(factor - 1)
    ):
        return f"is {factor:.4g} times" if factor > 0 else f"has the opposite sign, {factor:.4g} times"
    return f"differs by {apart(one, exact):.1e} from"


def most_different(found: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> tuple[str, str]:
    """The name whose tensors differ most, relative to their own size, and how they differ; both have the same names."""
    name = max(right, key=lambda n: apart(found[n].detach().cpu(), right[n].detach().cpu()))
    return name, how_apart(found[name], right[name])


def push(model: nn.Module) -> None:
    """Add noise to every trainable parameter, the same noise in each call and in every dtype."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((PUSH * noise).to(parameter))


def logits(model: nn.Module, ids: Tensor, **more: Tensor) -> Tensor:
    """(B, T, V), in evaluation mode and without gradients; the mode is restored."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found: Tensor = model(input_ids=ids, use_cache=False, **more).logits
    finally:
        model.train(training)
    return found


def logits_of_rows(model: nn.Module, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits (T, V) of each row of T ids, on the CPU, in float32 or wider; each row is a separate batch."""
    import torch

    device = next(model.parameters()).device
    found = [logits(model, torch.tensor([row], device=device))[0].cpu() for row in rows]  # (1, T) -> (T, V)
    return [one if one.dtype == torch.float64 else one.float() for one in found]


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean over all tokens except the first, in the dtype of the logits; logits of a trained prompt are skipped."""
    from torch.nn import functional as F

    of_tokens = logits[:, -ids.shape[1] :]
    return F.cross_entropy(of_tokens[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def gradients(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """The gradient of the mean cross-entropy for each trainable parameter, in training mode with a fixed seed.

    The gradients stay on the parameters, for `descend`. Raises AssertionError if a parameter gets none.
    """
    return loss_and_gradients(model, ids)[1]


def loss_and_gradients(model: nn.Module, ids: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The mean cross-entropy, and `gradients`."""
    import torch

    model.train()
    for parameter in model.parameters():
        parameter.grad = None
    torch.manual_seed(7)  # for dropout
    loss = cross_entropy(model(input_ids=ids, use_cache=False).logits, ids)
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    lost = [n for n, p in trained.items() if p.grad is None]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise AssertionError(f"no gradient reached {lost[0]}{more}")
    return float(loss.detach()), {n: p.grad.detach().clone() for n, p in trained.items() if p.grad is not None}


def descend(adapted: Adapted, step: int) -> None:
    """One step of plain gradient descent, then the adapter's `on_step`, before the gradients are cleared."""
    import torch

    with torch.no_grad():
        for parameter in adapted.model.parameters():
            if parameter.grad is not None:
                parameter.sub_(STEP_SIZE * parameter.grad)
    adapted.on_step(step)


def input_gradient(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the mean cross-entropy for the input embeddings (B, T, D), in training mode, and the logits."""
    import torch

    model.train()
    embed = model.get_input_embeddings()
    embeddings = embed(ids).detach().requires_grad_()
    torch.manual_seed(7)
    found = model(inputs_embeds=embeddings, use_cache=False).logits
    cross_entropy(found, ids).backward()
    gradient: Tensor = embeddings.grad
    return gradient, found.detach()


def rounded(weight: Tensor, bits: int, group_size: int | None = None) -> Tensor:
    """`weight` (out, in) rounded to the nearest of 2^bits - 1 evenly spaced values, with one scale a group.

    `group_size` is in input features; None: a whole row. The last group of a row may be shorter.
    """
    import torch

    top = max(2 ** (bits - 1) - 1, 1)
    pieces = []
    for group in weight.detach().split(group_size or weight.shape[1], dim=1):
        scale = group.abs().amax(1, keepdim=True).clamp(min=1e-12) / top  # (out, 1)
        pieces.append((group / scale).round().clamp(-top, top) * scale)
    return torch.cat(pieces, dim=1)
