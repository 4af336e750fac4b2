"""Loader `vault` for smollm3.

This module holds only the descriptor. It is imported whenever plugins are listed, so it must not import torch.
"""

from __future__ import annotations

from smollm3_finetune.api import LoaderSpec, hookimpl

PREFIX = "vault://"


def claims(ref: str) -> bool:
    """Whether this loader opens a reference, judging by its text or by the file system."""
    return ref.startswith(PREFIX)


@hookimpl
def smollm3_loaders() -> list[LoaderSpec]:
    return [
        LoaderSpec(
            name="vault",
            summary="models of a company's folder with checksums, vault://NAME@VERSION",
            factory="smollm3_vault.loader:VaultLoader",
            options="smollm3_vault.options:VaultOptions",
            api=2,
            claims=claims,
        )
    ]
