"""Answering many prompts in batches of similar lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from smollm3_finetune.inference.decoding import Answer, Decoder
from smollm3_finetune.inference.sampling import Sampling

WINDOW = 16
"""Batches that are sorted by length together: more waste less padding, and answers are written later."""
MOST_DIFFERENCE = 0.1
"""Relative difference of logits above which padding changes a model's answers. A pad token that is read as text moves
them by more than half; 8-bit activations move them by a few percent."""
PADDING, PROBED = 7, 16
"""Pad tokens and prompt tokens of the check."""


@dataclass(frozen=True)
class Batched:
    """How prompts are answered."""

    decoder: Decoder
    prompts: Sequence[Sequence[int]]
    rooms: Sequence[int]
    """The limit of new tokens for each prompt."""
    batch_size: int
    sampling: Sampling
    count: int = 1
    """Answers to each prompt."""
    seed: int = 0
    padded: bool = True
    """Prompts of different lengths share a batch."""

    def batches(self) -> list[list[int]]:
        """The indices of the prompts of each batch. They depend on the prompts and the batch size alone."""
        found = []
        for start in range(0, len(self.prompts), WINDOW * self.batch_size):
            window = range(start, min(start + WINDOW * self.batch_size, len(self.prompts)))

            def key(i: int) -> tuple[int, int]:
                return self.rooms[i], 0 if self.padded else len(self.prompts[i])

            order = sorted(window, key=lambda i: (*key(i), len(self.prompts[i]), i))
            for _, group in groupby(order, key):
                alike = list(group)
                found += [alike[n : n + self.batch_size] for n in range(0, len(alike), self.batch_size)]
        return found

    def answers(self, done: Collection[int] = ()) -> Iterator[dict[int, list[Answer]]]:
        """The answers of each batch by the index of their prompt; batches whose prompts are all `done` are left out.

        Each batch has a seed of its own, so the answers do not depend on what was done before.
        """
        import transformers

        for batch in self.batches():
            if all(i in done for i in batch):
                continue
            digest = hashlib.sha256(f"{self.seed} {batch[0]}".encode()).digest()
            transformers.set_seed(int.from_bytes(digest[:4], "big"))
            found = self.decoder.answers(
                [self.prompts[i] for i in batch],
                max_new_tokens=self.rooms[batch[0]],
                sampling=self.sampling,
                count=self.count,
            )
            yield dict(zip(batch, found, strict=True))


def padding_changes_answers(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> bool:
    """Whether a model computes other logits for a prompt if it is padded on the left, beside a longer one."""
    longest = max(prompts, key=len)
    size = min(len(longest), PROBED)
    short, long = list(longest[:size]), list((list(longest) * (PADDING + 1))[: size + PADDING])
    alone, beside = decoder.next_logits([short])[0], decoder.next_logits([short, long])[0]
    spread: Any = (alone - alone.mean()).norm()
    return bool((alone - beside).norm() > MOST_DIFFERENCE * spread)
