"""Options that users set with `--quant-opt`. Imported for help and checks: keep it light."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class QuantoOptions:
    bits: int = option(8, "Bits per weight.", ge=2, le=8)
    group_size: int | None = option(None, "Inputs of a layer that share a scale; none: the whole row.", ge=1)
