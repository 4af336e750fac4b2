"""Decide whether a checkpoint stores each zero point minus one, by its numbers if possible.

Format v1 stores zero points minus one, v2 stores them as they are. Some tools convert a checkpoint to v2 and keep the
label v1; every weight is then off by one step. A symmetric checkpoint has one zero point, the middle of the code range,
so its numbers show the format. Those of an asymmetric checkpoint do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from smollm3_gptq.checkpoint import Checkpoint


def with_format_of_zeros(checkpoint: Checkpoint, ref: str, say: Callable[[str], None]) -> Checkpoint:
    """The checkpoint with the format that its zero points have. A line names a wrong label, or one that is not checked.

    Raises ModelError if a layer is incomplete.
    """
    if checkpoint.description.get("sym", True) is False:
        if checkpoint.zeros_less_one:
            say(
                f"note: {ref} is asymmetric and labeled as format v1, so its zero points are read as stored minus one; "
                "its numbers cannot confirm this. If it answers badly, set checkpoint_format to gptq_v2 in its config"
            )
        return checkpoint
    less_one = _stored_less_one(checkpoint)
    if less_one is None or less_one == checkpoint.zeros_less_one:
        return checkpoint
    label, found = ("v1", "v2") if checkpoint.zeros_less_one else ("v2", "v1")
    say(f"note: {ref} is labeled as format {label}, but its zero points are those of {found}; it is read as {found}")
    return dataclasses.replace(checkpoint, zeros_less_one=less_one)


def _stored_less_one(checkpoint: Checkpoint) -> bool | None:
    """Whether all zero points are one below the middle of the code range; None if they show no format."""
    from smollm3_gptq.packing import unpack_words

    seen = set()
    for name, layer in checkpoint.layers().items():
        words = checkpoint.stored[f"{name}.qzeros"]
        zeros = unpack_words(words.T.contiguous(), layer.bits)[: layer.out_features]
        seen |= {value - (1 << (layer.bits - 1)) for value in zeros.unique().tolist()}
    return {frozenset({-1}): True, frozenset({0}): False}.get(frozenset(seen))
