"""Hides text that only looks like a mode flag or a think tag from the template.

Templates search for `/think` with a plain `in` and split answers at `</think>`. So a path `/data/think/x` would
switch the mode and lose characters, and an answer that explains the tags would lose a part of its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.data.chat_template.reasoning import BLOCKS

MARK = "\U0010ffff"
"""A Unicode noncharacter, reserved for internal use; inserted before rendering and removed afterwards."""
FLAG = re.compile(r"/(?:no_think|think|system_override)")
FLAG_WORD = re.compile(rf"(?<!\S)(?:{FLAG.pattern})(?!\S)")
"""A flag as a separate word, which the template may act on."""
TAG = re.compile(r"<(/?think>)")
SYSTEM_ROLES = ("system", "developer")


def flags(text: str) -> set[str]:
    """The flags that are separate words in a text."""
    return set(FLAG_WORD.findall(text))


def escaped_text(text: str, *, all_flags: bool = False) -> str:
    """The text with a mark in every flag that is part of another word; with `all_flags`, in every flag."""

    def escape(flag: re.Match[str]) -> str:
        keep = not all_flags and FLAG_WORD.match(text, flag.start())
        return flag[0] if keep else f"/{MARK}{flag[0][1:]}"

    return FLAG.sub(escape, text)


def escaped(message: Mapping[str, Any], *, all_flags: bool = False) -> dict[str, Any]:
    """A copy in which flags inside other words, and think tags that an answer mentions, are hidden."""
    content = message["content"]
    if not isinstance(content, str) or ("think" not in content and "/system_override" not in content):
        return dict(message)
    if message["role"] != "assistant":
        return {**message, "content": escaped_text(content, all_flags=all_flags)}
    blocks = BLOCKS.match(content)
    start = blocks.end() if blocks else 0
    return {**message, "content": content[:start] + TAG.sub(rf"<{MARK}\1", content[start:])}
