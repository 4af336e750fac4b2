"""Exporter `mlx`: a directory that mlx-lm loads on Apple silicon, of full precision or quantized to 4 or 8 bits.

This module contains only the descriptor; torch and mlx are imported when a model is exported.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from smollm3_finetune.api import Env, ExporterSpec, ModelSource, Requires, hookimpl

SIZES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
"""Bytes of a weight."""


def check_export(options: Any, source: ModelSource) -> None:
    """Refuse a model that cannot be exported."""
    from smollm3_mlx.installed import check_source

    check_source(options, source)


def refine_export(spec: ExporterSpec, options: Any, env: Env) -> ExporterSpec:
    """The weights in the dtype: with bits, they are a temporary copy, deleted before the smaller ones are written.

    transformers loads these weights, but not the codes of mlx.
    """
    return dataclasses.replace(spec, disk=SIZES[options.dtype], loads=options.bits is None)


@hookimpl
def smollm3_exporters() -> list[ExporterSpec]:
    return [
        ExporterSpec(
            name="mlx",
            summary="a directory that mlx-lm loads on Apple silicon, of full precision or in 4 or 8 bits",
            factory="smollm3_mlx.exporter:MlxExporter",
            options="smollm3_mlx.options:MlxOptions",
            requires=Requires(distributions=("safetensors>=0.4", "transformers>=5.14")),
            refine=refine_export,
            check=check_export,
            api=2,
        )
    ]
