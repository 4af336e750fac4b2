"""A held-out set chosen by each row's content, so that it stays the same when rows are added or reordered."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

from smollm3_finetune.api import Conversation
from smollm3_finetune.errors import DataError


def position(conversation: Conversation, seed: int) -> float:
    """Where a conversation falls in [0, 1), from its content and the seed alone."""
    text = json.dumps([seed, dataclasses.asdict(conversation)], sort_keys=True, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split(
    conversations: Sequence[Conversation], fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held-out). With a fraction above 0 and two or more distinct rows, both have at least one.

    Equal rows fall on the same side, so nothing held out is trained on.
    """
    if fraction == 0:
        return list(conversations), []
    placed = [(position(c, seed), c) for c in conversations]
    positions = sorted({p for p, _ in placed})
    if len(positions) < 2:
        raise DataError("there is only one distinct row, too few to hold any out", hint="--set data.held_out=0")
    border = min(max(fraction, positions[1]), positions[-1])  # `<`: at least the lowest out, the highest in
    return [c for p, c in placed if p >= border], [c for p, c in placed if p < border]
