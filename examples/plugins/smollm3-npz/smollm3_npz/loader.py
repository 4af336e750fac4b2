"""The loader: opens FILE.npz, and converts it into a directory of the cache when weights are needed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch

from smollm3_finetune.api import (
    BuildContext,
    ModelSource,
    NoOptions,
    converted_source,
    file_digest,
    fingerprint,
    write_tensors,
)
from smollm3_npz.archive import FILE, open_archive, weights


class NpzLoader:
    def __init__(self, options: NoOptions) -> None:
        pass

    def open(self, ref: str, ctx: BuildContext) -> ModelSource:
        """Read the config in the archive, and no weights. Raises ModelError if there is no such archive."""
        path = Path(ref).expanduser().absolute()
        with open_archive(path) as archive:
            config = json.loads(bytes(archive[f"{FILE}config.json"]))
        digest = cache(lambda: file_digest(path))

        def convert(out: Path) -> None:
            with open_archive(path) as archive:
                for name in (name for name in archive if name.startswith(FILE)):
                    (out / Path(name).name).write_bytes(bytes(archive[name]))
                write_tensors(out, ((name, torch.from_numpy(array)) for name, array in weights(archive)))

        return converted_source(
            ref=ref,
            ctx=ctx,
            kind="npz",
            config=config,
            key=lambda: {"file": digest(), "version": 1},
            convert=convert,
            fingerprint=lambda: fingerprint("npz", digest()),
        )
