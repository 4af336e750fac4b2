"""Text of models and rows on a terminal."""

from __future__ import annotations

import unicodedata


def visible(text: str) -> str:
    """The text with control and direction characters, which a terminal would interpret, as escapes."""

    def shown(c: str) -> str:
        if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            return c
        return c.encode("unicode_escape", "surrogatepass").decode("ascii")

    return "".join(map(shown, text))
