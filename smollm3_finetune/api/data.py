"""What a factory makes for rows: formatters and objectives, and the conversations and tokens between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase, Trainer


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One training row in the form that chat templates take, or raw text."""

    messages: tuple[Mapping[str, Any], ...] = ()
    """Each with a `role` (`system`, `user`, `assistant`, `tool`) and its `content` as text; calls of tools, in
    OpenAI's form, as `tool_calls`, and reasoning as `<think>…</think>` before the content or as `reasoning_content`."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of functions, as `{"type": "function", "function": {…}}`."""
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The row's own `chat_template_kwargs`."""
    supervised: tuple[int, ...] | None = None
    """The indices of the messages to learn from; None: every assistant message."""
    rejected: tuple[Mapping[str, Any], ...] | None = None
    """For objectives that compare: the messages of the worse conversation, beside `messages`, the better one."""
    text: str | None = None
    """Raw text to learn as it is, instead of messages."""

    def supervised_messages(self) -> list[int]:
        """The indices of the messages to learn from."""
        if self.supervised is not None:
            return list(self.supervised)
        return [i for i, m in enumerate(self.messages) if m["role"] == "assistant"]


class Formatter(Protocol):
    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        """Raises ValueError, with what is wrong, for a row without usable fields."""
        ...


class Encoded(Protocol):
    """A conversation as tokens."""

    input_ids: list[int]
    labels: list[int]
    """The token itself where it is learned, -100 elsewhere."""


class Renderer(Protocol):
    """Turns conversations into tokens by the run's template and options."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def encode(self, conversation: Conversation, max_length: int) -> Encoded:
        """Token ids and labels, cut to `max_length` tokens. Raises DataError where the template refuses."""
        ...

    def note(self, what: str) -> None:
        """Count the row under `what`, a few words: users see it with the counts of the row's source."""
        ...


class Objective(Protocol):
    def prepare(
        self, conversation: Conversation, renderer: Renderer, max_length: int
    ) -> Mapping[str, Sequence[int]] | None:
        """One example, as named lists of integers; None where the row can teach nothing (nothing supervised).

        `input_ids` is among the names and the first of them, since its length is taken for the example's; every
        example has the same names.
        """
        ...

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
        """What makes a batch of examples: tensors (B, T) on the CPU, padded, `input_ids` among them.

        The ones of an `attention_mask`, where there is one, are counted as the batch's tokens.
        """
        ...

    def trainer_class(self) -> type[Trainer]:
        """A class of transformers' Trainer that computes the loss.

        It is made with `model`, `args`, `train_dataset`, `data_collator` and `callbacks`, by name. A loss that is a
        mean takes `num_items_in_batch`, the supervised tokens of the whole step, as its denominator.
        """
        ...

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[float, int]:
        """The summed loss of a batch and the number of terms in it (supervised tokens, for `sft`).

        For the held-out loss: the model is in evaluation mode, the batch on its device, gradients are off.
        """
        ...


@runtime_checkable
class FlatObjective(Objective, Protocol):
    """An objective whose rows may share a sequence, in batches without padding."""

    def flat_collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """As `collator`, and its batches are those of `flatten_rows`, perhaps with more in them."""
        ...


REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that hold its reasoning in public datasets; templates use the first."""
IGNORE_INDEX = -100
"""The label of a token that no loss looks at (torch.nn.functional.cross_entropy's default)."""
