"""Loader `gguf`, exporters `gguf` and `gguf-lora`: `.gguf` files, which llama.cpp and others run.

This module contains only the descriptors; transformers and gguf are imported when a command uses such a file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from smollm3_finetune.api import Env, ExporterSpec, LoaderSpec, ModelSource, Requires, hookimpl


def claims(ref: str) -> bool:
    """Whether a reference ends in `.gguf`."""
    return ref.lower().endswith(".gguf")


@hookimpl
def smollm3_loaders() -> list[LoaderSpec]:
    return [
        LoaderSpec(
            name="gguf",
            same_since="0.1",
            summary="a GGUF file, PATH.gguf or org/repo/FILE.gguf on the Hub, dequantized once into the cache",
            factory="smollm3_gguf.loader:GgufLoader",
            options="smollm3_gguf.options:GgufOptions",
            requires=Requires(distributions=("gguf>=0.17", "transformers>=5.14")),
            claims=claims,
            # Higher than loaders that claim any path, or anything that looks like a Hub reference.
            rank=10,
            api=2,
        )
    ]


def check_export(options: Any, source: ModelSource) -> None:
    """Refuse a model that cannot be exported."""
    from smollm3_gguf.exporter import check_source

    check_source(options, source)


def check_adapter(options: Any, source: ModelSource) -> None:
    """Refuse an adapter whose base llama.cpp does not compute."""
    from smollm3_gguf.families import check_config, stated

    check_config(stated(source.config))


def refine_export(spec: ExporterSpec, options: Any, env: Env) -> ExporterSpec:
    """Types that llama.cpp quantizes have no round trip here, and f32 rounds nothing."""
    from smollm3_gguf.types import K_QUANTS, disk_of

    return replace(spec, round_trips=options.type not in (*K_QUANTS, "f32"), disk=disk_of(options.type))


@hookimpl
def smollm3_exporters() -> list[ExporterSpec]:
    return [
        ExporterSpec(
            name="gguf",
            summary="one GGUF file for llama.cpp, Ollama and others: weights, tokenizer and chat template",
            factory="smollm3_gguf.exporter:GgufExporter",
            options="smollm3_gguf.options:GgufExportOptions",
            requires=Requires(distributions=("gguf>=0.17", "transformers>=5.14")),
            round_trips=True,
            loads=True,
            weightless_options=("modelfile",),
            refine=refine_export,
            check=check_export,
            api=2,
        ),
        ExporterSpec(
            name="gguf-lora",
            summary="a LoRA adapter for llama.cpp, used beside a GGUF file of its base",
            factory="smollm3_gguf.lora:GgufLoraExporter",
            takes="adapter",
            requires=Requires(distributions=("gguf>=0.17", "peft>=0.17")),
            check=check_adapter,
            api=2,
        ),
    ]
