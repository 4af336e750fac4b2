"""Conversations as one text, in the form of Anthropic's HH-RLHF: turns after `Human:` and `Assistant:`."""

from __future__ import annotations

import re
from typing import Any

from smollm3_finetune.builtin.formatters.turns import Turn, text_turn

BEGIN = re.compile(r"\s*Human:")
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: Any) -> bool:
    """Whether a value is text that begins with a turn of `Human:` and has one of `Assistant:`."""
    return isinstance(value, str) and BEGIN.match(value) is not None and "\n\nAssistant:" in value


def transcript(text: str, column: str) -> tuple[list[Turn], bool]:
    """The turns of a transcript, and whether they alternate and end with an answer.

    Consecutive turns of one speaker are joined, so that every template accepts them.
    """
    _, *parts = TURN.split(text)
    said: list[tuple[str, list[str]]] = []
    for who, words in zip(parts[::2], parts[1::2], strict=True):
        if not said or said[-1][0] != who:
            said.append((who, []))
        said[-1][1].append(words.strip())
    turns = [
        text_turn(ROLES[who], "\n\n".join(words), f"{column} (turn {n})") for n, (who, words) in enumerate(said, 1)
    ]
    return turns, len(parts) == 2 * len(said) and turns[-1].role == "assistant"


def asked(text: str, column: str) -> list[Turn] | None:
    """The turns of a prompt that is a transcript and ends with an empty `Assistant:`; None for other prompts."""
    if not is_transcript(text):
        return None
    turns, alternate = transcript(text, column)
    return turns[:-1] if alternate and turns[-1].empty else None
