"""Held-out rows that are also in the training rows, exactly or nearly: their loss says nothing about new rows.

Two rows are near duplicates if the Jaccard similarity of their sequences of `SHINGLE` words ("shingles": Broder, On the
resemblance and containment of documents, 1997) is at least `NEAR`. The similarity is exact: the few held-out rows are
indexed, and the training rows are streamed past them. docs/decisions/0019-exact-overlap.md says why it is not estimated
by MinHash.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smollm3_finetune.api import Conversation

Words = tuple[str, ...]

SHINGLE = 3
"""Words of a shingle."""
NEAR = 0.7
"""The lowest Jaccard similarity of near duplicates: one of twenty words is replaced, or a fifth of a row is added."""
WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+")
"""A word; a character of Thai, Lao, Burmese, Khmer, Japanese and Chinese, which do not separate words."""
COMMON_SHARE, COMMON_AT_LEAST = 0.1, 4
"""A shingle in more than this share of the held-out rows, and in at least so many, belongs to a prompt template."""


def words_of(conversation: Conversation) -> list[str]:
    """The words that are compared: of questions and answers, without system messages, which many rows share.

    Case, punctuation, white space and Unicode forms make no difference.
    """
    text = conversation.text
    if text is None:
        text = "\n".join(_said(message) for message in conversation.messages if message["role"] != "system")
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _said(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    shown = json.dumps(calls, ensure_ascii=False, sort_keys=True, default=str) if calls else ""
    return f"{message.get('content') or ''} {shown}"


def shingles(words: Sequence[str]) -> set[Words]:
    """The sequences of `SHINGLE` words; all words if they are fewer."""
    if len(words) <= SHINGLE:
        return {tuple(words)} if words else set()
    return set(zip(*(words[i:] for i in range(SHINGLE)), strict=False))


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Held-out rows, by index, that are also in the training rows: the location of the training row."""

    exact: Mapping[int, str] = field(default_factory=dict)
    near: Mapping[int, str] = field(default_factory=dict)

    def rows(self) -> list[int]:
        return sorted({*self.exact, *self.near})

    def joined(self, other: Overlap) -> Overlap:
        """The rows of both; a row that is an exact copy in one of them is not a near duplicate."""
        exact = {**other.exact, **self.exact}
        near = {row: where for row, where in {**other.near, **self.near}.items() if row not in exact}
        return Overlap(exact=exact, near=near)


class OverlapIndex:
    """The held-out rows, for a comparison with each training row."""

    def __init__(self, held_out: Sequence[Conversation]) -> None:
        self._copies: dict[bytes, list[int]] = defaultdict(list)
        found = []
        for row, conversation in enumerate(held_out):
            words = words_of(conversation)
            found.append(shingles(words))
            if words:
                self._copies[_digest(words)].append(row)
        known = Counter(shingle for row in found for shingle in row)
        most = max(COMMON_AT_LEAST - 1, int(COMMON_SHARE * len(found)))
        self.common = frozenset(shingle for shingle, rows in known.items() if rows > most)
        self.rare = known.keys() - self.common
        self.sizes = [len(row - self.common) for row in found]
        self._rows: dict[Words, list[int]] = defaultdict(list)
        for row, of_row in enumerate(found):
            for shingle in of_row - self.common:
                self._rows[shingle].append(row)

    def compare(self, training: Iterable[tuple[str, Conversation]]) -> Overlap:
        """The held-out rows that are among the `training` rows, which are (location, conversation)."""
        exact: dict[int, str] = {}
        near: dict[int, str] = {}
        for where, conversation in training:
            words = words_of(conversation)
            if not words:
                continue
            for row in self._copies.get(_digest(words), ()):
                exact.setdefault(row, where)
            for row in self._near(shingles(words)):
                near.setdefault(row, where)
        return Overlap(exact=exact, near={row: where for row, where in near.items() if row not in exact})

    def _near(self, of_training: set[Words]) -> list[int]:
        """The held-out rows whose similarity to a training row is at least `NEAR`."""
        known = of_training & self.rare
        size = len(of_training) - len(of_training & self.common)
        if not known or len(known) < NEAR * size:  # most rows end here: the similarity cannot exceed this share
            return []
        shared = Counter(row for shingle in known for row in self._rows[shingle])
        return [row for row, both in shared.items() if both >= NEAR * (self.sizes[row] + size - both)]


def _digest(words: Sequence[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=16).digest()
