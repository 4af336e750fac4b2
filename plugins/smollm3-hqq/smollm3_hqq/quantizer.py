"""Quantizer `hqq`: a full-precision model whose linear layers are quantized one by one."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

from smollm3_finetune.api import (
    Base,
    BuildContext,
    ModelSource,
    architecture_of,
    fingerprint,
    options_dict,
    rounding_dtype,
)
from smollm3_hqq import check
from smollm3_hqq.layers import chosen
from smollm3_hqq.linear import Linear, ops_in
from smollm3_hqq.options import HQQOptions


class HQQQuantizer:
    def __init__(self, options: HQQOptions) -> None:
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """The frozen model on `ctx.device`; whatever is not quantized (embeddings, norms, head) is in `ctx.dtype`.

        Needs memory for the model in `ctx.dtype`. Raises, before weights are read, IncompatibleError for a source
        that is quantized already or has a layer that hqq cannot pack, ConfigError for options that do not fit it.
        """
        check(self.options, source)
        bare = architecture_of(source)
        if bare is not None:
            chosen(bare, source, self.options)
        model = source.load(dtype=ctx.torch_dtype)
        layers = chosen(model, source, self.options)
        title = f"quantizing {Path(source.ref).name} to {self.options.bits} bits"
        with ctx.progress.task(title, total=len(layers)) as task:
            for name in list(layers):
                model.set_submodule(name, Linear(layers.pop(name), self.options, ctx.device))
                task.advance()
        model.requires_grad_(False)
        model.to(ctx.device)
        return Base(model=model, fingerprint=self._fingerprint(source, ctx), ops_for=ops_in(ctx.torch_dtype))

    def _fingerprint(self, source: ModelSource, ctx: BuildContext) -> str:
        """What decides the codes: weights, options, hqq's version, and the precision in which it searches."""
        options = {**options_dict(self.options), "skip_modules": sorted(self.options.skip_modules)}
        searched = "float16" if torch.device(ctx.device).type == "cuda" else "float32"
        return fingerprint(
            "hqq", source.fingerprint, options, version("hqq"), searched, rounding_dtype(source, ctx, seen_in="float32")
        )
