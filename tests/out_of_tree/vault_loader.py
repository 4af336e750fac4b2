"""An out-of-tree loader, in one file: opens `vault://NAME`, a directory under $VAULT."""

import os
from pathlib import Path

from smollm3_finetune.api import LoaderSpec, ModelError, directory_source, hookimpl

PREFIX = "vault://"


@hookimpl
def smollm3_loaders():
    return [
        LoaderSpec(
            name="vault",
            summary="models in a vault",
            factory="vault_loader:VaultLoader",
            claims=lambda ref: ref.startswith(PREFIX),
            api=2,
        )
    ]


class VaultLoader:
    def __init__(self, options):
        pass

    def open(self, ref, ctx):
        directory = Path(os.environ.get("VAULT", ".")) / ref.removeprefix(PREFIX)
        if not (directory / "config.json").exists():
            raise ModelError(f"the vault has no model {ref!r}")
        return directory_source(directory, ref=ref)
