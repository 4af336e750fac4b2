"""Finds the run or the saved adapter of `from`: its files, its base and the runs before it. Reads no weights."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smollm3_finetune.config.load import LoadedConfig, Setting, assemble
from smollm3_finetune.config.preset import ORIGIN
from smollm3_finetune.config.schema import ComponentConfig
from smollm3_finetune.errors import ConfigError, ModelError, SmolLM3Error
from smollm3_finetune.files.json import json_object, read_json
from smollm3_finetune.model.saved_adapter import FILE as DESCRIPTION
from smollm3_finetune.model.saved_adapter import SavedAdapter
from smollm3_finetune.model.start_from import Stage, StartFrom, adapter_fingerprint
from smollm3_finetune.paths import user_path
from smollm3_finetune.runs.base import base_of, without_pins
from smollm3_finetune.runs.checkpoints import Checkpoint
from smollm3_finetune.runs.facts import facts_of
from smollm3_finetune.runs.find import named_run
from smollm3_finetune.runs.reopen import CODE_EXECUTION_OPTIONS, saved_configuration
from smollm3_finetune.runs.rundir import RUNS, RunDir
from smollm3_finetune.runs.traces import is_run
from smollm3_finetune.runs.trained import check_decided

KEY = "from"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS = (DESCRIPTION, ADAPTER_CONFIG)
"""Any of these files makes a directory a saved adapter."""
BEST = "best-"


@dataclass(frozen=True, kw_only=True)
class Started:
    """What a run with `from` starts from, and the configuration that follows from it."""

    earlier: StartFrom
    saved: SavedAdapter
    run: RunDir | None
    base: Path | None
    """The base in the directory of that run, if it has one of its own."""
    dtype: str | None
    """The dtype of that run, if it ran on the same kind of device."""
    loaded: LoadedConfig
    """The configuration, with what the adapter decides below the values that the user set."""
    stated: LoadedConfig
    """The configuration as the user set it."""
    origin: str
    """The origin of the values that the adapter decides."""

    @property
    def title(self) -> str:
        """The run or the adapter as a user names it."""
        return str(self.run.path if self.run is not None and self.saved.path == self.run.adapter else self.saved.path)

    @property
    def reference(self) -> str:
        """The run or the adapter, as an absolute path, for the saved configuration."""
        return os.path.abspath(self.title)

    def is_stated(self, key: str) -> bool:
        """Whether the user set the key."""
        return key in self.stated.origins

    def source(self) -> tuple[str, ComponentConfig]:
        """The reference of the base, and its loader: that of the configuration, or the base in the earlier run."""
        config = self.loaded.config
        if self.base is not None and config.model == self.earlier.model:
            return str(self.base), without_pins(config.loader)
        return config.model, config.loader


def started(stated: LoadedConfig) -> Started | None:
    """What a run with this configuration starts from; None without `from`.

    Raises ConfigError or ModelError if it is not a finished run or a saved adapter, or if files of it are damaged.
    """
    config = stated.config
    if config.start_from is None:
        if config.fresh_adapter:
            where = stated.origin("fresh_adapter")
            raise ConfigError(f"{where} needs a run or an adapter to merge", hint="--from RUN --fresh-adapter")
        return None
    stated = without_preset_sections(stated, {"loader", "quant", *(() if config.fresh_adapter else ("adapter",))})
    config = stated.config
    assert config.start_from is not None
    directory, run = _located(config.start_from)
    saved = SavedAdapter.read(directory)
    title = str(run.path if run is not None and directory == run.adapter else directory)
    origin = f"from {title}"
    own: RunDir | None = None
    if run is not None:
        recorded = saved_configuration(run, config.loader.options).config
        model, loader, quant = recorded.model, recorded.loader, recorded.quant
        base = base_of(run)
        dtype, device = recorded.dtype, recorded.device.partition(":")[0]
        same_device = config.device in ("auto", device) or config.device.partition(":")[0] == device
        own = run
    else:
        model, loader, quant = _base_of_adapter(saved, config.model if "model" in stated.origins else None)
        base, dtype, same_device = None, None, False
        for name in CODE_EXECUTION_OPTIONS:
            if loader.options.get(name) not in (None, False) and config.loader.options.get(name) is not True:
                raise ConfigError(
                    f"the adapter {directory} was trained with loader.{name}, which executes code of the model",
                    hint=f"if you trust it: --loader-opt {name}=true",
                )
    layer = [Setting(key=("model",), value=model, origin=origin)]
    if config.model == model or "model" not in stated.origins:
        layer += _component("loader", loader, origin)
    layer += _component("quant", quant, origin)
    if not config.fresh_adapter and saved.adapter is not None:
        layer += _component("adapter", saved.adapter, origin)
    if dtype is not None and same_device:
        layer.append(Setting(key=("dtype",), value=dtype, origin=origin))
    loaded = assemble([layer, stated.settings])
    earlier = StartFrom(
        path=directory.absolute(),
        run=None if run is None else run.path.absolute(),
        fingerprint=adapter_fingerprint(directory),
        base_fingerprint=saved.base_fingerprint,
        model=model,
        stages=_stages(saved, run),
        fresh=config.fresh_adapter,
    )
    return Started(
        earlier=earlier,
        saved=saved,
        run=own,
        base=base,
        dtype=dtype if same_device else None,
        loaded=loaded,
        stated=stated,
        origin=origin,
    )


def is_trained(reference: str) -> bool:
    """Whether a reference is the directory of a run or of a saved adapter, not a model."""
    path = user_path(reference, "the run or model")
    return RunDir(path).config.exists() or ((path / DESCRIPTION).is_file() and not (path / "config.json").is_file())


def without_preset_sections(loaded: LoadedConfig, sections: Collection[str]) -> LoadedConfig:
    """The configuration without what presets set in these sections, which something else decides."""
    kept = [s for s in loaded.settings if s.key[0] not in sections or not s.origin.startswith(ORIGIN)]
    return loaded if len(kept) == len(loaded.settings) else assemble([kept])


def earlier_of(run: RunDir, stated: str | None) -> StartFrom | None:
    """What a run recorded about the adapter that it started from; None if it began with a new one.

    `stated` is `from` of its configuration. Raises ModelError if there is one, but no usable record: the run would
    be continued as one that began with a new adapter.
    """
    found = StartFrom.of(json_object(run.versions).get(KEY))
    if stated is not None and found is None:
        raise ModelError(
            f"the run {run.path} started from {stated}, but {run.versions} has no usable entry {KEY!r} about it",
            hint=f"restore {run.versions.name}, or start a new run: {run.start_again()}",
        )
    return found


def _component(section: str, config: ComponentConfig, origin: str) -> Iterator[Setting]:
    """The settings of a component, without options that execute code, which must be given again."""
    if config.name is None:
        return
    yield Setting(key=(section, "name"), value=config.name, origin=origin)
    for name, value in config.options.items():
        if section == "loader" and name in CODE_EXECUTION_OPTIONS:
            continue
        yield Setting(key=(section, name), value=value, origin=origin, given=name in config.set_options())


def _base_of_adapter(saved: SavedAdapter, stated: str | None) -> tuple[str, ComponentConfig, ComponentConfig]:
    """Model, loader and quantizer of an adapter without its run. Raises ModelError if nothing names the model."""
    if saved.model is not None:
        return saved.model, saved.loader or ComponentConfig(), saved.quant or ComponentConfig()
    named: Any = None
    if (saved.path / ADAPTER_CONFIG).is_file():
        named = read_json(saved.path / ADAPTER_CONFIG).get("base_model_name_or_path")
    model = stated or (named if isinstance(named, str) and named else None)
    if model is None:
        raise ModelError(f"the adapter {saved.path} does not name its base model", hint="--model MODEL")
    return model, ComponentConfig(), ComponentConfig()


# ---------------------------------------------------------------------------------------------------------- the files


def _located(reference: str) -> tuple[Path, RunDir | None]:
    """The directory of the adapter, and its run if it is known."""
    path = user_path(reference, "--from")
    names: set[str] = set()
    with contextlib.suppress(OSError):
        names = set(os.listdir(path)) if path.is_dir() else set()
    if is_run(names):
        return _of_run(RunDir(path))
    if names & set(ADAPTERS):
        return path, _run_around(path)
    if path.is_file():
        raise ModelError(f"--from {reference} is a file, not a run or an adapter", hint="--from RUN")
    if names:
        inside = next((p for p in (path, *path.parents) if RunDir(p).config.is_file()), None)
        if (path / "adapter" / DESCRIPTION).is_file():
            hint = f"--from {shlex.quote(str(path / 'adapter'))}"
        elif (path / "config.json").is_file():
            hint = f"to train a new adapter on this model: --model {shlex.quote(reference)}"
        elif inside is not None:
            hint = f"it is inside a run: --from {shlex.quote(str(inside))}"
        else:
            hint = "to see the runs: smollm3 runs list"
        kind = "a model, not an adapter" if (path / "config.json").is_file() else "neither a run nor a saved adapter"
        raise ModelError(f"--from {reference} is {kind}", hint=hint)
    try:
        return _of_run(named_run(reference, RUNS, "smollm3 train --from"))
    except ModelError as e:
        if e.message.startswith("the run directory"):
            raise ModelError(f"--from {reference}: there is no such run or adapter", hint=e.hint) from e
        raise


def _of_run(run: RunDir) -> tuple[Path, RunDir]:
    """The adapter that a run published. Raises ModelError if it has not finished."""
    check_decided(run)
    if (run.adapter / DESCRIPTION).is_file():  # written last
        return run.adapter, run
    saved = run.saved.all()
    quoted = shlex.quote(str(run.path))
    hint = f"to finish it: smollm3 train --resume {quoted}" if saved else f"run it again: {run.start_again()}"
    if saved:
        hint += f"; to start from step {saved[-1].step}: --from {shlex.quote(str(saved[-1].path))}"
    raise ModelError(f"the run {run.path} has not finished: it contains no adapter", hint=hint)


def _run_around(adapter: Path) -> RunDir | None:
    """The run that an adapter or a checkpoint is in; None if it is not in a run."""
    path = adapter.absolute()
    for run in (RunDir(path.parent), RunDir(path.parent.parent)):
        if run.config.is_file() and path in (run.adapter, run.checkpoints / path.name):
            return run if run.path.is_relative_to(Path.cwd()) is False else RunDir(run.path.relative_to(Path.cwd()))
    return None


# --------------------------------------------------------------------------------------------------------- the stages


def _stages(saved: SavedAdapter, run: RunDir | None) -> tuple[Stage, ...]:
    """The runs that led to the adapter; the last one with its step as far as its directory states it."""
    path = saved.path.absolute()
    name = run.path.resolve().name if run is not None else path.name
    method = (saved.adapter.name if saved.adapter is not None else None) or "adapter"  # of another tool
    own = Stage(run=name, adapter=method.rpartition(":")[2])
    before: tuple[Stage, ...] = ()
    if saved.stages:
        before, own = saved.stages[:-1], saved.stages[-1]
    elif run is not None:
        with contextlib.suppress(SmolLM3Error):
            objective = facts_of(run).objective
            own = replace(own, objective=objective.rpartition(":")[2] if objective else None)
    return (*before, replace(own, step=_step(path, run) or own.step))


def _step(adapter: Path, run: RunDir | None) -> int | None:
    """The steps after which the adapter was saved; None if that is not known."""
    if (checkpoint := Checkpoint.of(adapter)) is not None:
        return checkpoint.step
    number = adapter.name.removeprefix(BEST)
    if number != adapter.name and number.isdecimal():
        return int(number)
    if run is None or adapter != run.adapter.absolute():
        return None
    best, steps = json_object(run.report).get("best"), json_object(run.trained).get("steps")
    if isinstance(best, dict) and isinstance(best.get("step"), int):
        return int(best["step"])
    return steps if isinstance(steps, int) else None
