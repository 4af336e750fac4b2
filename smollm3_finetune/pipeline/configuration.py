"""The run configuration of a stage: its own keys over the defaults of the file, with references as paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from smollm3_finetune.config.load import LoadedConfig, Setting, assemble
from smollm3_finetune.config.preset import with_presets
from smollm3_finetune.paths import user_path
from smollm3_finetune.pipeline.results import model_in
from smollm3_finetune.pipeline.stage import Kind, PipelineFile, Ref, Stage
from smollm3_finetune.runs.reopen import CODE_EXECUTION_OPTIONS, saved_configuration
from smollm3_finetune.runs.rundir import RunDir

START = "from"
"""The key of a run configuration for the adapter that a run trains further."""
OF_TRAINING = ("train", "launcher", "optimizer", "tracker")
"""Sections that only a run uses."""
OF_A_RUN = ("model", "quant", "adapter", "objective", "formatter", "data", "calibration", *OF_TRAINING)
UNUSED: Mapping[Kind, tuple[str, ...]] = {
    "train": (),
    "merge": OF_A_RUN,
    "quantize": ("quant", "adapter", *OF_TRAINING),
    "export": OF_A_RUN,
    "eval": OF_A_RUN,
}
"""Defaults of the file that a stage does not use."""
Directories = Mapping[str, Path]
"""The directories of finished stages, by name."""


def layers(pipeline: PipelineFile, stage: Stage, results: Directories) -> list[list[Setting]]:
    """The layers of a stage's configuration. A reference to a stage without a directory in `results` is left out."""
    unused = UNUSED[stage.kind]
    *below, own = with_presets([pipeline.defaults, stage.settings])
    defaults = [[s for s in layer if s.key[0] not in unused and not _decided(stage, s)] for layer in below]
    if stage.kind == "quantize" and stage.quantize is not None:
        origin = stage.origins.get("quant.name", stage.origin)
        own.append(Setting(key=("quant", "name"), value=stage.quantize.name, origin=origin))
        for name, value in stage.quantize.options.items():
            own.append(Setting(key=("quant", name), value=value, origin=stage.origins.get(f"quant.{name}", origin)))
    if stage.model is not None and (path := _path(stage.model, results)) is not None:
        own.append(Setting(key=("model",), value=path, origin=stage.model.origin))
    if stage.start is not None and stage.kind in ("train", "quantize"):
        key = START if stage.kind == "train" else "model"
        if (path := _path(stage.start, results)) is not None:
            own.append(Setting(key=(key,), value=path, origin=stage.start.origin))
    return [*defaults, own]


def _decided(stage: Stage, default: Setting) -> bool:
    """Whether the adapter that a stage trains further, or its base, decides what a default is about."""
    if stage.kind != "train" or stage.start is None:
        return False
    fresh = any(s.key == ("fresh_adapter",) and s.value is True for s in stage.settings)
    own = default.key[0] == "loader" and default.key[-1] not in CODE_EXECUTION_OPTIONS
    return own or default.key[0] in ("model", "quant") or (default.key[0] == "adapter" and not fresh)


def _path(ref: Ref, results: Directories) -> str | None:
    """The path that a reference stands for; None if its stage is not in `results`."""
    if ref.stage is None:
        return ref.path
    return str(model_in(results[ref.stage])) if ref.stage in results else None


def loaded_configuration(pipeline: PipelineFile, stage: Stage, results: Directories) -> LoadedConfig:
    """The configuration of a stage. Raises ConfigError or Problems with file and line."""
    return assemble(layers(pipeline, stage, results))


def code_options(pipeline: PipelineFile, stage: Stage) -> dict[str, object]:
    """The options of the file that execute foreign code: for a run of an earlier stage, they are given again."""
    stages = [pipeline.stage(name) for name in stage.stages()]
    settings = [*pipeline.defaults, *(s for one in (*stages, stage) for s in one.settings)]
    return {s.key[1]: s.value for s in settings if s.key[0] == "loader" and s.key[-1] in CODE_EXECUTION_OPTIONS}


def evaluated_run(pipeline: PipelineFile, stage: Stage, results: Directories) -> LoadedConfig | None:
    """The configuration of the run that an eval stage evaluates: a saved one, or that of a stage that is not finished.

    None if the stage evaluates a model.
    """
    ref = stage.start or stage.model
    if ref is not None and ref.stage is not None and ref.stage not in results:
        earlier = pipeline.stage(ref.stage)
        return loaded_configuration(pipeline, earlier, results) if earlier.kind == "train" else None
    path = loaded_configuration(pipeline, stage, results).config.model if ref is None else _path(ref, results)
    run = RunDir(user_path(path or ""))
    return saved_configuration(run, code_options(pipeline, stage)) if run.config.exists() else None
