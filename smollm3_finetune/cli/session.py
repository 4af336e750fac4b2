"""What a command works with: its configuration, the installed plugins, and where its output goes."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import click

from smollm3_finetune.cli.options import FLAGS, F

if TYPE_CHECKING:
    from smollm3_finetune.api import Purpose
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.config.load import LoadedConfig, Setting
    from smollm3_finetune.model.plan import ModelRequest


OPTION_FLAGS = {"quant_opt": "quant", "adapter_opt": "adapter", "loader_opt": "loader", "objective_opt": "objective"}


def flag_settings(values: Mapping[str, Any]) -> list[Setting]:
    """The settings that the command line makes: `--set` first, then `…-opt`, then the plain flags."""
    from smollm3_finetune.config.load import Setting, assignment

    settings = [assignment(text, "--set") for text in values.get("assign", ())]
    for name, section in OPTION_FLAGS.items():
        flag = f"--{name.replace('_', '-')}"
        settings += [assignment(text, flag, section) for text in values.get(name, ())]
    for name, key in FLAGS.items():
        value = values.get(name)
        if isinstance(value, tuple):  # an option that may be given again
            value = (list(value) if len(value) > 1 else value[0]) if value else None
        if value is not None:
            settings.append(Setting(key=key, value=value, origin=f"--{name.replace('_', '-')}"))
    return settings


def load_configuration(values: Mapping[str, Any], first: Iterable[Iterable[Setting]] = ()) -> LoadedConfig:
    """The configuration of a verb: layers given first, then `--config`, then the command line."""
    from smollm3_finetune.config.load import assemble, file_settings
    from smollm3_finetune.paths import user_path

    layers = [list(layer) for layer in first]
    if values.get("config_file") is not None:
        layers.append(file_settings(user_path(values["config_file"], "--config")))
    return assemble([*layers, flag_settings(values)])


def say_warning(text: str) -> None:
    """A warning on standard error."""
    click.echo(f"{click.style('warning', fg='yellow')}: {text}", err=True)


@contextlib.contextmanager
def working() -> Iterator[None]:
    """What plugins and libraries print meanwhile goes to standard error: the other is for the user's answer."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def answers(f: F) -> F:
    """A verb that returns what standard output gets, or None: while it works, nothing else gets there."""

    @functools.wraps(f)
    def command(*args: Any, **values: Any) -> None:
        with working():
            answer = f(*args, **values)
        if answer is not None:
            click.echo(answer)

    return cast(F, command)


def discovered(requested: Iterable[str], no_plugins: bool = False) -> Registry:
    """What `discover` finds."""
    from smollm3_finetune.components.discovery import PluginSelection, discover

    with working():
        return discover(PluginSelection.of(tuple(requested), no_plugins))


def find_plugins(requested: Iterable[str], no_plugins: bool) -> Registry:
    """Discover, and say one line for each plugin that is broken."""
    registry = discovered(requested, no_plugins)
    for record in registry.broken():
        say_warning(
            f"plugin {record.name!r} ({record.distribution} {record.version}) is broken and left out: {record.error}"
        )
    for name, records in registry.shared_names().items():
        who = " and ".join(f"{r.distribution} {r.version}" for r in records)
        say_warning(f"the plugin name {name!r} is used by {who}")
    return registry


def given(values: Mapping[str, Any]) -> set[str]:
    """The names of the options that were given on a command line."""
    return {name for name, value in values.items() if value}


def options_of(values: Mapping[str, Any], name: str, section: str) -> dict[str, Any]:
    """The `KEY=VALUE`s that were given for `--NAME`, parsed."""
    from smollm3_finetune.config.load import assignment

    settings = [assignment(text, f"--{name.replace('_', '-')}", section) for text in values[name]]
    return {".".join(s.key[1:]): s.value for s in settings}


def model_request(ref: str, values: Mapping[str, Any], purpose: Purpose) -> ModelRequest:
    """A model with the components that the command line names."""
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
