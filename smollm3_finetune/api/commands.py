"""What a command of a plugin gets: `@click.pass_obj` passes a `CommandTools`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from smollm3_finetune.api.data import Conversation, Encoded

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.api.models import Base, ModelSource, Progress


class SavedRun(Protocol):
    """The directory of a run."""

    directory: Path
    """Relative if the reference is."""
    state: str
    """`finished`, `running`, `interrupted`, …: as `smollm3 runs list` shows it."""
    configuration: Mapping[str, Any]
    """The resolved configuration, as in `run.yaml`."""
    report: Mapping[str, Any] | None
    """The content of `report.json`; None if the run has none yet."""

    def metrics(self) -> Iterator[Mapping[str, Any]]:
        """The lines of `metrics.jsonl`, in order; a line that was cut off is left out."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer of a model, and its numbers of tokens."""

    text: str
    """Without special tokens."""
    finish: Literal["stop", "length"]
    """Whether the model ended its answer, or the answer reached its limit of tokens."""
    prompt_tokens: int
    """Of the messages, as the chat template renders them."""
    tokens: int
    """Of the answer, with the one that ends it."""


@dataclass(frozen=True, kw_only=True)
class CommandRow:
    """A training row as a run would use it."""

    where: str
    """Its file and line, for messages."""
    conversation: Conversation
    """What the formatter made of it."""
    left_out: str = ""
    """Why it is not trained on; empty if it is. Reasons that depend on its tokens need a model."""
    sequences: Mapping[str, Encoded] = field(default_factory=dict)
    """Its tokens, after truncation; empty without a model. The name is `""` for the only sequence of a row; a pair has
    `prompt`, `chosen` and `rejected`, a long text `chunk 1 of 3`, …"""
    tokens: int = 0
    """Of all sequences, as `smollm3 data stats` counts them: 0 if the row is left out."""
    supervised: int = 0
    """Those of `tokens` on which the loss is computed."""
    length: int = 0
    """Tokens before truncation; of the longest sequence, if there are several."""


class OpenedModel(Protocol):
    """A model that was composed for inference: base, quantizer and adapter."""

    model: nn.Module
    """In evaluation mode, on its device."""
    tokenizer: PreTrainedTokenizerBase
    """The one saved with the adapter, else that of the model."""
    base: Base
    """The model without the adapter, and the operations of its quantized layers."""

    def answer(self, messages: Sequence[Mapping[str, Any]], max_new_tokens: int = 256, **sampling: Any) -> str:
        """The text of `reply`."""
        ...

    def reply(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_new_tokens: int = 256,
        *,
        stream: Callable[[str], None] | None = None,
        **sampling: Any,
    ) -> Reply:
        """Answer `messages`, rendered as in training.

        `stream` gets each piece of the text when it is generated. `sampling`: `temperature`, `top_p`, `top_k`,
        `min_p`, `repetition_penalty`, `seed`; without a temperature, the most probable token is taken. Raises
        ConfigError if the messages do not fit into the context, or for a value that is out of range.
        """
        ...


class CommandTools(Protocol):
    """What core does for a command: the same as for its own ones."""

    progress: Progress
    """Shows the progress of a task on standard error."""

    def run(self, reference: str | Path) -> SavedRun:
        """Open a run: its directory, or its name in `runs/`. Raises ModelError if there is none, or it is damaged."""
        ...

    def source(self, reference: str | Path, **settings: Any) -> ModelSource:
        """Open a model without reading weights: for its `tokenizer()`, `config` and `path`.

        Of a run or a saved adapter, it is the base, with the tokenizer of the adapter. `settings`: `loader`, a name or
        a mapping with the name and options. Raises a SmolLM3Error.
        """
        ...

    def rows(self, data: Any, *, model: str | Path | None = None, **settings: Any) -> Iterator[CommandRow]:
        """Read rows as a run does, one by one: formatter, chat template, loss mask, truncation.

        `data` is a value of `data.path`: a file, glob, directory or Hub ID, a mapping, or a list of them. Without
        `model`, a model or a run, rows have no tokens. `settings` are those of `smollm3 data stats`: keys of the
        section `data`, such as `max_length` or `enable_thinking`, and `formatter`, `objective`, `adapter`, `quant` and
        `loader`, each a name or a mapping with the name and options. Reads no weights. Wrong settings are refused in
        the call, wrong rows when they are reached. Raises a SmolLM3Error.
        """
        ...

    def model(self, reference: str | Path, **settings: Any) -> OpenedModel:
        """Load a model, or a run with its adapter, for inference.

        `settings`: `loader`, `quant`, `adapter`, each a name or a mapping with the name and options, `adapter_path`,
        `device`, `dtype`, `seed`. Those of a run are decided by the run. Raises a SmolLM3Error.
        """
        ...

    def train(self, configuration: Mapping[str, Any]) -> SavedRun:
        """Plan and execute a run, as `smollm3 train` does with this configuration file. Raises a SmolLM3Error."""
        ...

    def print(self, text: str) -> None:
        """Print a line of the result on standard output; messages go to `say`."""
        ...

    def say(self, text: str) -> None:
        """Print a line on standard error."""
        ...
