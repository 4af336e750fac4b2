"""PEFT's methods as adapters, and its files as an export. This module imports neither torch nor peft."""

from __future__ import annotations

from collections.abc import Iterable

from smollm3_finetune.api import AdapterSpec, ExporterSpec, hookimpl


@hookimpl
def smollm3_adapters() -> Iterable[AdapterSpec]:
    from smollm3_peft.methods import METHODS

    return METHODS


@hookimpl
def smollm3_exporters() -> Iterable[ExporterSpec]:
    return [
        ExporterSpec(
            name="peft",
            same_since="0.1",
            summary="the adapter alone, as PEFT loads it",
            factory="smollm3_peft.exporter:PeftExporter",
            takes="adapter",
            api=2,
        )
    ]
