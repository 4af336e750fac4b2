"""Options that users set with `--objective-opt`. Imported for help and checks: keep it light."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class SmoothedOptions:
    smoothing: float = option(0.1, "Share of each target that is spread evenly over the vocabulary.", ge=0, lt=1)
