"""The mark in a generated model card, which shows later whether a user edited the card.

An edited card is never overwritten, neither in its directory nor on the Hub.
"""

from __future__ import annotations

import hashlib
import re

PLACE = "<!-- mark -->"
"""Where the mark goes in a card that is being written."""
MARK = re.compile(r"<!-- Written by smollm3-finetune(?: \((?P<digest>[0-9a-f]{12})\)|\.)[^\n]*-->")


def marked(text: str) -> str:
    """A card that was just generated, with a mark in place of `PLACE`: it shows later whether the card was edited."""
    return text.replace(
        PLACE, f"<!-- Written by smollm3-finetune ({_digest(text)}). If you edit the card, it is kept. -->"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def is_generated(text: str) -> bool:
    """Whether a card was written by this package and not edited since."""
    found = MARK.search(text)
    if found is None:
        return False
    if found["digest"] is None:  # of an earlier version, which said that removing the mark keeps the card
        return True
    return _digest(text.replace(found[0], PLACE)) == found["digest"]
