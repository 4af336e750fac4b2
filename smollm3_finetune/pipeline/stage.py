"""What a file says about a pipeline and its stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from smollm3_finetune.config.load import Setting
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError, did_you_mean
from smollm3_finetune.pipeline.options import EvalOptions, MergeOptions

Kind = Literal["train", "merge", "quantize", "export", "eval"]
MODELS: tuple[Kind, ...] = ("merge", "quantize", "export")
"""Stages whose result is a model that later stages can take; that of a train stage is an adapter. That of an export
stage can be taken if its exporter states so."""


@dataclass(frozen=True, kw_only=True)
class Ref:
    """What a stage refers to: an earlier stage, or a path."""

    stage: str | None = None
    path: str | None = None
    origin: str = ""
    """Where it is written, such as `pipeline.yaml:7`."""

    @property
    def title(self) -> str:
        return self.stage or self.path or ""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage as the file describes it."""

    name: str
    kind: Kind
    origin: str
    settings: tuple[Setting, ...]
    """Its own keys of a run configuration."""
    start: Ref | None = None
    """The value of `from`."""
    model: Ref | None = None
    """The stage of `model: {stage: NAME}`."""
    against: Ref | None = None
    merge: MergeOptions | None = None
    quantize: ComponentConfig | None = None
    export: ComponentConfig | None = None
    """The exporter and its options."""
    evaluate: EvalOptions | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where its keys are written, such as `quant.bits`: `pipeline.yaml:7`."""

    def refs(self) -> Iterator[Ref]:
        yield from (ref for ref in (self.start, self.model, self.against) if ref is not None)

    def stages(self) -> list[str]:
        """The earlier stages that it refers to."""
        return list(dict.fromkeys(ref.stage for ref in self.refs() if ref.stage is not None))


@dataclass(frozen=True, kw_only=True)
class PipelineFile:
    """A pipeline as its file describes it."""

    path: Path
    name: str
    output: str | None
    defaults: tuple[Setting, ...]
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """The stage of this name. Raises ConfigError if there is none."""
        found = next((s for s in self.stages if s.name == name), None)
        if found is None:
            raise ConfigError(
                f"{self.path} has no stage {name!r}", hint=similar_hint(name, [s.name for s in self.stages])
            )
        return found


def similar_hint(name: str, known: Sequence[str], what: str = "stages") -> str:
    """The hint for a name that does not exist."""
    similar = did_you_mean(name, known)
    return f"did you mean {similar!r}?" if similar else f"{what}: {', '.join(known)}" if known else "name: sft"
