"""A machine that is not the first: it starts its share of the processes of a run that machine 0 plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from smollm3_finetune.api import Launcher, Progress, Purpose
from smollm3_finetune.components.kinds import LAUNCHER
from smollm3_finetune.components.negotiation import environment
from smollm3_finetune.components.registry import Registry, attributed_to
from smollm3_finetune.config.load import Setting, assemble, file_settings
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.launching.handover import launch_of
from smollm3_finetune.paths import user_path
from smollm3_finetune.runs.rundir import RunDir
from smollm3_finetune.train.launcher import check_launcher_options, joins, select_launcher
from smollm3_finetune.train.start import AUTO


def join(
    settings: Sequence[Setting],
    *,
    config_file: str | Path | None,
    resume: str | Path | None,
    plugins: Sequence[str],
    find_plugins: Callable[[Sequence[str]], Registry],
    progress: Progress,
    dry_run: bool = False,
) -> bool:
    """Start this machine's processes and wait for their end; False if the options do not say that it joins a run.

    Nothing is planned or written here. Raises what the launcher and its check raise.
    """
    if not any(s.key[0] == LAUNCHER.section for s in settings) and config_file is None:
        return False
    file = file_settings(user_path(config_file, "--config")) if config_file is not None else []
    loaded = assemble([_saved(resume), file, [s for s in settings if s.key[0] != "plugins"]])
    if loaded.config.launcher.name is None:
        return False
    registry = find_plugins((*loaded.config.plugins, *plugins))
    launcher = select_launcher(registry, loaded)
    if not joins(launcher):
        return False
    output = resume if resume is not None else loaded.config.output
    if output is None or output == AUTO:
        raise ConfigError(
            f"{launcher.component.title} joins a run that another machine plans, whose directory must be named",
            hint="--output DIR, the same as on machine 0 and on a file system that both machines share",
        )
    device = "cuda" if loaded.config.device == "auto" else loaded.config.device
    check_launcher_options(launcher, environment(device, Purpose.TRAIN))
    made: Launcher = launcher.create()
    launch = launch_of(RunDir(user_path(output, "--output")), device)
    with attributed_to(launcher.component, "launch()"):
        if dry_run:
            progress.say(made.describe(launch))
            return True
        progress.say(f"this machine joins the run {launch.run}; machine 0 reports it")
        made.launch(launch, progress)
    return True


def _saved(resume: str | Path | None) -> list[Setting]:
    """The launcher of the run that is resumed."""
    if resume is None or resume == AUTO:
        return []
    return [s for s in file_settings(RunDir.existing(resume).config) if s.key[0] == LAUNCHER.section]
