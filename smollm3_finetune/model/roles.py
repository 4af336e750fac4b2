"""The trained parameters of an adapted model, with their roles and layers, as optimizers get them.

The role is the one that the adapter states (`LabelingAdapted`); otherwise it follows from the shape of the parameter
and its place in the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import LabelingAdapted, Role, TrainedParameter
from smollm3_finetune.components.contract import described
from smollm3_finetune.errors import PluginError

if TYPE_CHECKING:
    from torch import nn

    from smollm3_finetune.api import Adapted, Base

NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)
"""The names of parameters without weight decay, as the transformers Trainer decides it."""


def trained_parameters(adapted: Adapted) -> list[TrainedParameter]:
    """The parameters of an adapted model that require a gradient, in the order of the model.

    Raises PluginError if the adapter states roles for parameters that do not exist, or something that is not a role.
    """
    model, base = adapted.model, adapted.base
    stated = stated_roles(adapted)
    places = _Places.of(model, base)
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        path, module = places.layer(name)
        role = stated.get(name) or default_role(name, parameter, path, module, places)
        found.append(
            TrainedParameter(
                name=name,
                parameter=parameter,
                role=role,
                layer=places.name_in_base(path),
                decays=_decays(name, places.owner(name)),
            )
        )
    return found


def stated_roles(adapted: Adapted) -> Mapping[str, Role]:
    """The roles that an adapter states; empty if it states none. Raises PluginError, see `trained_parameters`."""
    if not isinstance(adapted, LabelingAdapted):
        return {}
    found = adapted.parameter_roles()
    who = f"parameter_roles() of the adapter ({type(adapted).__name__})"
    if not isinstance(found, Mapping):
        raise PluginError(f"{who} returned {described(found)}, not a mapping of names to roles")
    names = {name for name, _ in adapted.model.named_parameters(remove_duplicate=False)}
    for name, role in found.items():
        if name not in names:
            raise PluginError(f"{who} names the parameter {name!r}, which the model does not have")
        if role not in list(Role):
            raise PluginError(f"{who} states the role {role!r} for {name!r}", hint=f"roles: {', '.join(Role)}")
    return {name: Role(role) for name, role in found.items()}


@dataclass(frozen=True)
class _Places:
    """The modules of an adapted model by name, and which of them are layers."""

    modules: Mapping[str, nn.Module]
    base: Base
    prefix: str
    """What the names of the base's modules begin with."""
    embeddings: frozenset[int]
    """The ids of the embeddings and of the output layer."""

    @classmethod
    def of(cls, model: nn.Module, base: Base) -> _Places:
        modules = dict(model.named_modules())
        prefix = next((f"{name}." if name else "" for name, m in modules.items() if m is base.model), "")
        getters = (getattr(base.model, f"get_{end}_embeddings", lambda: None) for end in ("input", "output"))
        embeddings = frozenset(id(m) for m in (get() for get in getters) if m is not None)
        return cls(modules, base, prefix, embeddings)

    def owner(self, name: str) -> nn.Module:
        """The module that has the parameter as an attribute."""
        return self.modules[name.rpartition(".")[0]]

    def layer(self, name: str) -> tuple[str, nn.Module | None]:
        """The outermost layer of the base that contains a parameter; otherwise the module that has it.

        A layer has a weight of its own, or operations of a quantizer. An adapter's module around a layer counts as the
        layer. Empty and None for a parameter that is not inside the base.
        """
        parts = name.split(".")
        if not name.startswith(self.prefix):
            return "", None
        depth = self.prefix.count(".")
        for end in range(depth + 1, len(parts)):
            path = ".".join(parts[:end])
            module = self.modules.get(path)
            if module is not None and (self.base.ops_for(module) is not None or _has_weight(module)):
                return path, module
        path = ".".join(parts[:-1])
        return path, self.modules.get(path)

    def name_in_base(self, path: str) -> str:
        return path.removeprefix(self.prefix)

    def shape(self, module: nn.Module) -> tuple[int, int] | None:
        """Outputs and inputs of a linear layer; None for another layer."""
        ops = self.base.ops_for(module)
        if ops is not None:
            return ops.shape
        sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
        return sizes if all(isinstance(size, int) for size in sizes) else None  # type: ignore[return-value]


def _has_weight(module: nn.Module) -> bool:
    import torch

    try:
        return isinstance(getattr(module, "weight", None), torch.Tensor)
    except Exception:  # a property that reads what is not there
        return False


def default_role(name: str, parameter: nn.Parameter, path: str, module: nn.Module | None, places: _Places) -> Role:
    """The role of a parameter whose adapter states none, from its shape and its place."""
    from torch import nn

    attribute, owner = name.rpartition(".")[2], places.owner(name)
    if attribute == "bias":
        return Role.BIAS
    if isinstance(owner, nn.Embedding) or id(owner) in places.embeddings:
        return Role.EMBEDDING
    if module is None:
        return Role.OTHER
    shape = tuple(parameter.shape)
    sizes = places.shape(module)
    whole = sizes is not None and shape == sizes
    if attribute == "weight" and owner is not module and (whole or sizes is None):  # a copy that is trained
        return Role.EMBEDDING if id(module) in places.embeddings else Role.WEIGHT if len(shape) > 1 else Role.NORM
    if owner is module and attribute == "weight":
        return Role.WEIGHT if len(shape) > 1 else Role.NORM
    if sizes is None:
        return Role.WEIGHT if len(shape) > 1 and owner is module else Role.OTHER  # stacked weights of experts
    return Role.WEIGHT if whole else _added_to_linear(shape, sizes)


def _added_to_linear(shape: tuple[int, ...], sizes: tuple[int, int]) -> Role:
    """The role of a parameter that an adapter added to a linear layer with `sizes` outputs and inputs."""
    out_features, in_features = sizes
    count = 1
    for size in shape:
        count *= size
    if count in (1, out_features, in_features) and max(shape, default=1) == count:
        return Role.SCALE
    if len(shape) != 2:
        return Role.OTHER
    rank = min(shape)
    if rank >= min(sizes):
        return Role.OTHER
    if shape[1] in sizes and shape[0] == rank:
        return Role.DOWN
    return Role.UP if shape[0] in sizes and shape[1] == rank else Role.OTHER


def _decays(name: str, owner: Any) -> bool:
    """Whether the Trainer of transformers applies weight decay to a parameter."""
    from torch import nn

    return NO_DECAY.search(name) is None and not isinstance(owner, nn.LayerNorm)
