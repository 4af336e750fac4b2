"""Protocols for exporters: what they write, and how the result is verified before it is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from smollm3_finetune.api.models import BuildContext, ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What is exported; everything is on disk."""

    model: ModelSource
    """For an exporter of models: the full-precision model, merged if there was an adapter, in a directory of Hugging
    Face's layout with its tokenizer and generation config. For an exporter of adapters: the adapter's base."""
    adapter: Path | None = None
    """For an exporter of adapters: the directory of the saved adapter, with its tokenizer. Otherwise None."""
    name: str
    """A name for files: letters, digits, dots, hyphens and underscores."""
    texts: Callable[[], Iterable[str]] = tuple
    """Returns the training rows of the run as rendered texts; there are none without a run."""
    rows: Callable[[], Sequence[Mapping[str, Sequence[int]]]] = tuple
    """Returns rows to measure predictions on, each with `input_ids` and `labels`: held-out rows of the run, at most
    200, else fixed texts."""
    prompts: Callable[[], Sequence[Sequence[int]]] = tuple
    """Returns fixed rows of token ids to compare logits on, the same for every export of a model."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check of an export. It is shown, and kept in `export.json` and in the card."""

    name: str
    """What is checked, in a few words: `weights`, `tokens`, `chat template`, `logits`."""
    passed: bool | None
    """None: the check could not be carried out here; `says` states why and what to install."""
    says: str
    """What was found, with its figure and limit, as a clause. Of a check that failed, the reason of the refusal."""
    figures: Mapping[str, float | int | str | None] = dataclasses.field(default_factory=dict)
    """Measured values and their limits by name, such as `{"difference": 2e-6, "limit": 1e-5}`."""


class Exporter(Protocol):
    """Writes a model or an adapter for other software. `smollm3 export` keeps nothing if a check fails."""

    def write(self, subject: Exported, out: Path, ctx: BuildContext) -> None:
        """Write `subject` into the empty directory `out`.

        `ctx.grids` are the grids of a run that was trained with `train.ship_as` for this format: weights are rounded
        to them. Raises IncompatibleError if the format cannot hold this model.
        """
        ...

    def verify(self, subject: Exported, out: Path, ctx: BuildContext) -> Sequence[Check]:
        """Check what `write` has written against `subject`, by reading the files in `out`.

        At least one check has a verdict. A check that needs software that is not installed is listed with
        `passed=None`.
        """
        ...

    def reload(self, subject: Exported, out: Path, ctx: BuildContext) -> PreTrainedModel | None:
        """The written model with the weights that it computes with, dense, in float32, on `ctx.device`.

        None if its values cannot be read back. Used to measure what the format costs, and to compare a run that was
        trained with `train.ship_as` bit for bit with what training computed.
        """
        ...
