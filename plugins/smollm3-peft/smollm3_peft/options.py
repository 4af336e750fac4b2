"""Options of the LoRA family, and base classes for the options of all methods. Imports neither torch nor peft.

Each class names its method (`method`), and PEFT's names for fields that have another name there (`peft_names`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Class attributes that the implementation reads from every options class."""

    method: ClassVar[str]
    peft_names: ClassVar[Mapping[str, str]] = {}
    """PEFT's names of fields that have another name there; a field that maps to "" is not passed to PEFT."""
    peft_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {}
    """PEFT's values of fields whose values have another name there."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Arguments of PEFT's config class that are not options."""


@dataclass(frozen=True, kw_only=True)
class TargetOptions(MethodOptions):
    """For methods that replace modules."""

    target_modules: tuple[str, ...] = option(
        ("all-linear",),
        "Modules that get an adapter, each given by the end of its name (`q_proj,v_proj`); `all-linear`: every linear "
        "layer except the head.",
    )
    modules_to_save: tuple[str, ...] = option(
        (), "Modules to train in full and save with the adapter; each is given by the end of its name."
    )


@dataclass(frozen=True, kw_only=True)
class LayerOptions(TargetOptions):
    """For methods that can be limited to some transformer layers."""

    layers: tuple[int, ...] = option((), "Transformer layers that get an adapter, counted from 0; empty: all of them.")


@dataclass(frozen=True, kw_only=True)
class _LoraFamily(LayerOptions):
    rank: int = option(16, "Rank R of the update: B (out, R) times A (R, in).", ge=1)
    alpha: float = option(32.0, "The update is scaled by alpha / rank.", gt=0)
    dropout: float = option(0.0, "Probability that an input of A is dropped in training.", ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"] = option(
        "none", "Biases to train too: none, all biases of the model, or those of the target modules."
    )

    peft_names: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}


_TARGET_PARAMETERS = (
    "Stacked weights of experts (E, out, in) that get an adapter too, each given by the end of its name "
    "(`experts.gate_up_proj`); `all-experts`: all of them; needs dropout 0."
)


@dataclass(frozen=True, kw_only=True)
class LoraOptions(_LoraFamily):
    """LoRA: a low-rank update beside each linear layer."""

    method: ClassVar[str] = "lora"
    target_parameters: tuple[str, ...] = option((), _TARGET_PARAMETERS)
    init: Literal["default", "gaussian", "orthogonal", "mica", "pissa", "olora", "random"] = option(
        "default",
        "Initialization of A and B. default (A uniform, B zero), gaussian (A normal, B zero), orthogonal and mica "
        "initially leave the base model's output unchanged; pissa and olora move part of the base weight into the "
        "adapter; random initially changes the output.",
    )

    peft_names: ClassVar[Mapping[str, str]] = {**_LoraFamily.peft_names, "init": "init_lora_weights"}
    peft_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"init": {"default": True, "random": False}}


@dataclass(frozen=True, kw_only=True)
class RsLoraOptions(_LoraFamily):
    """Rank-stabilized LoRA: scaled by alpha / √rank."""

    method: ClassVar[str] = "rslora"
    target_parameters: tuple[str, ...] = option((), _TARGET_PARAMETERS)
    alpha: float = option(8.0, "The update is scaled by alpha / sqrt(rank).", gt=0)
    init: Literal["default", "gaussian", "orthogonal", "mica"] = option(
        "default", "Initialization of A and B, as for lora; each initially leaves the base model's output unchanged."
    )

    peft_names: ClassVar[Mapping[str, str]] = {**_LoraFamily.peft_names, "init": "init_lora_weights"}
    peft_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"init": {"default": True}}
    fixed: ClassVar[Mapping[str, Any]] = {"use_rslora": True}


@dataclass(frozen=True, kw_only=True)
class DoraOptions(_LoraFamily):
    """DoRA: LoRA on the direction of each weight row, with a learned magnitude."""

    method: ClassVar[str] = "dora"
    init: Literal["default", "gaussian"] = option(
        "default", "Initialization of A: uniform (default) or normal (gaussian); B starts at zero."
    )

    peft_names: ClassVar[Mapping[str, str]] = {**_LoraFamily.peft_names, "init": "init_lora_weights"}
    peft_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"init": {"default": True}}
    fixed: ClassVar[Mapping[str, Any]] = {"use_dora": True}


@dataclass(frozen=True, kw_only=True)
class AdaLoraOptions(LayerOptions):
    """AdaLoRA: starts with a larger rank everywhere and keeps the most important singular values."""

    method: ClassVar[str] = "adalora"
    rank: int = option(8, "Mean rank of the layers at the end.", ge=1)
    initial_rank: int = option(12, "Rank of every layer at the start; at least `rank`.", ge=1)
    alpha: float = option(32.0, "The update is scaled by alpha / rank.", gt=0)
    dropout: float = option(0.0, "Probability that an input of A is dropped in training.", ge=0, lt=1)
    warmup_steps: int | None = option(None, "Optimizer steps before ranks are reduced; none: a tenth of the run.", ge=0)
    final_steps: int | None = option(
        None, "Optimizer steps with fixed ranks at the end; none: a fifth of the run.", ge=0
    )
    interval: int = option(1, "Optimizer steps between two reductions of the ranks.", ge=1)
    orthogonality: float = option(0.5, "Weight of the loss term that keeps A and B orthogonal.", ge=0)

    peft_names: ClassVar[Mapping[str, str]] = {
        "rank": "target_r",
        "initial_rank": "init_r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "warmup_steps": "tinit",
        "final_steps": "tfinal",
        "interval": "deltaT",
        "orthogonality": "orth_reg_weight",
    }
