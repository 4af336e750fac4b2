"""A model directory in the Hugging Face layout, opened without reading its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.files.json import file_sha256, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def content_fingerprint(directory: Path) -> str:
    """SHA-256 over config.json and every weight file of a directory: 32 hexadecimal digits.

    The names of the files do not count; their sorted order does.
    """
    files = sorted(f for f in directory.iterdir() if f.name == "config.json" or f.suffix in WEIGHT_SUFFIXES)
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL: shards are read in parallel
        digests = [bytes.fromhex(digest) for digest in pool.map(file_sha256, files)]
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class DirectorySource:
    """`ModelSource` of a local directory."""

    ref: str
    directory: Path
    known_fingerprint: str | None = None
    load_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Added to every `from_pretrained`: `trust_remote_code`, `use_safetensors`, …"""

    @property
    def path(self) -> Path:
        return self.directory

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return read_json(self.directory / "config.json")

    @cached_property
    def fingerprint(self) -> str:
        return self.known_fingerprint or content_fingerprint(self.directory)

    def has_file(self, name: str) -> bool:
        return (self.directory / name).is_file()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        from smollm3_finetune.model_files.loading import load_tokenizer

        return load_tokenizer(self.ref, self.directory, self.load_kwargs)

    def load(self, **kwargs: Any) -> PreTrainedModel:
        from smollm3_finetune.model_files.loading import load_causal_lm

        return load_causal_lm(self.ref, self.directory, {**self.load_kwargs, **kwargs})

    def at(self, path: Path) -> DirectorySource:
        return replace(self, directory=path, known_fingerprint=None)
