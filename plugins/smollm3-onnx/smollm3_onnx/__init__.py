"""Exporter `onnx`: one graph with a key-value cache, for ONNX Runtime.

This module contains only the descriptor; torch and onnx are imported when a model is exported.
"""

from __future__ import annotations

from typing import Any

from smollm3_finetune.api import ExporterSpec, IncompatibleError, ModelSource, Requires, hookimpl


def check_export(options: Any, source: ModelSource) -> None:
    """Refuse a model that is not a decoder."""
    if not source.config.get("model_type") or source.config.get("is_encoder_decoder"):
        raise IncompatibleError(
            "config.json does not describe a decoder that transformers knows", hint="smollm3 export --to safetensors"
        )


@hookimpl
def smollm3_exporters() -> list[ExporterSpec]:
    return [
        ExporterSpec(
            name="onnx",
            summary="an ONNX graph with a key-value cache in float32, for ONNX Runtime",
            factory="smollm3_onnx.exporter:OnnxExporter",
            requires=Requires(distributions=("onnx>=1.21", "onnxscript>=0.7", "transformers>=5.23", "torch>=2.11")),
            disk=4.0,  # float32
            check=check_export,
            api=2,
        )
    ]
