"""Installs the shipped forward on a loaded model, and saves what it computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import Adapted, Base, BuildContext, MergedLayer, ModelSource, Purpose, RoundTrip
from smollm3_finetune.api.shipping import SHIPPED
from smollm3_finetune.components.registry import attributed_to
from smollm3_finetune.errors import IncompatibleError, PluginError
from smollm3_finetune.model_files.skeleton import skeleton
from smollm3_finetune.shipping.record import Grids, Record, digest
from smollm3_finetune.shipping.target import FLAG, ShipPlan

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from smollm3_finetune.shipping.layers import ShippedLayer, Shipping

ROUND_TRIP = ("layers", "grid", "apply")
"""The methods of `RoundTrip`."""


class ShippedAdapted:
    """An `Adapted` whose model computes with shipped weights, also after it is saved and restored."""

    def __init__(self, adapted: Adapted, plan: ShipPlan, layers: Mapping[str, ShippedLayer], about: Record) -> None:
        self.model, self.base = adapted.model, adapted.base
        self.layers = layers
        """The covered layers by name."""
        self.plan = plan
        self._adapted, self._about = adapted, about
        self._shipping: Shipping = next(iter(layers.values())).shipping

    def __getattr__(self, name: str) -> Any:
        if name == "_adapted":  # not set yet, as in a copy
            raise AttributeError(name)
        return getattr(self._adapted, name)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside the context, the model computes what the base alone computes: nothing is rounded."""
        before = self._shipping.enabled
        with self._adapted.disabled():
            self._shipping.enabled = False
            try:
                yield
            finally:
                self._shipping.enabled = before

    @contextmanager
    def unshipped(self) -> Iterator[None]:
        """Inside the context, the model computes with the adapter, but nothing is rounded."""
        before, self._shipping.enabled = self._shipping.enabled, False
        try:
            yield
        finally:
            self._shipping.enabled = before

    def on_step(self, step: int) -> None:
        self._adapted.on_step(step)

    def save(self, path: Path) -> None:
        """Save the adapter, and beside it `shipped.json` and the grids."""
        self._adapted.save(path)
        self.record().write(path, self.grids())

    def grids(self) -> Grids:
        """The grids of the layers that have one."""
        return {name: layer.grid for name, layer in self.layers.items() if layer.grid}

    def record(self) -> Record:
        """The content of `shipped.json` for the current weights."""
        return replace(self._about, digests=self.digests(), grids=tuple(self.grids()))

    def digests(self) -> dict[str, str]:
        """SHA-256 of the shipped weight of each covered layer."""
        return {name: digest(layer.shipped()) for name, layer in self.layers.items()}


def make_round_trip(plan: ShipPlan, source: ModelSource, ctx: BuildContext) -> RoundTrip:
    """The round trip of a format for a model. Raises PluginError if the component has none."""
    component = plan.chosen.component
    maker = plan.chosen.create()
    component.check_methods(maker, ["round_trip"], f"the factory {component.spec.factory}")
    with attributed_to(component, "round_trip()"):
        made: RoundTrip = maker.round_trip(source, ctx)
    component.check_methods(made, ROUND_TRIP, "round_trip()")
    return made


def with_grids(plan: ShipPlan, ctx: BuildContext) -> BuildContext:
    """The context with the saved grids of a plan, on its device; unchanged if grids are still to be made."""
    if plan.saved is None or plan.record is None:
        return ctx
    return replace(ctx, grids=plan.record.read_grids(plan.saved, ctx.device))


def install(base: Base, adapted: Adapted, plan: ShipPlan, source: ModelSource, ctx: BuildContext) -> ShippedAdapted:
    """Make the model of `adapted` compute with the weights that the format of `plan` will have.

    The grids are those of `plan.saved`, otherwise they are made for the weights of `base`. Raises IncompatibleError if
    a covered layer cannot be computed so.
    """
    import torch

    from smollm3_finetune.shipping.layers import Shipping, check_applied

    ctx = with_grids(plan, ctx)
    component = plan.chosen.component
    made = make_round_trip(plan, source, ctx)
    model: Any = base.model
    with attributed_to(component, "layers() of its round trip"):
        covered = list(dict.fromkeys(made.layers(dense_skeleton(source, base))))
    wide = "float64" if ctx.dtype == "float64" else "float32"
    ship_dtype = plan.dtype(source.config)
    dense = not any(base.ops_for(module) is not None for module in model.modules())
    shipping = Shipping(
        round_trip=made,
        ship_dtype=getattr(torch, ship_dtype),
        merged_in=getattr(torch, wide),
        keep=dense or ctx.purpose is not Purpose.TRAIN,
    )
    merged: Mapping[str, MergedLayer] = adapted.merged_layers()  # type: ignore[attr-defined]
    tied = _tied(model)
    layers: dict[str, ShippedLayer] = {}
    for name in covered:
        layers[name] = _install_layer(base, name, merged.get(name), shipping)
    _check_ties(model, tied, layers, merged, plan)
    if (pair := _one_of(tied, layers)) is not None:  # the checkpoint has one tensor for both
        own, other = pair
        _replace_forward(base, layers[own], model.get_submodule(other), None)
    if not layers:
        raise IncompatibleError(f"{FLAG} {plan.name}: the format quantizes no layer of this model")
    with ctx.progress.task(f"finding the grids of {plan.name}", len(layers)) as task:
        for name, layer in layers.items():
            if ctx.grids is None:
                with attributed_to(component, "grid() of its round trip"), torch.no_grad():
                    layer.grid = _checked_grid(made.grid(name, layer.as_saved(layer.dense())), name, component.who)
            else:
                layer.grid = ctx.grids.get(name, {})
            task.advance()
    if ctx.grids is None:
        _use_grids_of_first_process(layers, ctx.device)
    with attributed_to(component, "apply() of its round trip"):
        check_applied(next(iter(layers.values())), component.who)
    about = Record(
        kind=component.kind.name,
        config=plan.config(),
        ship_dtype=ship_dtype,
        merged_in=wide,
        computed_in=ctx.dtype,
        device=ctx.device.partition(":")[0],
        versions={component.distribution: component.version},
    )
    return ShippedAdapted(adapted, plan, layers, about)


def _use_grids_of_first_process(layers: Mapping[str, ShippedLayer], device: str) -> None:
    """Replace the grids by those of the first process: another device may find others for the same weights."""
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    made = {name: {k: v.cpu() for k, v in layer.grid.items()} for name, layer in layers.items()}
    shared = [made if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared)
    assert shared[0] is not None
    for name, layer in layers.items():
        layer.grid = {k: v.to(torch.device(device)) for k, v in shared[0][name].items()}


def dense_skeleton(source: ModelSource, base: Base) -> PreTrainedModel:
    """The architecture of a base with ordinary layers and without weights."""
    found = skeleton(source.config)
    if found is not None:
        return found
    import torch

    kind: Any = type(base.model)
    values = {k: v for k, v in base.model.config.to_dict().items() if k != "quantization_config"}
    with torch.device("meta"):
        model: PreTrainedModel = kind._from_config(type(base.model.config).from_dict(values))
    return model


def _checked_grid(grid: Any, layer: str, who: str) -> dict[str, Tensor]:
    from torch import Tensor

    if not isinstance(grid, Mapping) or not all(
        isinstance(k, str) and "/" not in k and isinstance(v, Tensor) for k, v in grid.items()
    ):
        raise PluginError(f"{who}: grid() of the round trip must return tensors by name (without '/') for {layer}")
    return {name: tensor.detach() for name, tensor in grid.items()}


def _install_layer(base: Base, name: str, merged: MergedLayer | None, shipping: Shipping) -> ShippedLayer:
    from smollm3_finetune.shipping.layers import ShippedLayer

    module = base.model.get_submodule(name) if merged is None else merged.module
    own = module if merged is None else merged.base
    ops = base.ops_for(own)
    read: Callable[[], Tensor] = ops.read_weight if ops is not None else lambda: own.weight
    trained = () if merged is None else tuple(p for p in module.parameters() if _is_trainable(p, own))
    layer = ShippedLayer(
        name=name,
        shipping=shipping,
        read=read,
        merged=None if merged is None else merged.merged,
        update=None if merged is None else merged.update,
        parameters=trained,
        is_dense=merged is None and ops is None,
    )
    _replace_forward(base, layer, module, own if merged is not None or ops is not None else None)
    return layer


def _is_trainable(parameter: nn.Parameter, own: nn.Module) -> bool:
    """Whether a parameter of an adapted layer is one of the adapter, not of the base layer in it."""
    return parameter.is_floating_point() and all(parameter is not p for p in own.parameters())


def _replace_forward(base: Base, layer: ShippedLayer, module: nn.Module, linear: nn.Module | None) -> None:
    """Replace the forward of `module`. `linear` is the linear layer in it, whose bias is added."""
    from smollm3_finetune.api.replaceable import is_plain_linear
    from smollm3_finetune.shipping.layers import ShippedLinear, ShippedWeight

    forward = module.forward
    own: Any = module if linear is None and is_plain_linear(module) else linear
    if own is not None:
        made: Any = ShippedLinear(layer, forward, lambda: getattr(own, "bias", None))
    elif module._parameters.get("weight") is not None:
        made = ShippedWeight(layer, forward, module)
    else:
        raise IncompatibleError(
            f"the format quantizes {layer.name}, whose class {type(module).__name__} has no weight that can be replaced"
        )
    vars(module)["forward"] = made
    vars(module)[SHIPPED] = made


def _tied(model: Any) -> tuple[str, str] | None:
    """The names of the embeddings and of the head, if they share a weight."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embeddings is None or head is None or embeddings is head:
        return None
    one, other = getattr(embeddings, "weight", None), getattr(head, "weight", None)
    if one is None or other is None or one.data_ptr() != other.data_ptr():
        return None
    names = {id(module): name for name, module in model.named_modules()}
    return names[id(embeddings)], names[id(head)]


def _one_of(tied: tuple[str, str] | None, layers: Mapping[str, Any]) -> tuple[str, str] | None:
    """The covered one of two layers that share a weight, and the other; None if none or both are covered."""
    if tied is None or (tied[0] in layers) == (tied[1] in layers):
        return None
    return tied if tied[0] in layers else (tied[1], tied[0])


def _check_ties(
    model: Any,
    tied: tuple[str, str] | None,
    layers: Mapping[str, Any],
    merged: Mapping[str, MergedLayer],
    plan: ShipPlan,
) -> None:
    """Raises IncompatibleError for layers whose shipped weight would not be the one that is computed with."""
    from smollm3_finetune.api.replaceable import weights_that_are_read

    if read := sorted(set(weights_that_are_read(model)) & set(layers)):
        raise IncompatibleError(
            f"{FLAG} {plan.name}: {type(model).__name__} reads the weight of {read[0]} without calling the layer"
        )
    if tied is not None and set(tied) & set(layers) and set(tied) & set(merged):
        raise IncompatibleError(
            f"{FLAG} {plan.name}: the format quantizes the embeddings, which the model ties to its head, and the "
            "adapter changes them",
            hint=f"let the adapter change other layers, or omit {FLAG}",
        )
