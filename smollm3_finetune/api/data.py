"""Protocols for training rows: formatters, objectives, and the conversations and tokens passed between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase, Trainer


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One training row: messages for a chat template, or raw text."""

    messages: tuple[Mapping[str, Any], ...] = ()
    """Each message has a `role` (`system`, `user`, `assistant`, `tool`) and a text `content`. Tool calls are in
    `tool_calls`, in OpenAI's format. Reasoning is `<think>…</think>` before the content, or `reasoning_content`."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of functions, as `{"type": "function", "function": {…}}`."""
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The row's own `chat_template_kwargs`."""
    supervised: tuple[int, ...] | None = None
    """Indices of the messages to train on; None: every assistant message."""
    rejected: tuple[Mapping[str, Any], ...] | None = None
    """For preference objectives: the messages of the rejected conversation; `messages` is the chosen one. `encode`
    renders in the mode of the pair: think if one of the two has reasoning."""
    text: str | None = None
    """Raw text to train on, instead of messages."""
    desirable: bool | None = None
    """Whether the row labels its answer as good; None: the row has no label. Rows with False are trained on only by
    objectives whose descriptor has `uses_labels`."""
    unread: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Names of values that were not read although their column was stated as read, such as `messages[].date`: users see
    how many rows have each. Not part of the conversation: it changes neither tokens nor the held-out split."""
    lacks: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    """Why a field is None, such as `{"rejected": "the answers are equal"}`: a phrase that completes `left out: …`.
    Objectives that need the field leave the row out, and users see how many rows have each reason."""

    def rejected_conversation(self) -> Conversation:
        """The rejected conversation as one that can be encoded; `rejected` must not be None.

        Supervised are its assistant messages after the beginning that both conversations share, and in that beginning
        the messages that are supervised in the chosen one. Its own `rejected` is the chosen conversation, so both are
        rendered in the same reasoning mode.
        """
        assert self.rejected is not None
        both = zip(self.messages, self.rejected, strict=False)
        most = min(len(self.messages), len(self.rejected)) - 1
        shared = next((i for i, (one, other) in enumerate(both) if i == most or one != other), 0)
        trained = [i for i in self.supervised_messages() if i < shared]
        trained += [i for i, m in enumerate(self.rejected) if i >= shared and m["role"] == "assistant"]
        return dataclasses.replace(
            self, messages=self.rejected, rejected=self.messages, supervised=tuple(trained), lacks={}
        )

    def supervised_messages(self) -> list[int]:
        """Indices of the messages to train on."""
        if self.supervised is not None:
            return list(self.supervised)
        return [i for i, m in enumerate(self.messages) if m["role"] == "assistant"]


class Formatter(Protocol):
    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        """Convert one dataset row into a conversation.

        Raises ValueError, with the reason, if the row has no usable fields; if the exception has a text `hint`, users
        see it too.
        """
        ...


@runtime_checkable
class FormatterWithColumns(Formatter, Protocol):
    """A formatter that states which columns it reads, so that users see which columns of their rows are not used."""

    @property
    def columns(self) -> Collection[str]:
        """The columns that the formatter reads with its options; a class attribute is enough if options change nothing.

        For every source, the other columns are named with the number of rows that have a value in them. Removing a
        column that is not stated must not change the conversation. Without this attribute, nothing is reported.
        """
        ...


class Encoded(Protocol):
    """A tokenized conversation."""

    input_ids: list[int]
    labels: list[int]
    """Same length as `input_ids`: the token id at supervised positions, -100 elsewhere."""


class Renderer(Protocol):
    """Converts conversations to tokens, with the chat template and options of the run."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def encode(self, conversation: Conversation, max_length: int) -> Encoded:
        """Return token ids and labels, cut to `max_length` tokens. Raises DataError if the chat template fails."""
        ...

    def note(self, what: str) -> None:
        """Count the current row under `what`, a phrase of a few words; users see the counts for each data source."""
        ...


class Objective(Protocol):
    def prepare(
        self, conversation: Conversation, renderer: Renderer, max_length: int
    ) -> Mapping[str, Sequence[int]] | None:
        """Convert one conversation into an example: named lists of integers.

        Called for each row, before training. The first name must be `input_ids`, because its length counts as the
        length of the example. All examples must have the same names. Return None to skip the row, for example if it
        has no supervised tokens.

        Raises ValueError or DataError, with the reason, if the row has a fault that the user should fix; users see it
        with the file and line of the row, and the exception's text `hint`, if it has one. Any other exception is
        reported as a fault of the plugin.
        """
        ...

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
        """Return the function that combines examples into a batch: padded tensors (B, T) on the CPU.

        The batch must contain `input_ids`. If it contains an `attention_mask`, the ones in it are counted as the
        tokens of the batch. It may have more rows than examples, for example two for each preference pair;
        `train.batch_size` counts examples. The examples must not be changed.
        """
        ...

    def trainer_class(self) -> type[Trainer]:
        """Return a subclass of `transformers.Trainer` that computes the loss.

        It is constructed with the keyword arguments `model`, `args`, `train_dataset`, `data_collator` and `callbacks`.
        If the loss is a mean, divide its sum by `num_items_in_batch`, the number of terms in the whole optimizer step:
        the supervised tokens (`labels` other than -100, without the first of each row), or what the objective's method
        `terms` counts (`CountedObjective`). With several processes it is their mean, because gradients are averaged: do
        not multiply the loss by the number of processes.

        If the rows of a pass do not divide evenly among several processes, the last batch of a process is smaller. A
        process without rows left gets one row of the pass again, because all must exchange gradients: core counts no
        terms of it and multiplies its loss by 0. Only a Trainer that collects measures of its own must leave that row
        out: the attribute `idle` of the Trainer, which core sets before `compute_loss`, is then True.
        """
        ...

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[float, int]:
        """Return the summed loss of a batch and the number of terms in the sum (for `sft`: supervised tokens).

        Called for the held-out loss: the model is in evaluation mode, the batch is on its device, and gradients are
        disabled. It is the loss of training: the sum over the terms is the same regardless of which rows share a batch,
        and the number of terms is the one that training divides by.
        """
        ...


@runtime_checkable
class CountedObjective(Objective, Protocol):
    """An objective whose loss is a mean over terms that are not supervised tokens, such as rows or pairs of rows."""

    def terms(self, batch: Mapping[str, Tensor]) -> int:
        """Return the number of terms in the loss of a batch, as `loss_sum` returns it.

        `num_items_in_batch` is then the sum over all batches of the optimizer step, also if batches have no `labels`,
        and the Trainer does not divide the loss by the number of accumulated batches. `batch` is a batch of `collator`
        or `flat_collator`, on any device.
        """
        ...


@runtime_checkable
class RowObjective(Objective, Protocol):
    """An objective that measures the loss of each row of a batch, for the verdict on a change of the held-out loss."""

    def row_losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed loss of each example of a batch and the number of terms in each sum: (R,) and (R,).

        R is the number of examples, in their order, also if the batch has several rows for each. Called as `loss_sum`
        is, for batches of `collator` and of `flat_collator`. The sums and numbers add up to what `loss_sum` returns.
        Without this method, `loss_sum` is called for each example alone, which takes longer.
        """
        ...


@runtime_checkable
class MeasuringObjective(Objective, Protocol):
    """An objective that has more to say about a held-out row than its loss, such as accuracy and margin."""

    def row_measures(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return values of each example of a batch by name, (R,) each, from one forward of the model.

        Two names are required: `loss`, the summed loss of each example, and `terms`, the number of terms in each sum,
        as `row_losses` returns them. Every other name is a measure; nan marks an example that does not have it. Called
        instead of `row_losses`, as `loss_sum` is called. Reports give the mean of each measure before and after
        training, and the mean of the paired difference, with 95 % intervals.
        """
        ...


@runtime_checkable
class ReferenceObjective(Objective, Protocol):
    """An objective whose loss compares the model with a reference, the one that its descriptor names in `reference`.

    Before `compute_loss`, `loss_sum`, `row_losses` and `row_measures` are called, core computes the values of the
    reference and puts them into the batch: `batch["reference"]` is what `reference_values` returned, one mapping for
    each example, on the device of the batch. With `train.reference=each-step` they are computed just before the step,
    on the same batch in the same layout, so an adapter that starts as the identity gives exactly the values of the
    model itself; with `once` before the first step, and stored.
    """

    @property
    def reference_options(self) -> Collection[str]:
        """Names of the objective's options on which the values depend; stored values of others are used again."""
        ...

    def reference_values(self, model: nn.Module, batch: Mapping[str, Any]) -> Sequence[Mapping[str, Tensor]]:
        """Return one mapping of tensors of any shape for each example of the batch, in their order.

        `model` is the reference, in evaluation mode; gradients are disabled. The values of an example must not depend
        on the other examples of the batch, unless the objective has an attribute `reference_needs_batch` that is True:
        `train.reference=once`, and a `train.batch_size` of 1 without packing, are then refused. All mappings have the
        same names. If an example has several rows, as a pair has two, its mapping has the values of all of them:

            return [{"logps": logps} for logps in row_logps(model, batch).view(-1, 2)]  # (2,) for each pair
        """
        ...


@runtime_checkable
class FlatObjective(Objective, Protocol):
    """An objective that can train on several rows in one sequence, in batches without padding."""

    def flat_collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Like `collator`, but its batches contain everything that `flatten_rows` returns; they may contain more."""
        ...


@runtime_checkable
class BranchedObjective(FlatObjective, Protocol):
    """An objective whose examples have several answers to one prompt, which is computed once."""

    def branched_collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Like `flat_collator`, but its batches contain everything that `flatten_branches` returns.

        Used where model and adapter compute the branches as if each followed its prefix alone, else `flat_collator`.
        """
        ...


REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold its reasoning in public datasets; templates use the first."""
IGNORE_INDEX = -100
"""The label of a token that the loss ignores (default of torch.nn.functional.cross_entropy)."""
BRANCHES = "branches"
"""The name in an example of the lengths of its shared prefix and of each branch; see `branched_example`."""
