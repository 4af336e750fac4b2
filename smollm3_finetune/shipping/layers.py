"""One layer that is trained as it is shipped: its weights, and the straight-through gradient.

The forward multiplies by Q = round_trip((W + ΔW) in the shipped dtype). Rounding has no useful gradient, so it counts
as the identity: with M = W + ΔW, the gradient of M is that of Q. Between forward and backward, no dense weight is part
of the autograd graph: the backward computes M again where it needs it, and Q too, unless it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smollm3_finetune.errors import PluginError

if TYPE_CHECKING:
    from smollm3_finetune.api import RoundTrip


@dataclass
class Shipping:
    """What all shipped layers of a model share."""

    round_trip: RoundTrip
    ship_dtype: torch.dtype
    merged_in: torch.dtype
    """The dtype in which W and ΔW are added."""
    keep: bool
    """Whether shipped weights are kept until the adapter changes; otherwise each pass computes them."""
    enabled: bool = True
    """False while the adapter is disabled: the layers then compute what the base computes."""


@dataclass(eq=False)
class ShippedLayer:
    """The weights of one covered layer."""

    name: str
    shipping: Shipping
    read: Callable[[], Tensor]
    """Returns the dense weight W (out, in) of the base, in any dtype; it is not modified."""
    merged: Callable[[Tensor], Tensor] | None
    """W + ΔW; None for a layer without adapter."""
    update: Callable[[Tensor], Tensor] | None = None
    """x @ ΔWᵀ without a dense ΔW; see `MergedLayer.update`."""
    parameters: tuple[nn.Parameter, ...] = ()
    """The parameters that `merged` may depend on."""
    grid: Mapping[str, Tensor] = field(default_factory=dict)
    is_dense: bool = False
    """Whether it is an ordinary layer without adapter: its shipped weight never changes and is always kept."""
    _kept: tuple[Any, torch.dtype, Tensor] | None = None
    """The parameters' state, the dtype, and the shipped weight in that dtype."""

    @property
    def keeps(self) -> bool:
        return self.shipping.keep or self.is_dense

    def dense(self) -> Tensor:
        """W in the dtype in which ΔW is added to it."""
        return self.read().detach().to(self.shipping.merged_in)

    def merge(self) -> Tensor:
        """W + ΔW, differentiable in the parameters. Not under autocast: a merge is not computed under it either."""
        dense = self.dense()
        if self.merged is None:
            return dense
        with torch.autocast(dense.device.type, enabled=False):
            return self.merged(dense)

    def as_saved(self, weight: Tensor) -> Tensor:
        """A dense weight as the merged model has it on disk, in float32."""
        return weight.detach().to(self.shipping.ship_dtype).to(torch.float32)

    def rounded(self, merged: Tensor) -> Tensor:
        """The shipped weight, float32, for a merged one."""
        with torch.no_grad(), torch.autocast(merged.device.type, enabled=False):
            return self.shipping.round_trip.apply(self.name, self.as_saved(merged), self.grid)

    def shipped(self) -> Tensor:
        """The shipped weight (out, in) in float32."""
        with torch.no_grad():
            return self.rounded(self.merge())

    def computed(self, dtype: torch.dtype) -> Tensor:
        """The shipped weight in the dtype of a computation; kept, if weights are, until a parameter changes."""
        if not self.keeps:
            return self.shipped().to(dtype)
        state = tuple((p.data_ptr(), p._version) for p in self.parameters)
        if self._kept is not None:
            (kept_state, values), kept_dtype, weight = self._kept
            same = kept_state == state and kept_dtype == dtype
            # a write through `.data` changes no version
            if same and all(map(torch.equal, values, self.parameters)):
                return weight
        self._kept = None  # freed before the next one is made
        with torch.inference_mode(False), torch.no_grad():  # a later training step may use it
            weight = self.shipped().to(dtype)
        values = [p.detach().clone() for p in self.parameters]
        self._kept = ((state, values), dtype, weight)
        return weight


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    """x @ Qᵀ, with the gradient of x @ Mᵀ in the parameters."""

    @staticmethod
    def forward(ctx: Any, layer: ShippedLayer, x: Tensor, dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        weight = layer.computed(dtype)
        ctx.layer, ctx.dtype = layer, dtype
        ctx.save_for_backward(x, weight if layer.keeps else None, *parameters)
        return F.linear(x.to(dtype), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, *_ = ctx.saved_tensors  # raises if a parameter has changed since the forward
        layer: ShippedLayer = ctx.layer
        parameters = layer.parameters  # the saved ones are copies under activation checkpointing
        trained = [p for p, needed in zip(parameters, ctx.needs_input_grad[3:], strict=True) if needed]
        merged, slopes = None, {}
        if trained and layer.update is not None:
            slopes = _through_update(layer.update, x, gradient, trained)
        elif trained:
            with torch.enable_grad():
                merged = layer.merge()
            slopes = _through_weight(merged, x.to(ctx.dtype), gradient, trained)
        if weight is None:
            weight = (layer.shipped() if merged is None else layer.rounded(merged)).to(ctx.dtype)
        of_x = (gradient @ weight).to(x.dtype) if ctx.needs_input_grad[1] else None
        return None, of_x, None, *(slopes.get(id(p)) for p in parameters)


def _through_update(
    update: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, trained: Sequence[Tensor]
) -> dict[int, Tensor | None]:
    """The gradients of parameters, by id, where ΔW alone depends on them."""
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        added = update(x.detach())
        found = torch.autograd.grad(added, trained, gradient.to(added.dtype), allow_unused=True)
    return {id(p): g for p, g in zip(trained, found, strict=True)}


def _through_weight(merged: Tensor, x: Tensor, gradient: Tensor, trained: Sequence[Tensor]) -> dict[int, Tensor | None]:
    """The gradients of parameters, by id, through the merged weight (out, in)."""
    if not merged.requires_grad:
        return {}
    rows, pulls = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    of_weight = (pulls.T @ rows).to(merged.dtype)
    with torch.autocast(merged.device.type, enabled=False):
        found = torch.autograd.grad(merged, trained, of_weight, allow_unused=True)
    return {id(p): g for p, g in zip(trained, found, strict=True)}


def precision_of(x: Tensor) -> torch.dtype:
    """The dtype in which a linear layer computes for this input: that of autocast, if it is on."""
    kind = x.device.type
    if x.is_floating_point() and x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


class ShippedLinear:
    """Replaces the forward of a linear layer, or of the adapted layer around one."""

    def __init__(self, layer: ShippedLayer, original: Callable[..., Any], bias: Callable[[], Tensor | None]) -> None:
        self.layer, self.original, self.bias = layer, original, bias

    @property
    def active(self) -> bool:
        return self.layer.shipping.enabled

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.original(x, *args, **kwargs)
        y: Tensor = _Linear.apply(self.layer, x, precision_of(x), *self.layer.parameters)
        bias = self.bias()
        return y if bias is None else y + bias.to(y.dtype)


class ShippedWeight:
    """Replaces the forward of another layer with a frozen weight, such as embeddings: its own, on that weight."""

    def __init__(self, layer: ShippedLayer, original: Callable[..., Any], module: nn.Module) -> None:
        self.layer, self.original, self.module = layer, original, module

    @property
    def active(self) -> bool:
        return self.layer.shipping.enabled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.original(*args, **kwargs)
        own = self.module._parameters["weight"]
        assert own is not None
        weight = self.layer.computed(own.dtype)
        self.module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        try:
            return self.original(*args, **kwargs)
        finally:
            self.module._parameters["weight"] = own


def check_applied(layer: ShippedLayer, title: str) -> None:
    """Apply a round trip once. Raises PluginError if the result is not a new, finite float32 weight of this shape."""
    weight = layer.as_saved(layer.dense())
    with torch.no_grad():
        before = weight.clone()
        found = layer.shipping.round_trip.apply(layer.name, weight, layer.grid)
    if not isinstance(found, Tensor) or found.dtype != torch.float32 or found.shape != weight.shape:
        shown = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise PluginError(
            f"{title}: apply() of the round trip returned {shown} for {layer.name}, not float32 {tuple(weight.shape)}"
        )
    if not torch.equal(before, weight) or found.data_ptr() == weight.data_ptr():
        raise PluginError(f"{title}: apply() of the round trip changed its argument for {layer.name}")
    if not bool(found.isfinite().all()):
        raise PluginError(f"{title}: apply() of the round trip returned values that are not finite for {layer.name}")
