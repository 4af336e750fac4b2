"""The launcher of a run: its selection, and the processes that it will start."""

from __future__ import annotations

import os

from smollm3_finetune.api import Env
from smollm3_finetune.components.kinds import LAUNCHER
from smollm3_finetune.components.registry import Registry, attributed_to
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent, choose
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.config.schema import DEFAULT_LAUNCHER
from smollm3_finetune.errors import ConfigError, raise_all
from smollm3_finetune.model.device import KINDS
from smollm3_finetune.train.distributed.layout import Layout, of_environment, of_launcher
from smollm3_finetune.train.distributed.processes import world_size


def select_launcher(registry: Registry, loaded: LoadedConfig) -> SelectedComponent:
    """The launcher that the configuration names. Raises what `choose` raises."""
    config = loaded.config.launcher
    return choose(registry, LAUNCHER, config.name or DEFAULT_LAUNCHER, config, loaded.origins)


def is_own_process(launcher: SelectedComponent) -> bool:
    """Whether the calling process itself is the run, because no launcher was named."""
    return launcher.component.full_name == DEFAULT_LAUNCHER


def planned_layout(launcher: SelectedComponent, *, launches: bool) -> Layout:
    """The processes of the run. `launches`: whether the launcher is still to start them.

    Raises ConfigError if a launcher is named, but another one has started this process.
    """
    if not launches or is_own_process(launcher):
        return of_environment()
    if world_size() > 1:
        raise ConfigError(
            f"{LAUNCHER.flag} {launcher.spec.name} cannot be used here: another launcher started this process "
            f"(WORLD_SIZE={os.environ['WORLD_SIZE']})",
            hint=f"{LAUNCHER.flag} {DEFAULT_LAUNCHER}, or start the command without the other launcher",
        )
    with attributed_to(launcher.component, "processes() or sharding()"):
        return launcher.component.waited(lambda: of_launcher(launcher.spec, launcher.options), "processes")


def device_elsewhere(launcher: SelectedComponent) -> str | None:
    """The device type of the machines on which the launcher executes the run; None: this machine's.

    Raises PluginError if the launcher does not name a device type.
    """
    if launcher.spec.device is None:
        return None
    with attributed_to(launcher.component, "device()"):
        found: str | None = launcher.spec.device(launcher.options)
        if found is not None and found not in KINDS:
            raise TypeError(f"it returned {found!r}, not a device type such as 'cuda'")
    return found


def joins(launcher: SelectedComponent) -> bool:
    """Whether the launcher only joins a run that the same command on another machine plans."""
    with attributed_to(launcher.component, "joins()"):
        return launcher.spec.joins is not None and bool(launcher.spec.joins(launcher.options))


def check_launcher_options(launcher: SelectedComponent, env: Env) -> None:
    """Raises MissingRequirementError, or what the launcher's own check raises."""
    raise_all(list(requirement_problems(launcher.component.title, launcher.spec.requires, env.device)))
    if launcher.spec.check is not None:
        with attributed_to(launcher.component, "check()"):
            launcher.component.waited(lambda: launcher.spec.check(launcher.options, env), "check")
