"""Reasoning traces: `<think>…</think>` at the start of an answer, or the field `reasoning_content` of its message.

A later tag is part of the answer's text (`use <think> and </think>`), not a trace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import REASONING_FIELDS
from smollm3_finetune.errors import DataError

BLOCKS = re.compile(r"(?:\s*<think>.*?</think>)+\s*|\s*<think>(?!.*</think>).*", re.DOTALL)
"""The blocks at the start of an answer. A block that is never closed was truncated, so all of it is reasoning."""
INNER = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
MISSING_OPENING_TAG = re.compile(r"(?:(?!<think>).)*?</think>[ \t]*(?:\n|\Z)", re.DOTALL)
"""A trace without its opening tag, which was in the prompt; the closing tag is at the end of its line."""
READS_FIELD = re.compile(r"reasoning_content|[.'\"](?:reasoning|thinking)\b")
"""Matches a template that reads such a field. Other templates get the reasoning as a block in the content."""


def traces(message: Mapping[str, Any]) -> list[str]:
    """Each piece of a message's reasoning, without its tags. An empty block is not reasoning."""
    pieces = [next((str(message[f]) for f in REASONING_FIELDS if message.get(f)), "")]
    blocks = BLOCKS.match(str(message.get("content") or ""))
    pieces += INNER.findall(blocks[0]) if blocks else []
    return [p.strip() for p in pieces if p.strip()]


def has_trace(message: Mapping[str, Any]) -> bool:
    """Whether a message has reasoning: a non-empty think block or a reasoning field."""
    return bool(traces(message))


def answer(message: Mapping[str, Any]) -> str:
    """The content after the reasoning."""
    content = str(message.get("content") or "")
    blocks = BLOCKS.match(content)
    return content[blocks.end() :] if blocks else content


def without_trace(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the message without its reasoning, and without an empty block in its place."""
    rest = {k: v for k, v in message.items() if k not in REASONING_FIELDS}
    return {**rest, "content": answer(message)}


def with_one_trace(message: Mapping[str, Any], template: str, where: str) -> dict[str, Any]:
    """A copy with its reasoning in a single place, the one that `template` renders, and with complete tags.

    Raises DataError if the reasoning in the content differs from the one in the field.
    """
    rest = {k: v for k, v in message.items() if k not in REASONING_FIELDS}
    content = str(message.get("content") or "")
    name = next((f for f in REASONING_FIELDS if str(message.get(f) or "").strip()), None)
    field = "" if name is None else str(message[name])
    field = field.strip().removeprefix("<think>").removesuffix("</think>").strip()
    if not field:
        lost = "</think>" in content and MISSING_OPENING_TAG.match(content)
        return {**rest, "content": f"<think>\n{content.lstrip()}" if lost else content}
    inline = "\n".join(traces(rest))
    if inline and inline != field:
        raise DataError(f"{where} has conflicting reasoning in content and {name}", hint="keep one of them")
    if inline:
        return {**rest, "content": content}
    if READS_FIELD.search(template):
        return {**rest, "content": answer(rest), REASONING_FIELDS[0]: field}
    return {**rest, "content": f"<think>\n{field}\n</think>\n{answer(rest)}"}
