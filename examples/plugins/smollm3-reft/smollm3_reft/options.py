"""Options that users set with `--adapter-opt`. Imported for help and checks: keep it light."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class ReftOptions:
    rank: int = option(4, "Dimensions of the hidden states that a block edits.", ge=1)
    blocks: tuple[int, ...] = option((), "Numbers of the transformer blocks whose output is edited, from 0; none: all.")
