"""What a command of a plugin gets: `@click.pass_obj` passes a `CommandTools`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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


class OpenedModel(Protocol):
    """A model that was composed for inference: base, quantizer and adapter."""

    model: nn.Module
    """In evaluation mode, on its device."""
    tokenizer: PreTrainedTokenizerBase
    base: Base

    def answer(self, messages: list[Mapping[str, Any]], max_new_tokens: int = 256, **sampling: Any) -> str:
        """The answer to `messages`, rendered as in training. `sampling`: `temperature`, `top_p`, `top_k`, `seed`."""
        ...


class CommandTools(Protocol):
    """What core does for a command: the same as for its own ones."""

    progress: Progress

    def run(self, reference: str | Path) -> SavedRun:
        """Open the directory of a run. Raises DataError if it is none."""
        ...

    def model(self, reference: str | Path, **settings: Any) -> OpenedModel:
        """Load a model, or a run with its adapter, for inference.

        `settings` are keys of a configuration, such as `quant="bnb-4bit"` or `device="cpu"`. Raises a SmolLM3Error.
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
