"""Options of the methods that train inputs instead of weights. Imports neither torch nor peft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from smollm3_finetune.api import option
from smollm3_peft.options import MethodOptions


@dataclass(frozen=True, kw_only=True)
class TrainableTokensOptions(MethodOptions):
    """Trains the embeddings of some tokens."""

    method: ClassVar[str] = "trainable-tokens"
    token_ids: tuple[int, ...] = option(
        (), "Ids of the tokens whose embeddings are trained, for example new special tokens."
    )
    peft_names: ClassVar[Mapping[str, str]] = {"token_ids": "token_indices"}


@dataclass(frozen=True, kw_only=True)
class PromptTuningOptions(MethodOptions):
    """Trains embeddings that are prepended to every input."""

    method: ClassVar[str] = "prompt-tuning"
    virtual_tokens: int = option(20, "Length of the trained prompt (tokens).", ge=1)
    peft_names: ClassVar[Mapping[str, str]] = {"virtual_tokens": "num_virtual_tokens"}


@dataclass(frozen=True, kw_only=True)
class PTuningOptions(PromptTuningOptions):
    """Trains a small network that computes the embeddings prepended to every input."""

    method: ClassVar[str] = "p-tuning"
    encoder: Literal["MLP", "LSTM"] = option("MLP", "Type of the network.")
    encoder_width: int = option(128, "Width of the network.", ge=1)
    peft_names: ClassVar[Mapping[str, str]] = {
        **PromptTuningOptions.peft_names,
        "encoder": "encoder_reparameterization_type",
        "encoder_width": "encoder_hidden_size",
    }


@dataclass(frozen=True, kw_only=True)
class PrefixTuningOptions(PromptTuningOptions):
    """Trains keys and values that every layer attends to."""

    method: ClassVar[str] = "prefix-tuning"
    projection: bool = option(False, "Compute the prefix with a network of width `encoder_width`.")
    encoder_width: int = option(128, "Width of the network.", ge=1)
    peft_names: ClassVar[Mapping[str, str]] = {
        **PromptTuningOptions.peft_names,
        "projection": "prefix_projection",
        "encoder_width": "encoder_hidden_size",
    }
