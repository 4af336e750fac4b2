"""Quantizer `none`: unquantized weights in the dtype of the run."""

from __future__ import annotations

from smollm3_finetune.api import Base, BuildContext, ModelSource, NoOptions


class NoQuantizer:
    def __init__(self, options: NoOptions) -> None:
        pass

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        model = source.load(dtype=ctx.torch_dtype)
        model.to(ctx.device)
        model.requires_grad_(False)
        return Base(model=model, fingerprint=source.fingerprint)
