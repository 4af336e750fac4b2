"""Quantizer `hqq`: half-quadratic quantization by the library hqq, while a model is loaded.

This module holds only the descriptor; torch, transformers and hqq are imported when a run names the quantizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import DEQUANTIZABLE, ModelSource, Op, QuantizerSpec, Requires, hookimpl, packed_reasons
from smollm3_hqq.memory import bytes_for, options_for


def claims(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a checkpoint which this quantizer has written."""
    from smollm3_hqq.checkpoint import described

    return described(config) is not None


def check(options: Any, source: ModelSource) -> None:
    """Raises an error if the source cannot be loaded with these options; reads no weights."""
    from smollm3_hqq.checkpoint import check

    check(options, source)


@hookimpl
def smollm3_quantizers() -> list[QuantizerSpec]:
    return [
        QuantizerSpec(
            name="hqq",
            same_since="0.1",
            summary="half-quadratic quantization (HQQ) to 8, 4, 3 or 2 bits while loading, without calibration",
            factory="smollm3_hqq.quantizer:HQQQuantizer",
            options="smollm3_hqq.options:HQQOptions",
            requires=Requires(distributions=("hqq>=0.2.8,<0.3",)),
            provides=DEQUANTIZABLE | {Op.ROUND_TRIP, Op.SHARDS},
            absent=packed_reasons("weights are stored as codes of few bits with scales"),
            claims=claims,
            check=check,
            bytes_for=bytes_for,
            options_for=options_for,
            api=2,
        )
    ]
