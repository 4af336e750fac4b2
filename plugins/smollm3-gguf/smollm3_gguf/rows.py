"""The order of the rows of query and key projections in files of Llama-shaped models.

transformers rotates dimension i of a head together with dimension i + half; llama.cpp rotates neighbors, 2i and 2i + 1.
So the rows of each head are stored interleaved, in every layer: llama.cpp does not know which layers have RoPE when it
reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def heads_of(name: str, config: Mapping[str, Any]) -> int:
    """How many heads the rows of a tensor of a file belong to, if their order is interleaved; otherwise 0."""
    if name.endswith((".attn_q.weight", ".attn_q.bias")):
        return int(config["num_attention_heads"])
    if name.endswith((".attn_k.weight", ".attn_k.bias")):
        return int(config["num_key_value_heads"])
    return 0


def interleaved(rows: int, heads: int) -> np.ndarray[Any, Any]:
    """The row of transformers' weight that each row of the file holds."""
    import numpy as np

    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)


def restored(rows: int, heads: int) -> np.ndarray[Any, Any]:
    """The row of the file that each row of transformers' weight comes from.

    Computed on its own, not as the inverse of `interleaved`, so that a mistake in one of them does not hide.
    """
    import numpy as np

    width = rows // heads
    half = width // 2
    row = np.arange(rows)
    head, within = row // width, row % width
    order: np.ndarray[Any, Any] = head * width + 2 * (within % half) + within // half
    return order
