"""Protocols for evaluators: the tasks that they open, the model that they measure and the scores that they return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.api.models import Progress


@dataclass(frozen=True, kw_only=True)
class EvaluationContext:
    """The facts about the evaluation that an evaluator gets before the model is loaded."""

    limit: int | None
    """Use only the first so many documents of each task; None: all."""
    batch_size: int
    """Documents, or requests, in each forward pass."""
    seed: int
    """Seed of the evaluator's random choices, such as its few-shot examples. Python, numpy and torch are seeded with it
    during `evaluate`."""
    progress: Progress
    """Shows what the evaluator does: with a progress bar on a terminal, otherwise as plain lines."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A composed model: base, quantizer and adapter. The caller restores modes and random states afterwards."""

    model: nn.Module
    """In evaluation mode, on its device; gradients are disabled. It is called as a model of transformers, and has
    `generate`. It may be a wrapper that is not a PreTrainedModel. Do not change its weights or its modes."""
    tokenizer: PreTrainedTokenizerBase
    """A copy of the model's tokenizer: settings such as `padding_side` may be changed."""
    prompt: Callable[[Sequence[Mapping[str, Any]]], str]
    """Returns the text of a prompt to answer `messages`, as in training: with the chat template, its date and the
    reasoning mode. It has the special tokens already. Without a chat template, it is the text of the last message."""
    answers: Callable[[Sequence[Sequence[Mapping[str, Any]]], int], list[str]]
    """`answers(conversations, max_new_tokens)` returns the greedy answer to each list of messages, as text without
    special tokens: what `smollm3 generate` answers at temperature 0."""
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the chat template, such as `enable_thinking`, for evaluators that render it themselves."""
    device: str
    """A torch device: `cpu`, `cuda:0`, …"""
    dtype: str
    """Dtype of the computation: `float32`, `bfloat16`, `float16` or `float64`."""
    max_length: int | None
    """The longest sequence that the model takes, in tokens; None if its config does not state it."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end an answer."""


@dataclass(frozen=True, kw_only=True)
class DocumentScore:
    """The value of one metric on one document of a task."""

    task: str
    """Name of the task."""
    document: str
    """Identifies the document in its task; the same for every model, because two models are compared by document."""
    metric: str
    """Name of the metric, such as `acc`."""
    value: float
    """The value on this document. The metric of the task is `sum(value) / sum(terms)`."""
    terms: int = 1
    """How much the document weighs: 1 in a mean over documents, its words if `value` is a sum over words."""
    higher_is_better: bool = True
    """Whether a larger value is better; False for an error rate or a loss."""
    group: str = ""
    """The task reference, if it stands for several tasks, such as `mmlu`: all their documents are compared too."""
    answer: Any = None
    """The answer of the model, or its log-likelihoods, as values that JSON can represent; stored with the results."""


class OpenedTasks(Protocol):
    """Tasks with their documents, opened without a model. They are evaluated several times: with each model."""

    def evaluate(self, model: EvaluatedModel) -> Iterable[DocumentScore]:
        """Return the scores of a model: one for each document and metric.

        The documents and metrics must be the same at each call. Raises DataError if a document cannot be used.
        """
        ...


class Evaluator(Protocol):
    def open(self, tasks: Sequence[str], ctx: EvaluationContext) -> OpenedTasks:
        """Open tasks without a model, so that a wrong name is an error before weights are read.

        `tasks` are references as users type them: names or files. Raises ConfigError, with a hint, for a task that does
        not exist or has no metric of single documents, and DataError if its documents cannot be read.
        """
        ...
