"""Launcher `ray`: the processes of a run as workers of Ray Train, the trials of a sweep with Ray Tune.

This module contains only the descriptor; Ray is imported when a run is launched.
"""

from __future__ import annotations

from smollm3_finetune.api import ConfigError, Env, LauncherSpec, Requires, hookimpl
from smollm3_ray.options import RayOptions


def check_options(options: RayOptions, env: Env) -> None:
    """Refuse options that contradict one another or the device."""
    if options.min_workers is not None and options.min_workers > options.workers:
        raise ConfigError(
            f"launcher 'ray': min_workers={options.min_workers} is more than workers={options.workers}",
            hint=f"--launcher-opt workers={options.min_workers}, or a smaller min_workers",
        )
    if options.address is not None and options.address.startswith("ray://"):
        raise ConfigError(
            "launcher 'ray': Ray Client addresses (ray://) are not supported",
            hint="run smollm3 on a node of the cluster: --launcher-opt address=auto",
        )
    if env.device == "cpu" and options.gpus_per_worker:
        raise ConfigError(
            f"launcher 'ray': gpus_per_worker={options.gpus_per_worker}, but the run is on the CPU",
            hint="--launcher-opt gpus_per_worker=0, or another --device",
        )
    if env.device == "cuda" and options.gpus_per_worker == 0:
        raise ConfigError(
            "launcher 'ray': gpus_per_worker=0 hides every GPU from the workers, but the run is on one",
            hint="--launcher-opt gpus_per_worker=1, or --device cpu",
        )


def device(options: RayOptions) -> str | None:
    """On a cluster with GPUs, the machine that starts the run may have none."""
    return "cuda" if options.address is not None and options.gpus_per_worker else None


@hookimpl
def smollm3_launchers() -> list[LauncherSpec]:
    return [
        LauncherSpec(
            name="ray",
            summary="Ray Train on this machine or a cluster: workers that die are restarted; sweeps with Ray Tune",
            factory="smollm3_ray.launcher:RayLauncher",
            options="smollm3_ray.options:RayOptions",
            requires=Requires(distributions=("ray[train,tune]>=2.60", "pyarrow>=17", "pandas")),
            processes=lambda options: options.workers if options.min_workers is None else None,
            device=device,
            sweeps=True,
            check=check_options,
            api=2,
        )
    ]
