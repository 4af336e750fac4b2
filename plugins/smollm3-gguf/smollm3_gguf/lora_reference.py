"""What PEFT computes with a saved adapter: the reference for its file."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from smollm3_finetune.api import BuildContext, ModelSource
from smollm3_gguf.llama import row_logits


def peft_logits(base: ModelSource, adapter: Path, prompts: Sequence[list[int]], ctx: BuildContext) -> list[Tensor]:
    """Logits of the base with the adapter that PEFT restores, in float32."""
    from peft import PeftModel

    dense = base.load(dtype=torch.float32)
    with _only_plain_layers():
        model = PeftModel.from_pretrained(dense, str(adapter), torch_device="cpu").to(ctx.device).eval()
    return [row_logits(model, p) for p in prompts]


@contextlib.contextmanager
def _only_plain_layers() -> Iterator[None]:
    """Inside the context, PEFT imports no library of quantized layers, and its warnings are not shown."""
    parts = [module for name, module in sys.modules.items() if name.startswith("peft.")]
    checks = [
        (part, name, check)
        for part in parts
        for name, check in vars(part).items()
        if name.startswith("is_") and name.endswith("_available")
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for part, name, _ in checks:
                setattr(part, name, lambda: False)
            yield
        finally:
            for part, name, check in checks:
                setattr(part, name, check)
