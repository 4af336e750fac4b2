"""Exporter `mlx`: a directory that mlx-lm loads on Apple silicon, of full precision or quantized to 4 or 8 bits.

This module contains only the descriptor; torch and mlx are imported when a model is exported.
"""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import ExporterSpec, ModelSource, Requires, hookimpl


def check_export(options: Any, source: ModelSource) -> None:
    """Refuse a model that cannot be exported."""
    from smollm3_mlx.installed import check_source

    check_source(options, source)


@hookimpl
def smollm3_exporters() -> list[ExporterSpec]:
    return [
        ExporterSpec(
            name="mlx",
            summary="a directory that mlx-lm loads on Apple silicon, of full precision or in 4 or 8 bits",
            factory="smollm3_mlx.exporter:MlxExporter",
            options="smollm3_mlx.options:MlxOptions",
            requires=Requires(distributions=("safetensors>=0.4", "transformers>=5.14")),
            check=check_export,
            api=2,
        )
    ]
