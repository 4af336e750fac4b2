"""References between stages: `from`, `model: {stage: NAME}` and `eval.against` name earlier stages only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.errors import ConfigError
from smollm3_finetune.paths import user_path
from smollm3_finetune.pipeline.stage import MODELS, Kind, Ref, Stage, similar_hint

Lines = Mapping[tuple[str, ...], str]


@dataclass(frozen=True)
class References:
    """The stages that a stage can refer to."""

    earlier: Sequence[Stage]
    names: Sequence[str]
    """The names of all stages before this one, also of those that are not valid."""
    later: Sequence[str]
    """The names of this stage and of those after it."""
    lines: Lines
    at: tuple[str, ...]

    def start(self, value: Any, kind: Kind) -> Ref:
        """The value of `from`. Raises ConfigError if the stage cannot begin with that."""
        where = self.lines[(*self.at, "from")]
        ref = self._found(value, where, "from")
        stage = self._stage(ref)
        if stage is None:
            return ref
        if stage.kind == "eval":
            raise ConfigError(f"{where}: the stage {stage.name!r} evaluates, and has no model")
        if kind == "train" and stage.kind in MODELS:
            raise ConfigError(
                f"{where}: from trains the adapter of a train stage further, and {stage.name!r} writes a model",
                hint=f"to train a new adapter on it: model: {{stage: {stage.name}}}",
            )
        if kind == "merge" and stage.kind != "train":
            raise ConfigError(f"{where}: {stage.name!r} is not a train stage, so it has no adapter to merge")
        if kind == "quantize" and stage.kind == "train":
            raise ConfigError(
                f"{where}: {stage.name!r} is a train stage, and quantize needs a model",
                hint="to merge and quantize: merge: true in the same stage",
            )
        if kind == "quantize" and stage.quantize is not None:
            raise ConfigError(f"{where}: the stage {stage.name!r} is quantized already")
        return ref

    def model(self, value: Mapping[str, Any]) -> Ref:
        """The value of `model` as a mapping. Raises ConfigError if it does not name a stage that writes a model."""
        where = self.lines[(*self.at, "model")]
        if set(value) != {"stage"}:
            raise ConfigError(f"{where}: model must be text or {{stage: NAME}}", hint="model: {stage: NAME}")
        where = self.lines[(*self.at, "model", "stage")]
        ref = self._found(value["stage"], where, "model.stage", paths=False)
        stage = self._stage(ref)
        if stage is not None and stage.kind not in MODELS:
            raise ConfigError(
                f"{where}: the stage {stage.name!r} writes no model",
                hint=f"to train its adapter further: from: {stage.name}" if stage.kind == "train" else None,
            )
        return ref

    def against(self, value: str) -> Ref:
        where = self.lines[(*self.at, "eval", "against")]
        ref = self._found(value, where, "eval.against", hub=True)
        stage = self._stage(ref)
        if stage is not None and stage.kind == "eval":
            raise ConfigError(f"{where}: the stage {stage.name!r} evaluates, so it has no model")
        return ref

    def _stage(self, ref: Ref) -> Stage | None:
        return next((s for s in self.earlier if s.name == ref.stage), None)

    def _found(self, value: Any, where: str, key: str, *, paths: bool = True, hub: bool = False) -> Ref:
        names = [name for name in self.names if name]
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{where}: {key} must be the name of an earlier stage, got {value!r}")
        if value in names:
            return Ref(stage=value, origin=where)
        if value in self.later:
            what = "is this stage" if value == self.later[0] else "comes later"
            raise ConfigError(f"{where}: {key} needs an earlier stage, and {value!r} {what}", hint="move the stages")
        if paths and (hub or user_path(value, key).exists()):
            return Ref(path=value, origin=where)
        raise ConfigError(
            f"{where}: {key}: there is no earlier stage{' or path' if paths else ''} {value!r}",
            hint=similar_hint(value, names),
        )
