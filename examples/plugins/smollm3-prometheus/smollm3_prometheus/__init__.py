"""Tracker `prometheus` for smollm3: the latest values in a text file for Prometheus' node_exporter."""

from __future__ import annotations

import os
from pathlib import Path

from smollm3_finetune.api import ConfigError, Env, TrackerSpec, hookimpl
from smollm3_prometheus.options import PrometheusOptions


def check(options: PrometheusOptions, env: Env) -> None:
    """Refuse a directory that does not exist or cannot be written."""
    if options.directory is None:
        return
    folder = Path(options.directory).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"tracker prometheus: {options.directory!r} is not a directory", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise ConfigError(
            f"tracker prometheus: {options.directory!r} cannot be written",
            hint="--tracker-opt directory=DIR, as in node_exporter --collector.textfile.directory",
        )


@hookimpl
def smollm3_trackers() -> list[TrackerSpec]:
    return [
        TrackerSpec(
            name="prometheus",
            summary="the latest values in a text file for Prometheus' node_exporter",
            factory="smollm3_prometheus.tracker:PrometheusTracker",
            options="smollm3_prometheus.options:PrometheusOptions",
            check=check,
            api=2,
        )
    ]
