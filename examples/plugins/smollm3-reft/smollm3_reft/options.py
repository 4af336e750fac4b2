"""Options that users set with `--adapter-opt`. Imported for help and checks: keep it light."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class ReftOptions:
    layers: str = option("_proj", "Scale the outputs of linear layers whose name ends with this.")
