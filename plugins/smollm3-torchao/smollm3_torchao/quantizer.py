"""Quantizer `torchao-int8`: a full-precision model whose linear layers are quantised one by one."""

from __future__ import annotations

from pathlib import Path

from smollm3_finetune.api import Base, BuildContext, ModelSource, fingerprint
from smollm3_torchao import check
from smollm3_torchao.layers import chosen, skeleton
from smollm3_torchao.linear import ops_in, quantise
from smollm3_torchao.options import TorchaoInt8Options


class TorchaoInt8Quantizer:
    def __init__(self, options: TorchaoInt8Options) -> None:
        self.options = options

    def load(self, source: ModelSource, ctx: BuildContext) -> Base:
        """The frozen model on `ctx.device`; whatever is not quantised (embeddings, norms, head) is in `ctx.dtype`.

        Needs memory for the model in `ctx.dtype`. Raises, before weights are read, IncompatibleError for a source
        that is quantised already, ConfigError for options that do not fit it.
        """
        check(self.options, source)
        bare = skeleton(source.config)
        if bare is not None:
            chosen(bare, source, self.options)
        model = source.load(dtype=ctx.torch_dtype)
        layers = chosen(model, source, self.options)
        with ctx.progress.task(f"quantising {Path(source.ref).name} to 8 bits", total=len(layers)) as task:
            for layer in layers.values():
                quantise(layer, self.options.group_size, ctx.device)
                task.advance()
        model.requires_grad_(False)
        model.to(ctx.device)
        return Base(model=model, fingerprint=self._fingerprint(source, ctx), ops_for=ops_in(ctx.torch_dtype))

    def _fingerprint(self, source: ModelSource, ctx: BuildContext) -> str:
        """What decides the codes: the weights, the options, and the run's dtype where it rounds the weights first."""
        skipped = sorted(self.options.skip_modules)
        return fingerprint("torchao-int8", source.fingerprint, self.options.group_size, skipped, _rounded(source, ctx))


def _rounded(source: ModelSource, ctx: BuildContext) -> str | None:
    """The run's dtype where it rounds the checkpoint before torchao sees it; None where it does not."""
    own = str(source.config.get("dtype") or source.config.get("torch_dtype") or "float32").removeprefix("torch.")
    return None if ctx.dtype in (own, "float32", "float64") else ctx.dtype
