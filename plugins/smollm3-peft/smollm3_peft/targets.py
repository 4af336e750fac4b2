"""Selects the modules that get an adapter: resolves shorthands, checks names, and explains wrong ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from smollm3_finetune.api import Base, ConfigError, IncompatibleError, LinearOps
from smollm3_peft import unsuited
from smollm3_peft.methods import peft_type
from smollm3_peft.unsuited import Observed

OpsFor = Callable[[nn.Module], LinearOps | None]

ALL_LINEAR = "all-linear"
ALL_NORM = "all-norm"
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_out")


def linear_names(model: PreTrainedModel, ops_for: OpsFor) -> dict[str, bool]:
    """Full names of all linear layers, and whether each is quantized.

    Without the head, which shares the embeddings' weight.
    """
    head = model.get_output_embeddings()
    names: dict[str, bool] = {}
    inside: tuple[str, ...] = ()  # a quantized layer may contain linear layers
    for name, module in model.named_modules():
        if module is head or name.startswith(inside or ("\0",)):
            continue
        if ops_for(module) is not None:
            names[name] = True
            inside = (*inside, name + ".")
        elif isinstance(module, nn.Linear | Conv1D):
            names[name] = False
    return names


def norm_names(model: nn.Module) -> list[str]:
    """Full names of all normalization layers, found by the names of their classes."""
    return [name for name, module in model.named_modules() if name and "norm" in type(module).__name__.lower()]


def suffixes(names: Iterable[str]) -> list[str]:
    """The last components of module names, without duplicates, in order."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def matches(name: str, wanted: str) -> bool:
    """Whether PEFT matches module `name` with `wanted`: the full name or its last components."""
    return name == wanted or name.endswith("." + wanted)


@dataclass(frozen=True)
class Resolved:
    """The module names to pass to PEFT, and a sentence for every reason to leave modules out."""

    names: list[str]
    left_out: list[str]


def in_layers(names: Iterable[str], layers: Sequence[int]) -> list[str]:
    """The full names whose first number is one of `layers`; PEFT does not limit full names to them. Empty: all."""
    numbers = [(name, next((int(part) for part in name.split(".") if part.isdecimal()), None)) for name in names]
    return [name for name, number in numbers if not layers or number in layers]


def resolve(
    base: Base, wanted: Sequence[str], option: str, observed: Observed, method: str, layers: Sequence[int] = ()
) -> Resolved:
    """The modules of `wanted` that an adapter can train; full names only in `layers`, unless that is empty.

    Shorthands leave out the layers of `unsuited`; a name leaves out modules that text does not run through, unless it
    matches no others.

    Raises:
        ConfigError: if `wanted` is empty, or a name matches no module, or only layers that are not linear maps.
    """
    model, ops_for = base.model, base.ops_for
    if not wanted:
        raise ConfigError(f"{option} is empty", hint=f"--adapter-opt {option}={ALL_LINEAR}")
    modules = [name for name, _ in model.named_modules() if name]
    linear = linear_names(model, ops_for)
    reasons = unsuited.reasons(model, linear, observed, peft_type(method))
    unreached = observed.unreached(model)
    found: list[str] = []
    left_out: dict[str, tuple[str, str]] = {}
    for name in wanted:
        if name.lower() == ALL_LINEAR:
            everything = [n for n in linear if n not in reasons]
            left_out |= reasons
        elif name.lower() == ALL_NORM:
            everything = [n for n in norm_names(model) if n not in unreached]
        else:
            check_exists(model, ops_for, name, option)
            matching = [n for n in modules if matches(n, name)]
            if all(reasons.get(n, ("", ""))[0] == unsuited.NOT_LINEAR for n in matching):
                raise ConfigError(
                    f"{option} names {name!r}, but the forward of {matching[0]} is not a plain linear map",
                    hint=f"--adapter-opt {option}={ALL_LINEAR}",
                )
            everything = [n for n in matching if n not in unreached] or matching
            left_out |= {n: reasons[n] for n in matching if n in reasons and n not in everything}
            found += [name] if everything == matching else in_layers(everything, layers)
            continue
        if not everything:
            raise ConfigError(
                f"{option}: the model has no layer that {name} can name", hint=f"--adapter-opt {option}=NAME"
            )
        short = suffixes(everything)
        exact = all(n in everything for n in modules if any(matches(n, s) for s in short))
        found += short if exact else in_layers(everything, layers)
    return Resolved(list(dict.fromkeys(found)), unsuited.lines(left_out.values(), method))


def check_exists(model: PreTrainedModel, ops_for: OpsFor, wanted: str, option: str) -> None:
    """Raises ConfigError, with the most similar name, if `wanted` matches no module."""
    names = [name for name, _ in model.named_modules() if name]
    if any(matches(name, wanted) for name in names):
        return
    linear = suffixes(linear_names(model, ops_for))
    near = difflib.get_close_matches(wanted, [*linear, *suffixes(names)], n=1, cutoff=0.55)
    hint = f"did you mean {near[0]!r}?" if near else f"linear layers of the model: {', '.join(linear)}"
    raise ConfigError(f"{option} names {wanted!r}, but the model has no such module", hint=hint)


def check_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Raises ConfigError if a layer index is outside the model."""
    count = int(model.config.get_text_config().num_hidden_layers)
    wrong = [index for index in layers if not 0 <= index < count]
    if wrong:
        raise ConfigError(
            f"layers names {', '.join(map(str, wrong))}, but the model has layers 0 to {count - 1}",
            hint=f"--adapter-opt layers={count - 2},{count - 1}",
        )


def check_modules_to_save(model: PreTrainedModel, ops_for: OpsFor, wanted: Sequence[str]) -> None:
    """Raises ConfigError if a module to train in full does not exist, IncompatibleError if it is quantized."""
    for name in wanted:
        check_exists(model, ops_for, name, "modules_to_save")
        for full, module in model.named_modules():
            if matches(full, name) and any(ops_for(child) is not None for child in module.modules()):
                raise IncompatibleError(
                    f"modules_to_save names {name!r}, but {full!r} is quantized and cannot be trained in full",
                    hint=f"--adapter-opt target_modules={name}",
                )


def ties_touched(model: PreTrainedModel, names: Iterable[str]) -> bool:
    """Whether `names` includes the embeddings or the head of a model that ties them."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return False
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    wanted = tuple(names)
    return any(module in tied and any(matches(full, n) for n in wanted) for full, module in model.named_modules())


def check_tokens(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    """Raises ConfigError if `token_ids` is empty or contains an id outside the vocabulary."""
    size = int(model.get_input_embeddings().weight.shape[0])
    if not token_ids:
        raise ConfigError("token_ids is empty", hint=f"--adapter-opt token_ids={size - 2},{size - 1}")
    wrong = [token for token in token_ids if not 0 <= token < size]
    if wrong:
        raise ConfigError(
            f"token_ids names {', '.join(map(str, wrong))}, but the model has tokens 0 to {size - 1}",
            hint=f"--adapter-opt token_ids={size - 1}",
        )
