"""What a stage depends on, by content: a stage whose inputs are unchanged is not run again.

Each part has a hash, so that a change can be named: `configuration`, `rows`, `model`, `from`, `against`, `plugins`.
A path counts by what it holds. The device, and settings that do not change the result, do not count.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smollm3_finetune.api import BuildContext, ModelSource, Progress, Purpose, options_dict
from smollm3_finetune.cache.fingerprint import fingerprint
from smollm3_finetune.cache.store import Cache
from smollm3_finetune.components.kinds import QUANTIZER
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import choose
from smollm3_finetune.config.load import LoadedConfig, as_dict, plain
from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.data.plan import SelectedRows, select_rows
from smollm3_finetune.data.rows import Rows
from smollm3_finetune.evaluation.subject import rows_configuration
from smollm3_finetune.files.json import file_sha256
from smollm3_finetune.model.plan import ModelRequest, choose_loader, open_source
from smollm3_finetune.model_files.writing import BELONGS
from smollm3_finetune.paths import user_path
from smollm3_finetune.pipeline.configuration import START, Directories, evaluated_run, loaded_configuration
from smollm3_finetune.pipeline.contents import Contents
from smollm3_finetune.pipeline.results import files_of
from smollm3_finetune.pipeline.stage import PipelineFile, Ref, Stage
from smollm3_finetune.runs.resume import decisive, differing
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.runs.start_from import started

Inputs = Mapping[str, str]
NOT_COUNTED = ("model", "device", "plugins", "given", START)
"""Keys that count by what they stand for, or not at all."""
PATHS = (("data", "path"), ("data", "validation"), ("data", "template"), ("calibration", "path"))
"""Keys whose files count by their content."""
LEGAL = ("LICENSE", "NOTICE", "COPYING")
"""Beginnings of the names of files of a model that do not count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How the inputs of stages are read."""

    find_plugins: Callable[[Sequence[str]], Registry]
    plugins: Sequence[str]
    """The values of `-p`."""
    progress: Progress
    no_plugins: bool = False
    """Whether `--no-plugins` was given."""
    contents: Contents = dataclasses.field(default_factory=Contents)

    def command(self, verb: str, file: Path) -> str:
        """The command `smollm3 pipeline VERB` for a file, with the plugin options of this one."""
        options = [text for name in self.plugins for text in ("-p", name)] + ["--no-plugins"] * self.no_plugins
        return shlex.join(["smollm3", "pipeline", verb, str(file), *options])


def inputs_of(pipeline: PipelineFile, stage: Stage, results: Directories, reading: Reading) -> Inputs:
    """The inputs of a stage whose earlier stages are finished, in the directories `results`."""
    loaded = loaded_configuration(pipeline, stage, results)
    names = [*loaded.config.plugins, *reading.plugins]
    registry = reading.find_plugins(names)
    parts: dict[str, Any] = {"configuration": None, "rows": None}
    if stage.kind == "train":
        calibrates = _calibrates(registry, loaded)
        parts["configuration"] = _settings(loaded.config, () if calibrates else ("calibration",))
        parts["rows"] = _rows(registry, select_rows(registry, loaded), calibration=calibrates)
    elif stage.kind == "quantize":
        calibrates = _calibrates(registry, loaded)
        about_rows = () if calibrates else ("data", "calibration", "formatter", "objective")
        parts["configuration"] = _settings(loaded.config, ("train", "adapter", *about_rows))
        if calibrates:
            parts["rows"] = _rows(registry, select_rows(registry, loaded), calibration=True)
    elif stage.kind == "merge":
        assert stage.merge is not None
        quantize = None if stage.quantize is None else [stage.quantize.name, plain(stage.quantize.options)]
        parts["configuration"] = [plain(dataclasses.asdict(stage.merge)), quantize]
    elif stage.kind == "export":
        assert stage.export is not None
        parts["configuration"] = [stage.export.name, plain(stage.export.options)]
    else:
        assert stage.evaluate is not None
        options = plain(dataclasses.asdict(stage.evaluate))
        own = [[list(s.key), plain(s.value)] for s in stage.settings if s.key not in (("device",), *PATHS)]
        kept = {k: v for k, v in options.items() if k not in ("fail_if", "against")}
        parts["configuration"] = [kept, own, loaded.config.dtype]
        tasks = [reading.contents.file(Path(t)) for t in stage.evaluate.tasks if Path(t).is_file()]
        about = evaluation_rows(stage, evaluated_run(pipeline, stage, results))
        rows = None if about is None else _rows(registry, select_rows(registry, about), calibration=False)
        parts["rows"] = [tasks, rows]
    if stage.kind == "quantize" or stage.start is None:
        parts["model"] = _model(registry, stage, loaded, results, reading)
    for name, ref in (("from", stage.start), ("against", stage.against)):
        if ref is not None and not (stage.kind == "quantize" and name == "from"):
            parts[name] = _referred(ref, results, reading.contents)
    parts["plugins"] = [[name for name in names if name.startswith("no:")], _plugin_files(names)]
    return {name: fingerprint(plain(value)) for name, value in parts.items()}


def evaluation_rows(stage: Stage, run: LoadedConfig | None) -> LoadedConfig | None:
    """The configuration of the rows of an eval stage: that of the `run`, with the keys of the stage.

    None: the held-out rows of the run are measured.
    """
    settings = [s for s in stage.settings if s.key[0] in ("data", "formatter")]
    return rows_configuration(settings, run) if settings else None


def _settings(config: RunConfig, without: Sequence[str]) -> dict[str, Any]:
    """The values of a configuration that differ from the defaults and may change the result."""
    values, defaults = decisive(as_dict(dataclasses.replace(config, output=None))), as_dict(RunConfig())
    for section, key in PATHS:
        del values[section][key]
    for key in (*NOT_COUNTED, *without):
        values.pop(key, None)
    return differing(values, defaults)


def _calibrates(registry: Registry, loaded: LoadedConfig) -> bool:
    """Whether the quantizer of the configuration reads calibration rows.

    A new adapter after a merge has the quantizer of the merged one; an adapter that is trained further has its own
    calibration.
    """
    if loaded.config.fresh_adapter and loaded.config.quant.name is None and (start := started(loaded)) is not None:
        loaded = start.loaded
    quant = loaded.config.quant
    if quant.name is None:
        return False
    chosen = choose(registry, QUANTIZER, quant.name, quant, loaded.origins)
    return bool(getattr(chosen.spec, "needs_calibration", False))


def _rows(registry: Registry, selected: SelectedRows, *, calibration: bool) -> list[Any]:
    own = selected.calibration_rows(registry) if calibration else None
    return [
        _content(selected.rows(registry)),
        None if own is None else _content(own),
        selected.render.template,
    ]


def _content(rows: Rows) -> list[Any]:
    """The contents of the rows and how they are read; not the versions of the formatters."""
    return [
        [
            s.contents, s.formatter.component.full_name, options_dict(s.formatter.options), s.limit,
            s.source.config.limit, s.source.config.weight, sorted(s.ignored), s.source.validation,
        ]
        for s in rows.sources
    ]  # fmt: skip


def _model(registry: Registry, stage: Stage, loaded: LoadedConfig, results: Directories, reading: Reading) -> list[Any]:
    """The model of a stage: the directory of an earlier stage, or the fingerprint of the source."""
    for ref in (stage.model, stage.start if stage.kind == "quantize" else None):
        if ref is not None and ref.stage is not None:
            return _stage_result(ref.stage, results)

    def read() -> list[Any]:
        source, _ = source_of(registry, loaded, reading.progress)
        return [source.fingerprint, *_beside_weights(source, reading.contents)]

    config = loaded.config
    chosen = choose_loader(registry, ModelRequest(ref=config.model, loader=config.loader, origins=loaded.origins))
    about = fingerprint(config.model, chosen.component.full_name, plain(options_dict(chosen.options)))
    found: list[Any] = reading.contents.once(about, user_path(config.model, "the model"), read)
    return found


def _beside_weights(source: ModelSource, contents: Contents) -> list[Any]:
    """The tokenizer, the chat template and the other files of a local directory; its fingerprint is of the weights."""
    directory = getattr(source, "directory", None)
    if directory is None:
        return []
    files = sorted(f for f in Path(directory).iterdir() if f.is_file() and _counts(f.name))
    return [[f.name, contents.file(f)] for f in files]


def _counts(name: str) -> bool:
    return BELONGS.fullmatch(name) is not None and not name.startswith(LEGAL)


def source_of(registry: Registry, loaded: LoadedConfig, progress: Progress) -> tuple[ModelSource, Mapping[str, Any]]:
    """The model of a configuration and its `config.json`; imports no torch."""
    config = loaded.config
    loader = choose_loader(registry, ModelRequest(ref=config.model, loader=config.loader, origins=loaded.origins))
    context = BuildContext(
        purpose=Purpose.INFER, device="cpu", dtype="float32", seed=0, cache=Cache.default(), progress=progress
    )  # nothing is computed
    return open_source(loader, config.model, context)


def _referred(ref: Ref, results: Directories, contents: Contents) -> list[Any]:
    """An earlier stage by its directory, a path by its content, a model of the Hub by its name."""
    if ref.stage is not None:
        return _stage_result(ref.stage, results)
    assert ref.path is not None
    path = user_path(ref.path)
    if path.is_file():
        return [contents.file(path)]
    if not path.is_dir():
        return [ref.path]
    kind = "train" if RunDir(path).config.exists() else "model"
    files = [*files_of(kind, path), *([RunDir(path).config] if kind == "train" else [])]
    return [[f.relative_to(path).as_posix(), contents.file(f)] for f in files]


def _stage_result(stage: str, results: Directories) -> list[Any]:
    return [stage, results[stage].name]


def _plugin_files(names: Sequence[str]) -> list[str]:
    files = [user_path(name, "-p") for name in names if name.endswith(".py")]
    return [file_sha256(file) for file in files if file.is_file()]
