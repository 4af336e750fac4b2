"""The number format of a computation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def autocast(device: str, dtype: str) -> Iterator[None]:
    """Computes as training steps do: in mixed precision if `dtype` is half as wide as float32.

    float16 on a CPU is computed in float32, since its gradients need a scaler, which a CPU does not have.
    """
    import torch

    kind = device.partition(":")[0]
    if dtype not in ("bfloat16", "float16") or (kind == "cpu" and dtype == "float16"):
        yield
        return
    with torch.autocast(kind, getattr(torch, dtype)):
        yield
