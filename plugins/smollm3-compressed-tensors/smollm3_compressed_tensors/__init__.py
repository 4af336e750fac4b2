"""Quantizer `compressed-tensors`: the checkpoints of llm-compressor and vLLM, read, trained on and written.

This module contains only the descriptor; torch and transformers are imported when a run names the quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_compressed_tensors.memory import bytes_for, options_for
from smollm3_finetune.api import DEQUANTIZABLE, ModelSource, Op, QuantizerSpec, hookimpl, packed_reasons


def claims(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a checkpoint in the format compressed-tensors."""
    stored = config.get("quantization_config")
    return isinstance(stored, Mapping) and stored.get("quant_method") == "compressed-tensors"


def check(options: Any, source: ModelSource) -> None:
    """Raises an error for a format that is not read, or for options that do not fit the source; reads no weights."""
    from smollm3_compressed_tensors.scheme import check

    check(options, source)


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="compressed-tensors",
            same_since="0.1",
            summary="checkpoints of llm-compressor and vLLM: INT4, INT8, FP8, NVFP4; writes INT4, INT8 and FP8",
            factory="smollm3_compressed_tensors.quantizer:CompressedTensorsQuantizer",
            options="smollm3_compressed_tensors.options:CompressedTensorsOptions",
            provides=DEQUANTIZABLE | {Op.ROUND_TRIP, Op.SHARDS},
            absent=packed_reasons("weights are stored as codes of few bits with scales"),
            claims=claims,
            check=check,
            bytes_for=bytes_for,
            options_for=options_for,
            api=2,
        )
    ]
