"""Loader `tiny`: the model in this package (`tiny/`, created by `scripts/pretrain_tiny.py`)."""

from __future__ import annotations

from pathlib import Path

from smollm3_finetune.api import BuildContext, ConfigError, ModelSource, NoOptions, directory_source

DIRECTORY = Path(__file__).with_name("tiny")


class TinyLoader:
    def __init__(self, options: NoOptions) -> None:
        pass

    def open(self, ref: str, ctx: BuildContext) -> ModelSource:
        if ref != "tiny":
            raise ConfigError(f"loader 'tiny' opens only the built-in model, not {ref!r}", hint="--loader hf")
        return directory_source(DIRECTORY, ref=ref, use_safetensors=True)
