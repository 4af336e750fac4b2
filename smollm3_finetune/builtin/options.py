"""The options of the built-in components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option

INPUT = "The column that is appended to the question, after an empty line."


@dataclass(frozen=True, kw_only=True)
class HFOptions:
    """Loader `hf`."""

    revision: str | None = option(None, "Branch, tag or commit on the Hub; none: the main branch.")
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.")
    pickle: bool = option(False, "Accept pickled weights (.bin), which can run code when read.")
    context: int | None = option(
        None, "Longest sequence, in tokens; above the model's own limit, its rope is scaled by YaRN.", ge=1
    )


@dataclass(frozen=True, kw_only=True)
class FullOptions:
    """Adapter `full`."""

    parameters: tuple[str, ...] = option((), "Train only parameters whose name matches one of these globs; none: all.")
    master_weights: bool = option(
        True, "Keep weights in float32 if the run computes in half precision; false: half the memory, less precise."
    )


@dataclass(frozen=True, kw_only=True)
class TurnsOptions:
    """Formatters `messages` and `sharegpt`."""

    learn_user: bool = option(False, "Also train on user turns that have a weight of 1.")


@dataclass(frozen=True, kw_only=True)
class AlpacaOptions:
    """Formatter `alpaca`."""

    learn_history: bool = option(True, "Also train on the answers in `history`.")
    input: str = option("input", INPUT)


@dataclass(frozen=True, kw_only=True)
class PromptCompletionOptions:
    """Formatter `prompt-completion`."""

    prompt: str = option("prompt", "The column that holds the prompt.")
    completion: str = option("completion", "The column that holds the completion; by default also `response`.")
    input: str = option("input", INPUT)


@dataclass(frozen=True, kw_only=True)
class PreferenceOptions:
    """Formatter `preference`."""

    input: str = option("input", INPUT)


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Formatter `text`."""

    column: str = option("text", "The column that holds the text.")


@dataclass(frozen=True, kw_only=True)
class SafetensorsOptions:
    """Exporter `safetensors`."""

    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = option(
        None, "Dtype of the weights; none: that of the model, float32 for a merged one."
    )
    max_shard_size: str = option("5GB", "Largest file, such as 5GB or 500MB; more weights are written to several.")
