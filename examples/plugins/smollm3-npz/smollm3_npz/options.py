"""Options that users set with `--to-opt KEY=VALUE`, or `--KEY VALUE`. Imported for help and checks: keep it light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class NpzOptions:
    bits: Literal[16, 32] = option(32, "Bits of each weight.")
