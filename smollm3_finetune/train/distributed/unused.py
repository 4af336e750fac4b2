"""Whether DistributedDataParallel must look for trained parameters that a batch does not use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def find_unused(model: nn.Module, loss: Tensor, config: Mapping[str, Any]) -> bool:
    """False if `loss`, of one batch, depends on every trained parameter, and no router chooses among parameters.

    The search traverses the graph of every step. If it never finds a parameter, DDP warns about it.
    """
    return routes(config) or not {id(p) for p in model.parameters() if p.requires_grad} <= set(_leaves(loss))


def routes(config: Mapping[str, Any]) -> bool:
    """Whether a router chooses among the parameters of a model, so that the next batch may use others."""
    return any("expert" in key and bool(value) for key, value in config.items())


def _leaves(loss: Tensor) -> Iterable[int]:
    """The ids of the parameters that receive a gradient from `loss`."""
    seen: set[Any] = set()
    nodes = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield id(node.variable)
        nodes += [following for following, _ in node.next_functions]
