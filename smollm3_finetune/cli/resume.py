"""Going on with a run that is on disk: its configuration, its plugin files, its versions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.common import flag_settings
from smollm3_finetune.config.load import Loaded, assemble, file_settings
from smollm3_finetune.errors import ConfigError, IncompatibleError
from smollm3_finetune.train.rundir import RunDir, file_hash

if TYPE_CHECKING:
    from smollm3_finetune.registry import Registry
    from smollm3_finetune.train.plan import RunPlan

MAY_CHANGE = {("train", "max_steps"), ("train", "epochs"), ("train", "save_every"), ("train", "keep_checkpoints"),
              ("train", "log_every"), ("device",)}  # fmt: skip
"""Keys that do not change what the steps already taken mean."""


def resumed_configuration(run: RunDir, values: Mapping[str, Any]) -> Loaded:
    """The saved configuration with the few changes that a resumed run allows. Raises ConfigError for others."""
    check_plugin_files(run, values["plugin"])
    if values.get("config_file"):
        raise ConfigError("--resume takes its configuration from the run, so --config cannot be given")
    changes = flag_settings(values)
    for setting in changes:
        if setting.key not in MAY_CHANGE:
            allowed = ", ".join(".".join(k) for k in sorted(MAY_CHANGE))
            raise ConfigError(
                f"{setting.origin}: a resumed run keeps its {'.'.join(setting.key)}", hint=f"may change: {allowed}"
            )
    return assemble([file_settings(run.config), changes])


def saved_versions(run: RunDir) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json.loads(run.versions.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{run.versions} cannot be read: {e}") from e
    return saved


def check_plugin_files(run: RunDir, named: Iterable[str]) -> None:
    """The plugin files of a run are executed only when they are named again.

    Raises ConfigError with the `-p` to type, and IncompatibleError where a file has changed since.
    """
    given = {str(Path(n).expanduser().resolve()) for n in named if n.endswith(".py")}
    for file, digest in saved_versions(run).get("plugin_files", {}).items():
        if file not in given:
            raise ConfigError(f"the run {run.path} used the plugin file {file}", hint=f"name it again: -p {file}")
        if file_hash(file) != digest:
            raise IncompatibleError(f"the plugin file {file} has changed since the run {run.path} used it")


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
