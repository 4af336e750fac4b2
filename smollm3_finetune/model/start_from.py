"""The adapter that a run starts from, and the runs before it: what `from` and `--fresh-adapter` record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.files.checksums import CHECKSUMS
from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.files.limits import load_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_WEIGHTS = (CHECKSUMS, "README.md", "smollm3.json")
"""Files of a saved adapter that say nothing about what it computes."""
SHIPPED = "shipped.json"
"""States the format that an adapter was trained for, which is part of what it computes."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the runs that led to an adapter."""

    run: str
    """The name of the run's directory; of the adapter's directory if the run is not known."""
    adapter: str
    """The adapter method, such as `lora`."""
    objective: str | None = None
    """The objective, such as `sft`; None if it is not known."""
    step: int | None = None
    """Optimizer steps that the run had taken; None if it is not known."""
    merged: bool = False
    """Whether the adapter was merged into the base of the next run."""

    @property
    def shown(self) -> str:
        """The objective, else the method."""
        return f"{self.objective or self.adapter}{', merged' if self.merged else ''}"

    @classmethod
    def of(cls, values: Any) -> Stage:
        """From JSON. Raises TypeError for values of another type."""
        if not isinstance(values, Mapping) or not isinstance(values.get("run"), str):
            raise TypeError("a stage must be an object with the name of a run")
        step, objective, adapter = values.get("step"), values.get("objective"), values.get("adapter")
        if step is not None and (not isinstance(step, int) or isinstance(step, bool)):
            raise TypeError("the step of a stage must be a whole number")
        if not isinstance(adapter, str) or not isinstance(objective, str | None):
            raise TypeError("adapter and objective of a stage must be text")
        return cls(
            run=values["run"], adapter=adapter, objective=objective, step=step, merged=values.get("merged") is True
        )


def stages_of(values: Any) -> tuple[Stage, ...]:
    """The stages in JSON, earliest first. Raises TypeError if it is not a list of stages."""
    if not isinstance(values, list):
        raise TypeError("stages must be a list")
    return tuple(Stage.of(value) for value in values)


def stages_json(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    return [asdict(stage) for stage in stages]


@dataclass(frozen=True, kw_only=True)
class StartFrom:
    """The saved adapter that a run starts from."""

    path: Path
    """The directory of the adapter."""
    run: Path | None
    """The directory of the run that trained it; None for an adapter without its run."""
    fingerprint: str
    """See `adapter_fingerprint`."""
    base_fingerprint: str | None
    """The fingerprint of the weights that it was trained on, if its directory states it."""
    model: str
    """The model that it was trained on, as its run names it."""
    stages: tuple[Stage, ...]
    """The runs that led to it, earliest first; the last one trained it."""
    fresh: bool
    """Whether it is merged into its base, and a new adapter is trained; False: it is trained further."""

    @property
    def last(self) -> Stage:
        """The run that trained the adapter."""
        return self.stages[-1]

    def followed_by(self, objective: str) -> str:
        """The objectives of the runs so far and of this one: `sft → dpo`, `sft, merged → dpo`."""
        return " → ".join([*(stage.shown for stage in self.earlier()), objective])

    def earlier(self) -> tuple[Stage, ...]:
        """The stages before this run, with what happens to the last adapter."""
        return (*self.stages[:-1], replace(self.last, merged=self.fresh))

    def as_json(self) -> dict[str, Any]:
        values = {**asdict(self), "stages": stages_json(self.stages)}
        return {**values, "path": str(self.path), "run": None if self.run is None else str(self.run)}

    @classmethod
    def of(cls, values: Any) -> StartFrom | None:
        """From JSON; None if it is missing or damaged."""
        try:
            stages = stages_of(values["stages"])
            texts = [values[name] for name in ("path", "fingerprint", "model")]
            if not stages or not all(isinstance(text, str) for text in texts):
                return None
            base, run = values["base_fingerprint"], values["run"]
            return cls(
                path=Path(values["path"]),
                run=None if run is None else Path(run),
                fingerprint=values["fingerprint"],
                base_fingerprint=base if isinstance(base, str) else None,
                model=values["model"],
                stages=stages,
                fresh=values["fresh"] is True,
            )
        except (TypeError, KeyError):
            return None


def adapter_fingerprint(directory: Path) -> str:
    """SHA-256 over the weight files of a saved adapter, of all its files if it has none: 32 hexadecimal digits.

    The card and the description do not count. Checksums that were saved with the adapter are used; the caller has
    compared them with the files.
    """
    try:
        sums: Mapping[str, str] = load_json(directory / CHECKSUMS)["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        sums = {}
    names = sorted(_names(directory))
    chosen = [name for name in names if name.endswith(WEIGHTS) or name == SHIPPED] or names
    digests = {name: sums.get(name) or file_sha256(directory / name) for name in chosen}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32]


def continued_tokenizer(own: PreTrainedTokenizerBase, saved: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The base's tokenizer with the chat template saved with an adapter; the adapter's, if its vocabulary is another.

    The adapter's tokenizer ends a text as its chat template ends a turn, so it is not used for rows of raw text.
    """
    if own.get_vocab() != saved.get_vocab():
        return saved
    if saved.chat_template is not None:
        own.chat_template = saved.chat_template
    return own


def _names(directory: Path) -> Iterator[str]:
    for file in directory.rglob("*"):
        if file.is_file() and file.name not in NOT_WEIGHTS:
            yield file.relative_to(directory).as_posix()
