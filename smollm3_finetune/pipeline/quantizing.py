"""The work of a quantize stage: a quantized checkpoint of a model, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from smollm3_finetune.api import Purpose
from smollm3_finetune.config.load import LoadedConfig
from smollm3_finetune.model_files.output import check_vacant
from smollm3_finetune.pipeline.work import Work
from smollm3_finetune.quantize.run import QuantizePlan, plan_quantize, quantize


def quantize_stage(work: Work) -> None:
    """Write the checkpoint."""
    check_vacant("output", work.directory)
    quantize(planned_quantization(work, work.loaded()))


def planned_quantization(work: Work, loaded: LoadedConfig, ref: str | None = None) -> QuantizePlan:
    """The checked quantization; of the model `ref` in place of that of a stage that is not finished."""
    if ref is not None:
        loaded = replace(loaded, config=replace(loaded.config, model=ref))
    return plan_quantize(work.registry(), loaded, work.context(Purpose.QUANTIZE), work.directory, work.about)


def quantizing_figures(work: Work) -> dict[str, Any]:
    """The bytes of the checkpoint's weights."""
    return {"bytes": sum(f.stat().st_size for f in work.directory.glob("*.safetensors"))}
