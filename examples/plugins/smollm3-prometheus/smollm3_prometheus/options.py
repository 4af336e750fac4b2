"""Options that users set with `--tracker-opt KEY=VALUE`."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class PrometheusOptions:
    directory: str | None = option(
        None,
        "The directory of node_exporter's textfile collector; default: trackers/prometheus in the run directory.",
    )
