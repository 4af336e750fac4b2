"""Quantizer `torchao-int8`: a full-precision model whose linear layers are quantized one by one."""

from __future__ import annotations

from pathlib import Path

from smollm3_finetune.api import Base, BuildContext, ModelSource, architecture_of, fingerprint, rounding_dtype
from smollm3_torchao import check
from smollm3_torchao.layers import chosen
from smollm3_torchao.linear import ops_in, quantize
from smollm3_torchao.options import TorchaoInt8Options


class TorchaoInt8Quantizer:
    def __init__(self, options: TorchaoInt8Options) -> None:
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """The frozen model on `ctx.device`; whatever is not quantized (embeddings, norms, head) is in `ctx.dtype`.

        Needs memory for the model in `ctx.dtype`. Raises, before weights are read, IncompatibleError for a source
        that is quantized already, ConfigError for options that do not fit it.
        """
        check(self.options, source)
        bare = architecture_of(source)
        if bare is not None:
            chosen(bare, source, self.options)
        model = source.load(dtype=ctx.torch_dtype)
        layers = chosen(model, source, self.options)
        with ctx.progress.task(f"quantizing {Path(source.ref).name} to 8 bits", total=len(layers)) as task:
            for layer in layers.values():
                quantize(layer, self.options.group_size, ctx.device)
                task.advance()
        model.requires_grad_(False)
        model.to(ctx.device)
        return Base(model=model, fingerprint=self._fingerprint(source, ctx), ops_for=ops_in(ctx.torch_dtype))

    def _fingerprint(self, source: ModelSource, ctx: BuildContext) -> str:
        """What decides the codes: the weights, the options, and the run's dtype where it rounds the weights first."""
        skipped = sorted(self.options.skip_modules)
        return fingerprint(
            "torchao-int8",
            source.fingerprint,
            self.options.group_size,
            skipped,
            rounding_dtype(source, ctx, seen_in="float32"),
        )
