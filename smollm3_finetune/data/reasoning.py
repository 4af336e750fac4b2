"""Reasoning traces: `<think>…</think>` before an answer, or a `reasoning_content` beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TRACE = re.compile(r"<think>(.*?)</think>\s*", re.DOTALL)


def has_trace(message: Mapping[str, Any]) -> bool:
    """Whether a message reasons: a think block with anything in it. An empty block is no reasoning."""
    if str(message.get("reasoning_content") or "").strip():
        return True
    return any(block.strip() for block in TRACE.findall(str(message.get("content") or "")))


def without_trace(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the message without its reasoning."""
    rest = {k: v for k, v in message.items() if k != "reasoning_content"}
    return {**rest, "content": TRACE.sub("", str(message.get("content") or "")).lstrip()}
