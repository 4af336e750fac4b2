"""The held-out split, chosen by each row's content so that it is stable when rows are added or reordered."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from smollm3_finetune.api import Conversation
from smollm3_finetune.errors import DataError


def position(conversation: Conversation, seed: int) -> float:
    """The position of a conversation in [0, 1), determined only by its content, without its label, and the seed."""
    about = {  # without empty fields, so that a field added later moves only rows that use it
        f.name: value
        for f in dataclasses.fields(conversation)
        if f.name not in ("desirable", "unread", "lacks")
        and (value := getattr(conversation, f.name)) not in (None, (), {})
    }
    text = json.dumps([seed, about], sort_keys=True, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


@dataclass
class SplitThreshold:
    """The position below which rows are held out, computed while rows are streamed.

    With a fraction above 0 and two or more distinct rows, both sides get at least one. Equal rows are on the same side,
    so no held-out row is trained on.
    """

    fraction: float
    lowest: float = 2.0
    second: float = 2.0
    highest: float = -1.0

    def observe(self, place: float) -> None:
        if place < self.lowest:
            self.lowest, self.second = place, self.lowest
        elif self.lowest < place < self.second:
            self.second = place
        self.highest = max(self.highest, place)

    def value(self) -> float:
        """The threshold. Raises DataError if there are too few distinct rows to hold any out."""
        if self.fraction == 0:
            return 0.0
        if self.second > 1:
            raise DataError("there is only one distinct row, so no row can be held out", hint="--set data.held_out=0")
        return min(max(self.fraction, self.second), self.highest)  # the lowest row is held out, the highest is not
