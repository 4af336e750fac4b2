"""What only looks like a mode flag or a think tag, hidden from the template while it runs.

Templates search texts for `/think` with a plain `in` and cut answers at `</think>`; so a path `/data/think/x` would
flip the mode and lose its letters, and an answer that explains the tags would lose a part of itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.data.chat_template.reasoning import BLOCKS

MARK = "\U0010ffff"
"""A Unicode noncharacter, reserved for uses like this one; put in before rendering and taken out after."""
FLAG = re.compile(r"/(?:no_think|think|system_override)")
ALONE = re.compile(rf"(?<!\S)(?:{FLAG.pattern})(?!\S)")
"""A flag as a word of its own, which the template may act on."""
TAG = re.compile(r"<(/?think>)")
INSTRUCTING = ("system", "developer")


def flags(text: str) -> set[str]:
    """The flags that stand in a text as words of their own."""
    return set(ALONE.findall(text))


def guarded_text(text: str, *, whole: bool = False) -> str:
    """The text with a mark in every flag that is a part of something else; with `whole`, in every flag."""
    return FLAG.sub(lambda m: m[0] if not whole and ALONE.match(text, m.start()) else f"/{MARK}{m[0][1:]}", text)


def guarded(message: Mapping[str, Any], *, whole: bool = False) -> dict[str, Any]:
    """A copy in which flags within other text, and think tags that an answer mentions, are hidden."""
    content = message["content"]
    if not isinstance(content, str) or ("think" not in content and "/system_override" not in content):
        return dict(message)
    if message["role"] != "assistant":
        return {**message, "content": guarded_text(content, whole=whole)}
    blocks = BLOCKS.match(content)
    start = blocks.end() if blocks else 0
    return {**message, "content": content[:start] + TAG.sub(rf"<{MARK}\1", content[start:])}
