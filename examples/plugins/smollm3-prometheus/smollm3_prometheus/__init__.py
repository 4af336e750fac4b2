"""Tracker `prometheus` for smollm3.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import ConfigError, Env, TrackerSpec, hookimpl

from smollm3_prometheus.options import PrometheusOptions


def check(options: PrometheusOptions, env: Env) -> None:
    """Refuse options that cannot be used, before anything is loaded or written. Without network access."""
    if not options.separator.isprintable() or len(options.separator) != 1:
        raise ConfigError("tracker prometheus: the separator must be one character", hint="--tracker-opt separator=';'")


@hookimpl
def smollm3_trackers() -> list[TrackerSpec]:
    return [
        TrackerSpec(
            name="prometheus",
            summary="a CSV file with a line for each value",
            factory="smollm3_prometheus.tracker:PrometheusTracker",
            options="smollm3_prometheus.options:PrometheusOptions",
            check=check,
            api=2,  # version of the plugin contract that this was written for
        )
    ]
