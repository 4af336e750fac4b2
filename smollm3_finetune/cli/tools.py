"""`CommandTools`: what core does for the commands of plugins."""

from __future__ import annotations

import contextlib
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.api import Progress
from smollm3_finetune.cli.session import find_plugins, say_warning, stdout_to_stderr
from smollm3_finetune.errors import ConfigError, ModelError, Problems, SmolLM3Error, did_you_mean
from smollm3_finetune.progress import for_stream

if TYPE_CHECKING:
    from smollm3_finetune.api import CommandRow, ModelSource
    from smollm3_finetune.inference.opened import ReadyModel

COMPONENTS = ("loader", "quant", "adapter")
SETTINGS = (*COMPONENTS, "adapter_path", "device", "dtype", "seed")
"""The settings of a model that is opened."""
ROW_COMPONENTS = ("formatter", "objective", *COMPONENTS)
"""The components that affect rows and their tokens."""
ORIGIN = "the command"
OPTION = re.compile(r"(^|[;,:] |\bor )--")
"""Where a hint begins with an option."""


@dataclass
class RunFiles:
    """A `SavedRun`: the directory of a run, and what its files say."""

    directory: Path
    state: str
    configuration: Mapping[str, Any]
    report: Mapping[str, Any] | None

    def metrics(self) -> Iterator[Mapping[str, Any]]:
        from smollm3_finetune.runs.metrics import metric_rows

        yield from metric_rows(self.directory / "metrics.jsonl")


@dataclass
class Tools:
    """The tools of one call of a command."""

    command: str
    """Its name, for hints."""
    plugins: Sequence[str] = ()
    """The values of `smollm3 -p`."""
    progress: Progress = field(default_factory=for_stream)

    def run(self, reference: str | Path) -> RunFiles:
        from smollm3_finetune.config.yaml12 import read_yaml
        from smollm3_finetune.files.json import json_object
        from smollm3_finetune.runs.find import named_run, runs_folder
        from smollm3_finetune.runs.summary import RunSummary

        run = named_run(str(reference), runs_folder(None), f"smollm3 {self.command}")
        summary = RunSummary.of(run)
        if summary.damage is not None:
            raise ModelError(f"the run {run.path} is damaged: {summary.damage}")
        configuration, _ = read_yaml(run.config)
        report = json_object(run.report) if run.report.exists() else None
        return RunFiles(run.path, summary.state, configuration, report)

    def source(self, reference: str | Path, **settings: Any) -> ModelSource:
        from smollm3_finetune.cli.answering import requested
        from smollm3_finetune.model.adapter_source import opened_source
        from smollm3_finetune.model_files.loading import quiet_transformers

        _check("source", settings, ("loader",))
        with stdout_to_stderr(), _hints():
            registry, request, _ = requested(str(reference), self._values(settings))
            source = opened_source(registry, request, self.progress)
        quiet_transformers()
        return source

    def rows(self, data: Any, *, model: str | Path | None = None, **settings: Any) -> Iterator[CommandRow]:
        from smollm3_finetune.config.load import assemble, mapping_settings
        from smollm3_finetune.config.options import describe
        from smollm3_finetune.config.schema import DataConfig
        from smollm3_finetune.data.read_rows import read_rows
        from smollm3_finetune.model.arguments import plain
        from smollm3_finetune.runs.start_from import is_trained, started

        about_rows = [key.name for key in describe(DataConfig) if key.name != "path"]
        _check("rows", settings, (*ROW_COMPONENTS, *about_rows))
        configuration = {name: value for name, value in settings.items() if name in ROW_COMPONENTS}
        configuration["data"] = {"path": data} | {n: v for n, v in settings.items() if n in about_rows}
        if model is not None:
            configuration["from" if is_trained(str(model)) else "model"] = model
        with stdout_to_stderr(), _hints():
            loaded = assemble([mapping_settings(plain(configuration), defaultdict(lambda: ORIGIN))])
            start = started(loaded)
            loaded = loaded if start is None else start.loaded
            registry = find_plugins(self.plugins, False)
            found = read_rows(registry, loaded, self.progress, start, tokens=model is not None)
        return _quietly(found)

    def model(self, reference: str | Path, **settings: Any) -> ReadyModel:
        from smollm3_finetune.cli.answering import opened
        from smollm3_finetune.inference.opened import ReadyModel

        _check("model", settings, SETTINGS)
        values = self._values(settings)
        if values.pop("adapter_opt", ()):
            raise ConfigError("adapter: a saved adapter has its own options", hint='adapter="NAME"')
        with stdout_to_stderr():
            found = opened(str(reference), values)
            loaded = found.compose(values["seed"])
        return ReadyModel(
            model=loaded.model,
            tokenizer=found.tokenizer,
            base=loaded.base,
            plan=found.plan,
            renderer=found.renderer,
            mode=found.mode,
            is_run=found.is_run,
        )

    def train(self, configuration: Mapping[str, Any]) -> RunFiles:
        from smollm3_finetune.api import Submitted
        from smollm3_finetune.components.registry import once
        from smollm3_finetune.config.load import mapping_settings
        from smollm3_finetune.launching.start import carry_out, remember_memory
        from smollm3_finetune.model.arguments import plain
        from smollm3_finetune.train import display
        from smollm3_finetune.train.start import plan_training

        began = time.monotonic()
        settings = mapping_settings(plain(configuration), defaultdict(lambda: ORIGIN))
        with stdout_to_stderr():
            planned = plan_training(
                settings,
                plugins=self._of_runs(),
                find_plugins=once(lambda names: find_plugins(names, False)),
                progress=self.progress,
                warn=say_warning,
            )
            done = carry_out(planned, display.for_stream(), self.progress, began)
        if isinstance(done, Submitted):
            self.say(done.says)
        else:
            remember_memory(planned, done)
        return self.run(planned.run.path)

    def _values(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a model as the options of `smollm3 generate`."""
        values: dict[str, Any] = {"plugin": tuple(self.plugins), "no_plugins": False, "any_base": False, "date": None,
                                  "think": None, **dict.fromkeys(SETTINGS)}  # fmt: skip
        for name, value in settings.items():
            if name in COMPONENTS:
                values[name], values[f"{name}_opt"] = _component(name, value)
            else:
                values[name] = value if value is None or name == "seed" else str(value)
        return {"loader_opt": (), "quant_opt": (), **values, "seed": values["seed"] or 0}

    def _of_runs(self) -> tuple[str, ...]:
        """The plugins of `-p` without those that offer only commands: a run would ask for them ever after."""
        from smollm3_finetune.cli.session import discovered
        from smollm3_finetune.components.kinds import COMMAND
        from smollm3_finetune.paths import user_path

        offered = discovered(self.plugins).components
        others = {o.origin.removeprefix("module ") for o in offered if o.kind is not COMMAND}
        return tuple(p for p in self.plugins if p[:3] == "no:" or {p, str(user_path(p).resolve())} & others)

    def print(self, text: str) -> None:
        click.echo(text)

    def say(self, text: str) -> None:
        self.progress.say(text)


def _check(function: str, settings: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises ConfigError for a setting that the function does not have."""
    if unknown := sorted(settings.keys() - set(known)):
        near = did_you_mean(unknown[0], known)
        hint = f"did you mean {near!r}?" if near else f"settings: {', '.join(known)}"
        raise ConfigError(f"{function}(): unknown setting {unknown[0]!r}", hint=hint)


@contextlib.contextmanager
def _hints() -> Iterator[None]:
    """Hints of errors about rows and models can be typed: options in them become those of `smollm3 data stats`."""
    try:
        yield
    except SmolLM3Error as e:
        for problem in (e, *getattr(e, "problems", ())):
            problem.hint = problem.hint and OPTION.sub(r"\1smollm3 data stats --", problem.hint)
        if isinstance(e, Problems):  # its text has the hints of all
            raise Problems(e.problems) from e
        raise


def _quietly(rows: Iterator[CommandRow]) -> Iterator[CommandRow]:
    """The rows; what a formatter or a library prints goes to standard error."""
    while True:
        with stdout_to_stderr(), _hints():
            row = next(rows, None)
        if row is None:
            return
        yield row


def _component(name: str, value: Any) -> tuple[str | None, tuple[str, ...]]:
    """The name of a component, and its options as the command line takes them."""
    import json

    from smollm3_finetune.model.arguments import component

    config = component(name, value)
    return config.name, tuple(f"{key}={json.dumps(option)}" for key, option in config.options.items())
