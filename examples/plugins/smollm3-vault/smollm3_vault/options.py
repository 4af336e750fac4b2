"""Options that users set with `--loader-opt`. Imported for help and checks: keep it light."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3_finetune.api import option


@dataclass(frozen=True, kw_only=True)
class VaultOptions:
    folder: str | None = option(None, "Folder of the vault; none: the variable SMOLLM3_VAULT.")
    sha256: str | None = option(None, "Checksum that the file SHA256SUMS of the model must have; a run stores it.")
