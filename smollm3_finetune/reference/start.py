"""The model as it was before the first step: its trained parameters are exchanged with copies of their initial values.

Only the trained parameters are copied: there is no second model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from smollm3_finetune import stopping
from smollm3_finetune.api.adapter_switch import as_reference, switch_of
from smollm3_finetune.errors import UnsupportedOp

if TYPE_CHECKING:
    from torch import Tensor, nn


class Start:
    """The initial values of the trained parameters of one model."""

    def __init__(self, model: nn.Module, values: Mapping[str, Tensor] | None = None) -> None:
        """Copies the current values of the trained parameters, or takes `values` of parameters with these names."""
        if values is None:
            named = trained_parameters(model)
            self._pairs = [(p, p.detach().clone()) for p in named.values()]
        else:
            named = {name: p for name, p in model.named_parameters() if name in values}
            self._pairs = [(p, values[name].to(p, copy=True)) for name, p in named.items()]
        self._names = tuple(named)
        self._depth = 0

    def values(self) -> dict[str, Tensor]:
        """The initial values by name."""
        return {name: value for name, (_, value) in zip(self._names, self._pairs, strict=True)}

    @contextlib.contextmanager
    def at_start(self, model: nn.Module) -> Iterator[nn.Module]:
        """Give the model as it was before the first step, in evaluation mode and without gradients.

        The adapter is enabled inside the context, also where it is disabled. Contexts may be nested. `model` may wrap
        the model, as DDP does.
        """
        switch = switch_of(model)
        if switch is None:
            raise UnsupportedOp(f"{type(model).__name__} has no adapter, so its start is not known")
        with switch.on(), self._exchanged(), as_reference(switch.adapted) as reference:
            yield reference

    @contextlib.contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Exchange the trained parameters with their initial values inside the outermost context.

        A request to stop is raised when the parameters have their values again: a run saves them after it.
        """
        exchanged: list[tuple[Tensor, Tensor]] = []
        with stopping.deferred():
            self._depth += 1
            try:
                for pair in self._pairs if self._depth == 1 else ():
                    _exchange(*pair)
                    exchanged.append(pair)
                yield
            finally:
                self._depth -= 1
                for pair in exchanged:
                    _exchange(*pair)


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _exchange(parameter: Tensor, value: Tensor) -> None:
    """Exchange two tensors in place; autograd does not see it, because the values are back before it uses them."""
    with torch.no_grad():
        kept = parameter.data.clone()
        parameter.data.copy_(value)
        value.copy_(kept)
