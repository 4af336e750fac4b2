"""The loader: finds and checks the file when it is opened, and converts it when its weights are first needed."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from smollm3_finetune.api import BuildContext, ModelSource, converted_source, fingerprint
from smollm3_gguf.architectures import implied_config
from smollm3_gguf.files import check_file, find_file
from smollm3_gguf.header import Header
from smollm3_gguf.options import GgufOptions

KIND = "gguf"
"""The kind of the cache entries."""
CONVERSION = 3
"""Increase this when the output of the conversion changes; files are then converted again."""


class GgufLoader:
    """Opens `PATH.gguf` and `org/repo/FILE.gguf`."""

    def __init__(self, options: GgufOptions) -> None:
        self.options = options

    def open(self, ref: str, ctx: BuildContext) -> ModelSource:
        """The source for a file that exists and, according to its header, can be read.

        Raises ModelError if the file is missing, damaged or split, if its architecture cannot be read, or if
        its metadata state a computation that transformers' model cannot do.
        No weights are read, and only the header is downloaded.
        """
        dtype = self.options.dtype
        file = find_file(ref, self.options.revision)
        header = check_file(file)
        config = implied_config(header, dtype, ref)  # refuses metadata that transformers' model cannot use
        if (note := unloaded_blocks(ref, header)) is not None:
            ctx.progress.say(note)

        @cache
        def sha256() -> str:
            with file.on_disk().open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()

        def key() -> dict[str, Any]:
            return {
                "file": sha256(),
                "dtype": dtype,
                "conversion": CONVERSION,
                "transformers": version("transformers"),
            }

        def build(out: Path) -> None:
            from smollm3_gguf.convert import convert

            convert(ref, file.on_disk(), header, out, dtype, ctx.progress)

        return converted_source(
            ref=ref,
            ctx=ctx,
            kind=KIND,
            config=config,
            key=key,
            convert=build,
            fingerprint=lambda: fingerprint("gguf", sha256(), dtype),  # independent of library versions
            pins=lambda: {} if file.commit is None else {"revision": file.commit},
        )


def unloaded_blocks(ref: str, header: Header) -> str | None:
    """The note on blocks that predict further tokens (MTP), which models of transformers do not have; None without."""
    count = header.metadata.get(f"{header.architecture}.nextn_predict_layers", 0)
    if not isinstance(count, int) or count < 1:
        return None
    block, are = ("block", "is") if count == 1 else ("blocks", "are")
    return f"{ref} has {count} {block} for the prediction of further tokens, which {are} not loaded"
