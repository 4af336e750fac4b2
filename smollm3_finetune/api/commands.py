"""What a command of a plugin gets: `@click.pass_obj` passes a `CommandTools`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.api.models import Base, Progress


class SavedRun(Protocol):
    """The directory of a run."""

    directory: Path
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
    finish: Literal["stop", "length"]
    """Whether the model ended its answer, or the answer reached its limit of tokens."""
    prompt_tokens: int
    tokens: int
    """Of the answer, with the one that ends it."""


class OpenedModel(Protocol):
    """A model that was composed for inference: base, quantizer and adapter."""

    model: nn.Module
    """In evaluation mode, on its device."""
    tokenizer: PreTrainedTokenizerBase
    base: Base

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

    def run(self, reference: str | Path) -> SavedRun:
        """Open a run: its directory, or its name in `runs/`. Raises ModelError if there is none, or it is damaged."""
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
