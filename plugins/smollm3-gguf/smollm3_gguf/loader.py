"""The loader: finds and checks the file when it is opened, and converts it when its weights are first needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, ModelSource, directory_source, fingerprint
from smollm3_gguf.architectures import implied_config
from smollm3_gguf.files import GgufFile, check_file, find_file
from smollm3_gguf.header import Header
from smollm3_gguf.options import GgufOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KIND = "gguf"
"""The kind of the cache entries."""
CONVERSION = 2
"""Increase this when the output of the conversion changes; files are then converted again."""


@dataclass(frozen=True, kw_only=True)
class GgufSource:
    """`ModelSource` of a GGUF file: `config` comes from its header until something needs the converted copy."""

    ref: str
    file: GgufFile
    header: Header
    options: GgufOptions
    ctx: BuildContext

    @property
    def config(self) -> Mapping[str, Any]:
        """The config that the header implies, or the converted `config.json` once it exists."""
        if "path" in self.__dict__:
            return self._converted.config
        return self._implied

    @cached_property
    def _implied(self) -> Mapping[str, Any]:
        return implied_config(self.header, self.options.dtype, self.ref)

    @cached_property
    def _sha256(self) -> str:
        """SHA-256 of the file's content; downloads the file if it is only on the Hub."""
        with self.file.on_disk().open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @cached_property
    def path(self) -> Path:
        """The converted copy, which is built at the first access and kept in the cache."""
        key = {
            "file": self._sha256,
            "dtype": self.options.dtype,
            "conversion": CONVERSION,
            "transformers": version("transformers"),
        }

        def build(out: Path) -> None:
            from smollm3_gguf.convert import convert

            convert(self.ref, self.file.on_disk(), self.header, out, self.options.dtype, self.ctx.progress)

        return self.ctx.cache.get_or_build(KIND, key, build)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the file's content and the dtype of the copy; independent of library versions."""
        return fingerprint("gguf", self._sha256, self.options.dtype)

    @property
    def pins(self) -> Mapping[str, str]:
        """The commit of a file on the Hub, so that the same file is opened again; empty for other files."""
        return {} if self.file.commit is None else {"revision": self.file.commit}

    def has_file(self, name: str) -> bool:
        """Always False: a GGUF file contains no checkpoint files."""
        return False

    @cached_property
    def _converted(self) -> ModelSource:
        return directory_source(self.path, ref=self.ref, fingerprint=self.fingerprint)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._converted.tokenizer()

    def load(self, **kwargs: Any) -> PreTrainedModel:
        return self._converted.load(**kwargs)

    def at(self, path: Path) -> ModelSource:
        return directory_source(path, ref=self.ref)


class GgufLoader:
    """Opens `PATH.gguf` and `org/repo/FILE.gguf`."""

    def __init__(self, options: GgufOptions) -> None:
        self.options = options

    def open(self, ref: str, ctx: BuildContext) -> GgufSource:
        """The source for a file that exists and, according to its header, can be read by transformers.

        Raises ModelError if the file is missing, damaged or split, if transformers cannot read its architecture, or if
        its metadata state a computation that transformers' model cannot do.
        No weights are read, and only the header is downloaded.
        """
        file = find_file(ref, self.options.revision)
        header = check_file(file)
        source = GgufSource(ref=ref, file=file, header=header, options=self.options, ctx=ctx)
        _ = source.config  # refuses metadata that transformers' model cannot use
        if (note := unloaded_blocks(ref, header)) is not None:
            ctx.progress.say(note)
        return source


def unloaded_blocks(ref: str, header: Header) -> str | None:
    """The note on blocks that predict further tokens (MTP), which models of transformers do not have; None without."""
    count = header.metadata.get(f"{header.architecture}.nextn_predict_layers", 0)
    if not isinstance(count, int) or count < 1:
        return None
    block, are = ("block", "is") if count == 1 else ("blocks", "are")
    return f"{ref} has {count} {block} for the prediction of further tokens, which {are} not loaded"
