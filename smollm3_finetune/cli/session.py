"""What all commands need: their configuration, the installed plugins, and the separation of their output."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from smollm3_finetune.cli.options import FLAGS, F, flag_of
from smollm3_finetune.cli.streams import drop_output

if TYPE_CHECKING:
    from smollm3_finetune.api import Purpose
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.config.load import LoadedConfig, Setting
    from smollm3_finetune.model.plan import ModelRequest


OPTION_FLAGS = {"quant_opt": "quant", "adapter_opt": "adapter", "loader_opt": "loader", "objective_opt": "objective",
                "launcher_opt": "launcher", "optimizer_opt": "optimizer", "tracker_opt": "tracker",
                "ship_as_opt": "train.ship_as"}  # fmt: skip


def flag_settings(values: Mapping[str, Any]) -> list[Setting]:
    """The settings from the command line: first `--set`, then `…-opt`, then the plain flags."""
    from smollm3_finetune.config.load import Setting, assignment

    settings = [assignment(text, "--set") for text in values.get("assign", ())]
    for name, section in OPTION_FLAGS.items():
        flag = f"--{name.replace('_', '-')}"
        settings += [assignment(text, flag, section) for text in values.get(name, ())]
    for name, key in FLAGS.items():
        value = values.get(name)
        if isinstance(value, tuple):  # a flag that may be repeated
            value = (list(value) if len(value) > 1 else value[0]) if value else None
        if value is not None:
            settings.append(Setting(key=key, value=value, origin=flag_of(name)))
    return settings


def load_configuration(values: Mapping[str, Any], first: Iterable[Iterable[Setting]] = ()) -> LoadedConfig:
    """The configuration of a command. Its layers: `first`, then `--config`, then the command line."""
    from smollm3_finetune.config.load import assemble, file_settings
    from smollm3_finetune.paths import user_path

    layers = [list(layer) for layer in first]
    if values.get("config_file") is not None:
        layers.append(file_settings(user_path(values["config_file"], "--config")))
    return assemble([*layers, flag_settings(values)])


def say_warning(text: str) -> None:
    """Print a warning on standard error."""
    click.echo(f"{click.style('warning', fg='yellow')}: {text}", err=True)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Inside the context, output of plugins and libraries goes to standard error; standard output is for the result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


_results: ContextVar[TextIO] = ContextVar("results")


def result_stream() -> TextIO:
    """Standard output, for a command that `prints_result` decorates and that writes its result piece by piece."""
    return _results.get()


def prints_result(f: F) -> F:
    """Decorate a command so that standard output gets only the text that it returns, and nothing if it returns None."""

    @functools.wraps(f)
    def command(*args: Any, **values: Any) -> None:
        token = _results.set(sys.stdout)
        try:
            with stdout_to_stderr():
                result = f(*args, **values)
        finally:
            _results.reset(token)
        if result is not None:
            click.echo(result)

    return cast(F, command)


def prints_report(f: F) -> F:
    """Like `prints_result`, for a command whose files are complete when it returns: it succeeds anyway.

    If standard output is full, a warning is printed; if its reader has closed the pipe, nothing.
    """

    @functools.wraps(f)
    def command(*args: Any, **values: Any) -> None:
        with stdout_to_stderr():
            result = f(*args, **values)
        try:
            if result is not None:
                click.echo(result)
        except OSError as e:
            drop_output()
            if not isinstance(e, BrokenPipeError):
                say_warning(f"the report cannot be printed: {e.strerror}; all files are complete")

    return cast(F, command)


def discovered(requested: Iterable[str], no_plugins: bool = False) -> Registry:
    """The result of `discover`, of which a snapshot is kept for completion and root help."""
    from smollm3_finetune.components.discovery import PluginSelection, discover
    from smollm3_finetune.components.snapshot import package_folders, write_snapshot

    before = package_folders()
    with stdout_to_stderr():
        registry = discover(PluginSelection.of(tuple(requested), no_plugins))
    write_snapshot(registry, before)
    return registry


def find_plugins(requested: Iterable[str], no_plugins: bool) -> Registry:
    """Discover plugins, and warn about each broken plugin and each shared plugin name."""
    registry = discovered(requested, no_plugins)
    for warning in registry.warnings():
        say_warning(warning)
    return registry


def given(values: Mapping[str, Any]) -> set[str]:
    """The names of the options that the command line sets."""
    return {name for name, value in values.items() if value}


def options_of(values: Mapping[str, Any], name: str, section: str) -> dict[str, Any]:
    """The parsed `KEY=VALUE` pairs of `--NAME`."""
    from smollm3_finetune.config.load import assignment

    settings = [assignment(text, f"--{name.replace('_', '-')}", section) for text in values[name]]
    return {".".join(s.key[1:]): s.value for s in settings}


def target_request(
    target: str, values: Mapping[str, Any], purpose: Purpose, *, as_adapter: bool = False
) -> ModelRequest:
    """The request for `MODEL` of a command that is not a run: a model, or the directory of a saved adapter.

    A directory that is also a complete model is taken as such, unless `as_adapter`.
    """
    from smollm3_finetune.model.saved_adapter import FILE, SavedAdapter
    from smollm3_finetune.paths import user_path

    path = user_path(target, "the run or model")
    if not values["adapter_path"] and (path / FILE).is_file() and (as_adapter or not (path / "config.json").is_file()):
        model = SavedAdapter.read(path).model
        if model:
            return model_request(model, {**values, "adapter_path": target}, purpose)
    return model_request(target, values, purpose)


def model_request(ref: str, values: Mapping[str, Any], purpose: Purpose) -> ModelRequest:
    """The request for a model with the components that the command line names."""
    from smollm3_finetune.config.schema import ComponentConfig
    from smollm3_finetune.model.plan import ModelRequest
    from smollm3_finetune.paths import user_path

    adapter, path = values["adapter"], values["adapter_path"]
    return ModelRequest(
        ref=ref,
        loader=ComponentConfig(name=values["loader"], options=options_of(values, "loader_opt", "loader")),
        quant=ComponentConfig(name=values["quant"], options=options_of(values, "quant_opt", "quant")),
        adapter=ComponentConfig(name=adapter) if adapter else None,
        adapter_path=user_path(path, "--adapter-path") if path else None,
        purpose=purpose,
    )
