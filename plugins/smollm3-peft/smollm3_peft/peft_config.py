"""PEFT's config objects, built from options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from peft import PeftConfig, PeftType, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.layer import dispatch_default
from torch import nn

from smollm3_finetune.api import Base, ConfigError, expert_stacks
from smollm3_peft import new_tokens, stacked, targets
from smollm3_peft.methods import peft_type
from smollm3_peft.options import MethodOptions
from smollm3_peft.unsuited import Observed

_RESOLVED = ("target_modules", "target_parameters", "modules_to_save", "layers", "feedforward_modules")


def build(
    options: MethodOptions,
    base: Base,
    observed: Observed,
    say: Callable[[str], None],
    rows: Sequence[int] = (),
    **more: Any,
) -> PeftConfig:
    """PEFT's config for these options on this model; reports each kind of layer that is left out.

    The adapter also trains the `rows` of new tokens.

    Raises:
        ConfigError: if module names, layers or sizes do not fit the model.
    """
    arguments: dict[str, Any] = {**options.fixed, **_modules(options, base, observed, say)}
    for field in dataclasses.fields(options):
        if field.name not in _RESOLVED:
            value = getattr(options, field.name)
            values = options.peft_values.get(field.name, {})
            arguments[options.peft_names.get(field.name, field.name)] = values.get(value, value)
    if hasattr(options, "token_ids"):
        targets.check_tokens(base.model, options.token_ids)
    if rows:
        named = (*arguments.get("target_modules", ()), *arguments.get("modules_to_save", ()))
        arguments |= new_tokens.arguments(base.model, rows, named)
    for name, value in arguments.items():
        if isinstance(value, tuple):
            arguments[name] = list(value)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type(options.method))]
    try:
        config = config_class(task_type=TaskType.CAUSAL_LM, **{**arguments, **more})
    except (ValueError, TypeError) as e:
        raise ConfigError(f"adapter {options.method!r} cannot be built with these options: {e}") from e
    return serve_plain_layers(config)


def _modules(options: MethodOptions, base: Base, observed: Observed, say: Callable[[str], None]) -> dict[str, Any]:
    """The arguments that name modules, checked against the model."""
    model, ops_for = base.model, base.ops_for
    arguments: dict[str, Any] = {}
    wanted: tuple[str, ...] | None = getattr(options, "target_modules", None)
    if wanted is None:
        return arguments
    layers = getattr(options, "layers", ())
    if layers:
        targets.check_layers(model, layers)
        arguments["layers_to_transform"] = list(layers)
    if stacks := getattr(options, "target_parameters", ()):
        arguments["target_parameters"] = stacked.resolve(model, stacks, layers, options)
    elif hasattr(options, "target_parameters") and any(expert_stacks(model)):
        say(
            f"adapter {options.method!r} leaves out the stacked weights of experts: to train them too, "
            f"--adapter-opt target_parameters={stacked.ALL_EXPERTS}"
        )
    if wanted or not stacks:
        resolved = targets.resolve(base, wanted, "target_modules", observed, options.method, layers)
        arguments["target_modules"] = resolved.names
        for line in resolved.left_out:
            say(line)
    else:
        arguments["target_modules"] = []
    if saved := getattr(options, "modules_to_save", ()):
        targets.check_modules_to_save(model, ops_for, saved)
        arguments["modules_to_save"] = list(saved)
    if scaled := getattr(options, "feedforward_modules", ()):
        outside = [n for n in scaled if not any(targets.matches(t, n) for t in arguments["target_modules"])]
        if outside:
            raise ConfigError(
                f"feedforward_modules names {outside[0]!r}, which is not among target_modules",
                hint=f"--adapter-opt target_modules={','.join([*wanted, *outside])}",
            )
        arguments["feedforward_modules"] = list(scaled)
    if targets.ties_touched(model, [*arguments["target_modules"], *saved]):
        if peft_type(options.method) != "LORA":
            raise ConfigError(
                f"adapter {options.method!r} cannot train the embeddings of a model that ties them to its head",
                hint="use --adapter lora, which keeps them tied",
            )
        arguments["ensure_weight_tying"] = True
    return arguments


def serve_plain_layers(config: PeftConfig) -> PeftConfig:
    """Make a LoRA config build only PEFT's plain layers.

    PEFT asks every optional quantization library about every layer, and a library of the wrong version raises
    ImportError even if nothing is quantized. No layer needs these libraries here: a quantized layer is a `LinearView`.
    """
    if config.peft_type == PeftType.LORA:
        config._register_custom_module({nn.Module: _plain_layer})
    return config


def _plain_layer(target: nn.Module, adapter_name: str, config: PeftConfig, **kwargs: Any) -> nn.Module:
    layer: nn.Module | None = dispatch_default(target, adapter_name, config=config, **kwargs)
    if layer is None:
        raise ConfigError(
            f"target_modules names a module of type {type(target).__name__}, which LoRA does not support",
            hint="--adapter-opt target_modules=all-linear",
        )
    return layer
