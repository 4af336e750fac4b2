"""Reasoning traces: `<think>…</think>` at the start of an answer, or a `reasoning_content` beside it.

A tag further on is one that the answer mentions (`use <think> and </think>`), not a trace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import REASONING_FIELDS
from smollm3_finetune.errors import DataError

BLOCKS = re.compile(r"(?:\s*<think>.*?</think>)+\s*|\s*<think>(?!.*</think>).*", re.DOTALL)
"""The blocks that an answer begins with; one that is never closed was cut off, and is reasoning to its end."""
INNER = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
UNOPENED = re.compile(r"(?:(?!<think>).)*?</think>[ \t]*(?:\n|\Z)", re.DOTALL)
"""A trace whose opening tag stood in the prompt and was lost; the closing one ends its line."""
"""The names that transformers takes for one another; the first is ours."""
READS_FIELD = re.compile(r"reasoning_content|[.'\"](?:reasoning|thinking)\b")
"""What a template that renders such a field has in it; others get the reasoning as a block in the content."""


def traces(message: Mapping[str, Any]) -> list[str]:
    """Each piece of a message's reasoning, without its tags. An empty block is no reasoning."""
    pieces = [next((str(message[f]) for f in REASONING_FIELDS if message.get(f)), "")]
    blocks = BLOCKS.match(str(message.get("content") or ""))
    pieces += INNER.findall(blocks[0]) if blocks else []
    return [p.strip() for p in pieces if p.strip()]


def has_trace(message: Mapping[str, Any]) -> bool:
    """Whether a message reasons: a think block with anything in it, or a field beside the content."""
    return bool(traces(message))


def answer(message: Mapping[str, Any]) -> str:
    """The content after the reasoning."""
    content = str(message.get("content") or "")
    blocks = BLOCKS.match(content)
    return content[blocks.end() :] if blocks else content


def without_trace(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the message without its reasoning, nor an empty block in its place."""
    rest = {k: v for k, v in message.items() if k not in REASONING_FIELDS}
    return {**rest, "content": answer(message)}


def with_one_trace(message: Mapping[str, Any], template: str, where: str) -> dict[str, Any]:
    """A copy whose reasoning stands in one place, where `template` shows it, between whole tags.

    Raises DataError where the content has another reasoning than the field beside it.
    """
    rest = {k: v for k, v in message.items() if k not in REASONING_FIELDS}
    content = str(message.get("content") or "")
    field = next((str(message[f]) for f in REASONING_FIELDS if str(message.get(f) or "").strip()), "")
    field = field.strip().removeprefix("<think>").removesuffix("</think>").strip()
    if not field:
        lost = "</think>" in content and UNOPENED.match(content)
        return {**rest, "content": f"<think>\n{content.lstrip()}" if lost else content}
    inline = "\n".join(traces(rest))
    if inline and inline != field:
        raise DataError(f"{where} has two reasonings, one in its content and another beside it", hint="keep one")
    if inline:
        return {**rest, "content": content}
    if READS_FIELD.search(template):
        return {**rest, "content": answer(rest), REASONING_FIELDS[0]: field}
    return {**rest, "content": f"<think>\n{field}\n</think>\n{answer(rest)}"}
