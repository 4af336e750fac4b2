"""Exporter `npz` for smollm3.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import ExporterSpec, IncompatibleError, ModelSource, hookimpl

from smollm3_npz.options import NpzOptions


def check(options: NpzOptions, source: ModelSource) -> None:
    """Refuse a model that the format cannot hold, before anything is merged. Reads `config.json` only."""
    if "vocab_size" not in source.config:
        raise IncompatibleError(
            f"{source.ref!r} states no vocab_size", hint="export it as safetensors: --to safetensors"
        )


@hookimpl
def smollm3_exporters() -> list[ExporterSpec]:
    return [
        ExporterSpec(
            name="npz",
            summary="the weights as one NumPy archive",
            factory="smollm3_npz.exporter:NpzExporter",
            options="smollm3_npz.options:NpzOptions",
            check=check,
            api=2,  # version of the plugin contract that this was written for
        )
    ]
