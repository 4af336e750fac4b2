"""Which words of two texts differ."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

MOST_WORDS = 400
"""Words of each text that are compared: the comparison takes time with their product."""

Pieces = list[tuple[bool, str]]
"""(changed, text)"""


@dataclass(frozen=True)
class WordDiff:
    before: Pieces
    after: Pieces
    rest: tuple[str, str] = ("", "")
    """The ends of both texts that were not compared."""

    @property
    def equal(self) -> bool:
        return not any(changed for changed, _ in (*self.before, *self.after)) and self.rest[0] == self.rest[1]


def word_diff(before: str, after: str) -> WordDiff:
    """The words that only one text has. Space belongs to the word before it and is not compared."""
    (old, old_rest), (new, new_rest) = _words(before), _words(after)
    matcher = difflib.SequenceMatcher(None, [w.strip() for w in old], [w.strip() for w in new], autojunk=False)
    found: tuple[Pieces, Pieces] = ([], [])
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        for pieces, words in ((found[0], old[i:i_end]), (found[1], new[j:j_end])):
            if words:
                pieces.append((tag != "equal", "".join(words)))
    return WordDiff(*found, (old_rest, new_rest))


def _words(text: str) -> tuple[list[str], str]:
    """Words, each with the space that follows it, and the text behind the last word that is compared."""
    words = re.findall(r"\s*(?:\w+|[^\w\s])\s*|\s+", text)
    return words[:MOST_WORDS], "".join(words[MOST_WORDS:])
