"""The loader: opens `vault://MODEL`, the directory MODEL in a folder, in the Hugging Face layout."""

from __future__ import annotations

from pathlib import Path

from smollm3_finetune.api import BuildContext, ModelError, ModelSource, directory_source

from smollm3_vault import PREFIX
from smollm3_vault.options import VaultOptions


class VaultLoader:
    def __init__(self, options: VaultOptions) -> None:
        self.options = options

    def open(self, ref: str, ctx: BuildContext) -> ModelSource:
        """Find the model without reading weights. Raises ModelError if there is none."""
        folder = Path(self.options.folder).expanduser().absolute()
        name = ref.removeprefix(PREFIX)
        directory = folder / name
        if not name or ".." in Path(name).parts or not (directory / "config.json").is_file():
            known = sorted(f.parent.name for f in folder.glob("*/config.json"))
            hint = f"available models: {', '.join(known)}" if known else "--loader-opt folder=DIR"
            raise ModelError(f"the folder {folder} has no model {name!r}", hint=hint)
        return directory_source(directory, ref=ref)
