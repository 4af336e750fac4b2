"""Exporter and loader `npz` for smollm3.

This module holds only the descriptors. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import ExporterSpec, LoaderSpec, hookimpl


def claims(ref: str) -> bool:
    """Whether this loader opens a reference, judging by its text."""
    return ref.endswith(".npz")


@hookimpl
def smollm3_exporters() -> list[ExporterSpec]:
    return [
        ExporterSpec(
            name="npz",
            summary="a model with its tokenizer as one NumPy archive",
            factory="smollm3_npz.exporter:NpzExporter",
            options="smollm3_npz.options:NpzOptions",
            api=2,
        )
    ]


@hookimpl
def smollm3_loaders() -> list[LoaderSpec]:
    return [
        LoaderSpec(
            name="npz",
            summary="archives that the exporter npz has written, FILE.npz",
            factory="smollm3_npz.loader:NpzLoader",
            api=2,
            claims=claims,
        )
    ]
