"""Launcher `slurm`: writes a job script, submits it with sbatch, and continues the run when the job is requeued.

This module contains only the descriptor and checks of the options; it imports no torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from smollm3_finetune.api import ConfigError, Env, LauncherSpec, hookimpl

TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
"""A time limit as sbatch takes it."""


def processes_per_node(options: Any) -> int:
    return int(options.processes or options.gpus_per_node or 1)


def processes(options: Any) -> int:
    return int(options.nodes) * processes_per_node(options)


def device(options: Any) -> str | None:
    return "cuda" if options.gpus_per_node else None


def check(options: Any, env: Env) -> None:
    """Raises ConfigError for options that sbatch, or the shell, would misunderstand."""
    if options.gpus_per_node and processes_per_node(options) > options.gpus_per_node:
        raise ConfigError(
            f"launcher.processes={options.processes} is more than launcher.gpus_per_node={options.gpus_per_node}: each "
            "process needs a GPU of its own",
            hint=f"--launcher-opt processes={options.gpus_per_node}, or omit it",
        )
    if options.time is not None and not TIME.fullmatch(options.time):
        raise ConfigError(
            f"launcher.time must be a time limit of sbatch, not {options.time!r}",
            hint="--launcher-opt time=8:00:00, or 2-00:00:00 for two days",
        )
    for name in ("partition", "account", "qos", "constraint", "memory", "time"):
        value = getattr(options, name)
        if value is not None and (not value.strip() or any(ord(c) < 32 for c in value)):
            raise ConfigError(
                f"launcher.{name} must be one line of text, not {value!r}", hint=f"--launcher-opt {name}=…, or omit it"
            )
    for line in options.sbatch:
        if not re.match(r"--?[A-Za-z]", line) or any(ord(c) < 32 for c in line):
            raise ConfigError(
                f"launcher.sbatch: {line!r} is not an option of sbatch", hint="--launcher-opt sbatch=--exclusive"
            )
    if options.template is not None:
        _check_template(Path(options.template).expanduser())


def _check_template(path: Path) -> None:
    from smollm3_slurm.script import read_template

    read_template(path)


@hookimpl
def smollm3_launchers() -> list[LauncherSpec]:
    return [
        LauncherSpec(
            name="slurm",
            aliases=("sbatch",),
            same_since="0.1",
            summary="a job of a Slurm cluster, requeued and resumed after preemption or its time limit",
            factory="smollm3_slurm.launcher:Slurm",
            options="smollm3_slurm.options:SlurmOptions",
            processes=processes,
            device=device,
            check=check,
            waits=False,
            api=2,
        )
    ]
