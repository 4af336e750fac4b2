"""How allocators round, and what they keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smollm3_finetune.memory.build import Plan

CUDA_SMALL, CUDA_LARGE, CUDA_ROUND = 512, 2**20, 2 * 2**20
"""torch's caching allocator rounds to 512 bytes, and blocks from 10 MiB to 2 MiB (torch 2.13)."""


def rounding(device: str) -> Callable[[int], int]:
    """The bytes that the allocator of a device takes for a tensor."""
    if device != "cuda":
        return lambda size: size
    return lambda size: -(-size // CUDA_SMALL) * CUDA_SMALL


def process_bytes(plan: Plan, device: str) -> int:
    """What a process allocates beside tensors."""
    return 0 if device != "cpu" else 20_000_000


def slack(parts: Mapping[str, int], device: str) -> int:
    """What the allocator holds beside the tensors."""
    return 0
