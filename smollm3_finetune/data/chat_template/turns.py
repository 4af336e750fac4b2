"""A conversation before rendering, as text, and as encoded turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smollm3_finetune.api import Conversation


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A conversation in its reasoning mode."""

    messages: list[dict[str, Any]]
    kwargs: dict[str, Any]
    """Arguments of the template, including tools and mode."""
    supervised: list[int]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text."""

    text: str
    spans: list[tuple[int, int]]
    """The (start, end) characters of the supervised parts."""
    turns: list[int]
    """The message of each span."""
    rewritten: list[int]
    """Messages to train on that later messages change; each can be an example of its own."""
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The turns of a conversation that was encoded."""

    conversation: Conversation
    trained: list[int]
    """Messages with supervised tokens."""
    rewritten: list[int]
    """As in `Rendered`."""
