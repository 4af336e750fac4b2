"""The number format of a computation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers import TrainingArguments


@contextlib.contextmanager
def computing(args: TrainingArguments) -> Iterator[None]:
    """Computes as the Trainer does in its steps: mixed precision where the run has it."""
    import torch

    if not (args.bf16 or args.fp16):
        yield
        return
    with torch.autocast(args.device.type, torch.bfloat16 if args.bf16 else torch.float16):
        yield
