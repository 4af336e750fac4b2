"""Options that users set with `--loader-opt`. Imported for help and checks: keep it light."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class VaultOptions:
    folder: str = option("models", "Folder that contains the directory MODEL of vault://MODEL.")
