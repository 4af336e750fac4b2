"""Stacked weights of experts, (E, out, in) or (E, in, out): parameters that are not in a linear layer."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from smollm3_finetune.api import ConfigError, expert_stacks
from smollm3_peft.targets import check_layers, in_layers, matches

ALL_EXPERTS = "all-experts"
_INITS = ("default", "gaussian")
"""Initializations that PEFT implements for stacked weights."""


def resolve(model: PreTrainedModel, wanted: Sequence[str], layers: Sequence[int], options: Any) -> list[str]:
    """The names of parameters to pass to PEFT; only those of `layers`, unless that is empty.

    Raises:
        ConfigError: if a name matches no stacked weight, or other options exclude stacked weights.
    """
    if options.dropout:
        raise ConfigError(
            f"target_parameters needs dropout 0, found {options.dropout:g}: PEFT cannot drop inputs of stacked weights",
            hint="--adapter-opt dropout=0",
        )
    if options.init not in _INITS:
        raise ConfigError(
            f"target_parameters cannot be initialized with {options.init!r}", hint="--adapter-opt init=default"
        )
    stacks = list(expert_stacks(model))
    if not stacks:
        raise ConfigError(
            "target_parameters is given, but the model has no stacked weights of experts",
            hint="omit target_parameters, or name linear layers in target_modules",
        )
    found: list[str] = []
    for name in wanted:
        matching = stacks if name.lower() == ALL_EXPERTS else [s for s in stacks if matches(s, name)]
        if not matching:
            raise _unknown(name, stacks)
        found += matching
    if layers:
        check_layers(model, layers)
        found = in_layers(found, layers)
    else:
        found = _short(model, found)
    return list(dict.fromkeys(found))


def _short(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The last two components of each name, if these match no other parameter; otherwise the full names."""
    short = list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names))
    parameters = [name for name, _ in model.named_parameters()]
    exact = all(name in names for name in parameters if any(matches(name, s) for s in short))
    return short if exact else list(names)


def _unknown(name: str, stacks: Sequence[str]) -> ConfigError:
    known = list(dict.fromkeys(".".join(stack.split(".")[-2:]) for stack in stacks))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.55)
    return ConfigError(
        f"target_parameters names {name!r}, but the model has no such stacked weight of experts",
        hint=f"did you mean {near[0]!r}?" if near else f"stacked weights of the model: {', '.join(known)}",
    )
