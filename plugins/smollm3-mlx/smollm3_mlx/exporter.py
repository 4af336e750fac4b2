"""The exporter `mlx`: safetensors, config and tokenizer as mlx-lm reads them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3_finetune.api import (
    BuildContext,
    Check,
    Exported,
    IncompatibleError,
    ModelError,
    StoredTensors,
    copy_model_files,
    open_checkpoint,
    write_tensors,
)
from smollm3_mlx.checks import check_files, check_logits, check_weights
from smollm3_mlx.config import mlx_config, write_config
from smollm3_mlx.options import MlxOptions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

DENSE = "dense.partial"
"""The folder in the output that has the dense copy while it is quantized."""


class MlxExporter:
    def __init__(self, options: MlxOptions) -> None:
        self.options = options

    def write(self, subject: Exported, out: Path, ctx: BuildContext) -> None:
        config = {**mlx_config(subject.model.config), "dtype": self.options.dtype}
        dense = out if self.options.bits is None else out / DENSE
        dense.mkdir(exist_ok=True)
        stored = open_checkpoint(subject.model)
        write_tensors(dense, self.rounded_items(stored), format="mlx")
        write_config(dense, config)
        if self.options.bits is not None:
            from smollm3_mlx.library import quantized

            tensors, config = quantized(dense, config, self.options.bits, self.options.group_size)
            if unknown := sorted(name for name in tensors if base_of(name) not in stored):
                raise IncompatibleError(
                    f"mlx-lm stores {unknown[0]}, which the model's files do not have, so it cannot be compared",
                    hint="leave out bits, then: mlx_lm.convert -q --hf-path DIR",
                )
            shutil.rmtree(dense)
            write_tensors(out, sorted(tensors.items()), format="mlx")
            write_config(out, config)
        copy_model_files(subject.model.path, out, ctx.progress.say)

    def rounded_items(self, stored: StoredTensors) -> Iterator[tuple[str, Tensor]]:
        for name in sorted(stored):
            yield name, self.rounded(name, stored[name])

    def rounded(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor in the dtype of the export. Raises IncompatibleError if its values exceed it."""
        import torch

        if not tensor.is_floating_point():
            return tensor
        found = tensor.to(getattr(torch, self.options.dtype))
        if not bool(torch.isfinite(found).all()) and bool(torch.isfinite(tensor).all()):
            raise IncompatibleError(
                f"{name} has values up to {float(tensor.abs().max()):.3g}, which {self.options.dtype} cannot represent",
                hint="--to-opt dtype=bfloat16",
            )
        return found

    def verify(self, subject: Exported, out: Path, ctx: BuildContext) -> Sequence[Check]:
        checks = [check_weights(subject, out, self.options, self.rounded), *check_files(subject, out, self.options)]
        if all(check.passed for check in checks):
            checks.append(check_logits(subject, out, self.options, lambda: self.reload(subject, out, ctx)))
        return checks

    def reload(self, subject: Exported, out: Path, ctx: BuildContext) -> PreTrainedModel:
        import torch

        if self.options.bits is None:
            dense: PreTrainedModel = subject.model.at(out).load(dtype=torch.float32)
            return dense.to(ctx.device)  # type: ignore[arg-type, return-value, unused-ignore]
        from smollm3_mlx.library import dequantized

        model = subject.model.load(dtype=torch.float32)
        stored = StoredTensors(out)
        names = sorted({base_of(name) for name in stored})
        state = {name: dequantized(stored, name, self.options.bits, self.options.group_size) for name in names}
        unknown = model.load_state_dict(state, strict=False).unexpected_keys  # a tied head is stored once
        if unknown:
            raise ModelError(f"the model has no weight {unknown[0]!r}, which the export has")
        model.tie_weights()
        return model.to(ctx.device)  # type: ignore[arg-type, return-value, unused-ignore]


def base_of(name: str) -> str:
    """The name of the weight that a tensor of a quantized layer belongs to."""
    layer, _, last = name.rpartition(".")
    return f"{layer}.weight" if last in ("scales", "biases") else name
