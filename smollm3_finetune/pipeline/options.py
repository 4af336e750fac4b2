"""The keys of `merge` and `eval` in a stage. Those of `quantize` are the options of the quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How a merge stage merges; as the options of `smollm3 merge`."""

    dtype: str | None = option(None, "Dtype of the saved weights; default: the base's.")
    compute_dtype: str | None = option(None, "Dtype used to compute; default: the run's, else auto.")
    max_drift: float | None = option(
        None, "Largest relative error of the merge in the logits; default: depends on the dtype.", gt=0
    )
    force: bool = option(False, "Keep the merged model even if its error is larger.")
    untie: bool = option(
        False, "Write embeddings and head as two matrices, for an adapter that changes only one of a tied pair."
    )
    any_base: bool = option(False, "Allow an adapter that was trained on other weights.")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What an eval stage measures; as the options of `smollm3 eval`."""

    against: str | None = option(None, "Compare with this earlier stage, run or model; default: the base.")
    limit: int | None = option(None, "Measure at most this many rows, chosen at random.", ge=1)
    tasks: tuple[str, ...] = option((), "Also measure on these tasks: names or files.")
    evaluator: str | dict[str, Any] | None = option(
        None, "Evaluator of the tasks, or a mapping with its name and options; default: the one that recognizes them."
    )
    fail_if: Literal["worse", "not-better"] | None = option(None, "End with exit code 9 if the verdict is this.")
    answers: int = option(16, "Number of held-out prompts that both models answer; 0: none.", ge=0)
    max_new_tokens: int = option(128, "Longest answer, in tokens.", ge=1)
    null_adapter: bool = option(True, "Also measure a random adapter of the same size, as a control.")
    overlap: Literal["near", "exact", "keep"] = option(
        "near", "Leave out held-out rows that are also training rows: near duplicates and copies, only copies, or none."
    )
    batch_size: int | None = option(None, "Rows per forward pass; default: the run's, else 8.", ge=1)
    seed: int = option(0, "Random seed of the sample, the prompts and the interval.", ge=0, le=2**32 - 1)
    any_base: bool = option(False, "Allow an adapter that was trained on other weights.")
