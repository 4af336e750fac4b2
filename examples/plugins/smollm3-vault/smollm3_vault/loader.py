"""The loader: opens `vault://NAME@VERSION`, the directory NAME/VERSION of a vault, in the Hugging Face layout.

The file SHA256SUMS beside the model lists each of its files, as `sha256sum *` writes it. A file is read only after it
was compared with its checksum: `config.json` when the model is opened, everything else before weights or the tokenizer
are read. Files that are not listed are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from smollm3_finetune.api import BuildContext, ConfigError, ModelError, ModelSource, directory_source, file_digest
from smollm3_vault import PREFIX
from smollm3_vault.options import VaultOptions

SUMS = "SHA256SUMS"
AGAIN = "copy the model into the vault again"
REFERENCE = re.compile(rf"{PREFIX}(\w[\w.+-]*)@(\w[\w.+-]*)")
LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\]+)")


class VaultLoader:
    def __init__(self, options: VaultOptions) -> None:
        self.options = options

    def open(self, ref: str, ctx: BuildContext) -> ModelSource:
        """Find the model without reading weights. Raises ModelError if there is none, or if it was changed."""
        chosen = self.options.folder or os.environ.get("SMOLLM3_VAULT")
        if not chosen:
            raise ConfigError("no folder of a vault is named", hint="--loader-opt folder=DIR, or SMOLLM3_VAULT=DIR")
        folder = Path(chosen).expanduser().absolute()
        named = REFERENCE.fullmatch(ref)
        directory = folder / named[1] / named[2] if named else folder
        if named is None or not (directory / SUMS).is_file():
            known = sorted(f"{PREFIX}{f.parent.parent.name}@{f.parent.name}" for f in folder.glob(f"*/*/{SUMS}"))
            hint = f"available models: {', '.join(known)}" if known else "--loader-opt folder=DIR"
            raise ModelError(f"the vault {folder} has no model {ref!r}", hint=hint)
        digest = file_digest(directory / SUMS)
        if self.options.sha256 not in (None, digest):
            raise ModelError(f"{SUMS} of {ref!r} is not the expected one", hint="name a version that was not replaced")
        return VaultSource(ref, directory, digest)


class VaultSource:
    """A directory whose files are compared with their checksums before they are read."""

    def __init__(self, ref: str, directory: Path, digest: str) -> None:
        self.ref = ref
        self.pins = {"sha256": digest}
        self._directory = directory
        lines = (directory / SUMS).read_text(encoding="utf-8").splitlines()
        found = [LINE.fullmatch(line) for line in lines]
        self._sums = {match[2]: match[1] for match in found if match}
        if not all(found) or "config.json" not in self._sums:
            raise ModelError(f"{SUMS} of {ref!r} is damaged", hint="write it with: sha256sum * > SHA256SUMS")
        self._inner = directory_source(directory, ref=ref)
        self._compare("config.json")

    def _compare(self, name: str) -> None:
        try:
            digest = file_digest(self._directory / name)
        except FileNotFoundError:
            raise ModelError(f"{self.ref!r} lacks the file {name}", hint=AGAIN) from None
        if digest != self._sums[name]:
            raise ModelError(f"{name} of {self.ref!r} was changed", hint=AGAIN)

    @cached_property
    def _verified(self) -> ModelSource:
        if extra := sorted({f.name for f in self._directory.iterdir()} - {*self._sums, SUMS}):
            raise ModelError(f"{SUMS} of {self.ref!r} does not list {extra[0]}", hint="remove the file, or list it")
        for name in self._sums:
            self._compare(name)
        return self._inner

    @property
    def config(self) -> Mapping[str, Any]:
        return self._inner.config

    @property
    def path(self) -> Path:
        return self._verified.path

    @property
    def fingerprint(self) -> str:
        return self._verified.fingerprint

    def has_file(self, name: str) -> bool:
        return name in self._sums

    def tokenizer(self) -> Any:
        return self._verified.tokenizer()

    def load(self, **kwargs: Any) -> Any:
        return self._verified.load(**kwargs)

    def at(self, path: Path) -> ModelSource:
        return self._inner.at(path)
