"""Composes the model of a plan without weights: quantized layers state their memory, the adapter is really attached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from smollm3_finetune.api import Adapted, Base, BuildContext, Op, TrainedParameter, architecture_of
from smollm3_finetune.api.quantizers import _to_quantize
from smollm3_finetune.components.layer_bytes import effective_options, layer_bytes
from smollm3_finetune.components.negotiation import provided
from smollm3_finetune.errors import SmolLM3Error
from smollm3_finetune.progress import Silent

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import PreTrainedModel

    from smollm3_finetune.components.selection import SelectedComponent
    from smollm3_finetune.config.schema import RunConfig
    from smollm3_finetune.memory.reduce import Reduced
    from smollm3_finetune.model.plan import ModelPlan
    from smollm3_finetune.train.distributed.layout import Layout

STEPS = 1000
"""The steps of the run, for adapters with a schedule; the memory does not depend on it."""


class Unknown(Exception):
    """The memory cannot be predicted; the message is a clause that gives the reason."""


class Plan(Protocol):
    """The parts of a `RunPlan` on which memory depends."""

    @property
    def config(self) -> RunConfig: ...
    @property
    def model(self) -> ModelPlan: ...
    @property
    def objective(self) -> SelectedComponent: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def optimizer(self) -> SelectedComponent | None: ...


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes of the complete model that stay allocated while it trains."""

    weights: int = 0
    """Weights and buffers of the base."""
    sharded: int = 0
    """How much of `weights` FSDP 2 divides among the processes."""
    frozen: Mapping[str, int] = field(default_factory=dict)
    """The frozen dense weights, by the name of their dtype."""
    quantized: int = 0
    """How much of `weights` is quantized."""
    adapter: int = 0
    """Parameters and buffers that the adapter adds."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model without weights, with fewer layers than the complete one, and its adapter."""

    reduced: Reduced
    adapted: Adapted
    base: Base
    held: Held
    mode: FakeTensorMode
    """The context in which the model runs."""
    trained: tuple[tuple[torch.nn.Parameter, int], ...]
    """The trained parameters, and how many of the complete model each of them stands for."""
    parameters: tuple[TrainedParameter, ...] = ()
    """The parameters that the optimizer of a plugin gets, those that it freezes too; empty without one."""

    @property
    def gradients(self) -> int:
        """Bytes of all gradients."""
        return sum(p.nbytes * times for p, times in self.trained)


def build(plan: Plan) -> Built:
    """Compose the model on the meta device, and end with fake tensors. Raises Unknown."""
    import torch

    from smollm3_finetune.memory.quantized import ops_of
    from smollm3_finetune.memory.reduce import names_layers, reduce_layers
    from smollm3_finetune.memory.trace import Trace, as_fake, without_values

    model_plan = plan.model
    context = replace(model_plan.context, progress=Silent())
    adapter = model_plan.adapter
    if adapter is None:
        raise Unknown("the run has no adapter")
    model = architecture_of(model_plan.source)
    if model is None:
        raise Unknown(f"transformers does not have the code of {model_plan.ref!r}")
    if model_plan.adds_rows:
        model.resize_token_embeddings(model_plan.embeddings, mean_resizing=False)
    whole = any(names_layers(c.options) for c in (adapter, model_plan.quantizer))
    reduced = reduce_layers(model, whole=whole)
    model.requires_grad_(False)
    dtype: torch.dtype = getattr(torch, context.dtype)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    _quantize(plan, model)
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    base = Base(model=model, fingerprint="", ops_for=ops_of(_operations(plan)))
    with Trace():  # reads of values give zero
        adapted = _attach(adapter, base, context)
    parameters = _parameters_of(plan.optimizer, adapted)
    adapted.model.train()
    held = _held(adapted.model, base.model, reduced, own)
    mode = without_values()
    with mode:
        as_fake(adapted.model, context.device.partition(":")[0])
    counted = _counted(adapted.model, base.model, reduced)
    trained = tuple((p, times) for p, times in counted if isinstance(p, torch.nn.Parameter) and p.requires_grad)
    now = dict(adapted.model.named_parameters())
    return Built(
        reduced=reduced,
        adapted=adapted,
        base=base,
        held=held,
        trained=trained,
        parameters=tuple(replace(p, parameter=now[p.name]) for p in parameters),
        mode=mode,
    )


def _parameters_of(optimizer: SelectedComponent | None, adapted: Adapted) -> tuple[TrainedParameter, ...]:
    """The parameters that the optimizer of a plugin gets; those that its descriptor freezes are frozen."""
    from smollm3_finetune.model.roles import trained_parameters

    if optimizer is None:
        return ()
    found = tuple(trained_parameters(adapted))
    for one in found:
        one.parameter.requires_grad_(one.role not in optimizer.spec.freezes)
    return found


def _attach(adapter: SelectedComponent, base: Base, context: BuildContext) -> Adapted:
    try:
        made = adapter.create()
        adapted: Adapted = made.attach(base, context, STEPS)
    except SmolLM3Error:
        raise
    except Exception as e:  # an adapter that needs values
        raise Unknown(f"{adapter.component.title} cannot be attached without weights ({type(e).__name__})") from e
    return adapted


NONE = "smollm3-finetune:none"


def _quantize(plan: Plan, model: PreTrainedModel) -> None:
    """Replace the layers that are quantized by layers that take as much memory. Raises Unknown."""
    from smollm3_finetune.memory.quantized import replace_layers

    quantizer, source = plan.model.quantizer, plan.model.source
    title = quantizer.component.title
    stated = layer_bytes(quantizer, source, plan.model.env, plan.model.context.dtype)
    if stated is None:
        raise Unknown(f"{title} does not state the memory of its layers")
    if quantizer.component.full_name == NONE:
        return
    skip = getattr(effective_options(quantizer, source), "skip_modules", ())
    linears, stacks = _to_quantize(model, title, source, skip)
    if stacks:
        raise Unknown(f"the memory of quantized experts ({next(iter(stacks))}) was not measured")
    replace_layers(model, linears, stated)


def _operations(plan: Plan) -> frozenset[Op]:
    return provided(plan.model.quantizer, plan.model.env)[0]


def _named(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer with each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _counted(model: nn.Module, base: nn.Module, reduced: Reduced) -> Iterator[tuple[torch.Tensor, int]]:
    """Every parameter and buffer once, and how many of the complete model it stands for."""
    prefix = next((f"{name}." if name else "" for name, m in model.named_modules() if m is base), "")
    places: dict[int, list[int]] = {}
    tensors: dict[int, torch.Tensor] = {}
    layers: dict[int, set[str]] = {}
    for name, tensor in _named(model):
        inner = name.removeprefix(prefix) if name.startswith(prefix) else ""
        tensors[id(tensor)] = tensor
        places.setdefault(id(tensor), []).append(reduced.times(inner))
        layers.setdefault(id(tensor), set()).add(_layer(reduced, inner))
    for key, tensor in tensors.items():
        yield tensor, places[key][0] if len(layers[key]) == 1 else 1


def _layer(reduced: Reduced, name: str) -> str:
    return next((layer for layer in reduced.counts if name.startswith(f"{layer}.")), "")


def _held(model: nn.Module, base: nn.Module, reduced: Reduced, own: set[int]) -> Held:
    from smollm3_finetune.memory.quantized import PlannedLinear

    weights = adapter = sharded = kept = 0
    frozen: dict[str, int] = {}
    parameters = {id(p) for p in model.parameters()}
    for tensor, times in _counted(model, base, reduced):
        size = tensor.nbytes * times
        if id(tensor) not in own:
            adapter += size
            continue
        weights += size
        is_parameter = id(tensor) in parameters
        sharded += size if is_parameter else 0
        if is_parameter and not tensor.requires_grad:
            name = str(tensor.dtype).removeprefix("torch.")
            frozen[name] = frozen.get(name, 0) + size
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, PlannedLinear) or id(module) in seen:
            continue
        seen.add(id(module))
        prefix = next((f"{n}." if n else "" for n, m in model.named_modules() if m is base), "")
        times = reduced.times(name.removeprefix(prefix))
        kept += module.about.kept * times
        sharded += module.about.sharded * times
    return Held(weights=weights + kept, sharded=sharded, frozen=frozen, quantized=kept, adapter=adapter)
