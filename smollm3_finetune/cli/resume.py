"""Going on with a run that is on disk: its configuration, its plugin files, its versions."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.common import flag_settings
from smollm3_finetune.config.load import Loaded, assemble, file_settings
from smollm3_finetune.config.schema import RunConfig
from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError
from smollm3_finetune.model_files.json_files import file_hash
from smollm3_finetune.paths import user_path
from smollm3_finetune.train.rundir import RunDir

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.train.plan import RunPlan

MAY_CHANGE = {("train", "max_steps"), ("train", "epochs"), ("train", "save_every"), ("train", "keep_checkpoints"),
              ("train", "log_every"), ("device",)}  # fmt: skip
"""Keys that do not change what the steps already taken mean."""
TRUSTING = ("trust_remote_code", "pickle")
"""Loader options that are never taken from a file that somebody may have sent."""


def resumed_configuration(run: RunDir, values: Mapping[str, Any]) -> Loaded:
    """The saved configuration with the few changes that a resumed run allows. Raises ConfigError for others."""
    check_plugin_files(run, values["plugin"])
    if values.get("config_file") is not None:
        raise ConfigError("--resume takes its configuration from the run, so --config cannot be given")
    changes = flag_settings(values)
    saved = saved_configuration(run, {s.key[1]: s.value for s in changes if s.key[0] == "loader"})
    changes = [s for s in changes if s.key[0] != "loader" or s.value != saved.config.loader.options.get(s.key[1])]
    for setting in changes:
        if setting.key not in MAY_CHANGE:
            allowed = ", ".join(".".join(k) for k in sorted(MAY_CHANGE))
            raise ConfigError(
                f"{setting.origin}: a resumed run keeps its {'.'.join(setting.key)}", hint=f"may change: {allowed}"
            )
    return assemble([saved.settings, changes])


def saved_configuration(run: RunDir, loader_options: Mapping[str, Any]) -> Loaded:
    """What a run resolved. Options that let foreign code run hold only where they are given again.

    Raises ModelError where run.yaml is not complete, ConfigError with what to type for such an option.
    """
    settings = file_settings(run.config)
    missing = {f.name for f in dataclasses.fields(RunConfig)} - {s.key[0] for s in settings}
    if missing:
        raise ModelError(f"{run.config} is damaged: it has no {', '.join(sorted(missing))}")
    loaded = assemble([settings])
    for name in TRUSTING:
        if loaded.config.loader.options.get(name) not in (None, False) and loader_options.get(name) is not True:
            raise ConfigError(
                f"the run {run.path} was made with loader.{name}, which lets code of the model run",
                hint=f"--loader-opt {name}=true, if you trust it",
            )
    return loaded


def saved_versions(run: RunDir) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json.loads(run.versions.read_text(encoding="utf-8"))
        if not isinstance(saved["plugins"], dict) or not isinstance(saved["plugin_files"], dict):
            raise TypeError("plugins and plugin_files must be objects")
        if not all(isinstance(v, str) for part in ("plugins", "plugin_files") for v in saved[part].values()):
            raise TypeError("versions and hashes must be text")
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise ModelError(f"{run.versions} is damaged: {type(e).__name__}: {e}") from e
    return saved


def check_plugin_files(run: RunDir, named: Iterable[str]) -> None:
    """The plugin files of a run are executed only when they are named again.

    Raises ConfigError with the `-p` to type, and IncompatibleError where a file has changed since.
    """
    given = {str(user_path(n, "-p").resolve()) for n in named if n.endswith(".py")}
    for file, digest in saved_versions(run).get("plugin_files", {}).items():
        if file not in given:
            path = Path(file)
            shown = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
            hint = f"name it again: -p {shlex.quote(shown)}"
            raise ConfigError(f"the run {run.path} used the plugin file {shown}", hint=hint)
        if not Path(file).is_file():
            raise ModelError(f"the plugin file {file}, which the run {run.path} used, is not there any more")
        if file_hash(file) != digest:
            raise IncompatibleError(
                f"the plugin file {file} has changed since the run {run.path} used it",
                hint="put back the file as it was, or make the run again",
            )


def compare_versions(run: RunDir, plan: RunPlan, registry: Registry) -> None:
    """One line for each plugin whose version is not the run's. Raises IncompatibleError for another major version."""
    from smollm3_finetune.train.run import versions

    before, now = saved_versions(run)["plugins"], versions(plan, registry)["plugins"]
    for name, version in now.items():
        old = before.get(name)
        if old == version:
            continue
        if old is not None and old.partition(".")[0] != version.partition(".")[0]:
            raise IncompatibleError(
                f"the run was made with {name} {old}, and {version} is installed", hint=f"pip install '{name}=={old}'"
            )
        click.echo(
            f"{click.style('warning', fg='yellow')}: the run was made with {name} {old}, now {version}", err=True
        )
