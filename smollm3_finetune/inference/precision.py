"""The precision of a computation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def autocast(device: str, dtype: str) -> Iterator[None]:
    """The precision of a training step: mixed precision if `dtype` is bfloat16 or float16.

    float16 on a CPU is computed in float32, because its gradients need a scaler, which a CPU does not have.
    """
    import torch

    kind = device.partition(":")[0]
    if dtype not in ("bfloat16", "float16") or (kind == "cpu" and dtype == "float16"):
        yield
        return
    with torch.autocast(kind, getattr(torch, dtype)):
        yield
