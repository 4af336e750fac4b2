"""Reasoning traces: `<think>…</think>` at the start of an answer, or the field `reasoning_content` of its message.

Whatever form a row has, its trace is put where the template reads it. A later tag is part of the answer's text (`use
<think> and </think>`), not a trace.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.api import REASONING_FIELDS
from smollm3_finetune.errors import DataError

BLOCKS = re.compile(r"(?:\s*<think>.*?</think>)+\s*|\s*<think>(?!.*</think>).*", re.DOTALL)
"""The blocks at the start of an answer. A block that is never closed was truncated, so all of it is reasoning."""
INNER = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
MISSING_OPENING_TAG = re.compile(r"(?:(?!<think>).)*?</think>[ \t]*(?:\n|\Z)", re.DOTALL)
"""A trace without its opening tag, which was in the prompt; the closing tag is at the end of its line."""
LONE_CLOSING_TAG = re.compile(r"((?:(?!</?think>).)*)</think>((?:(?!</?think>).)*)", re.DOTALL)
QUOTES = "`'\"“”‘’«»([{"
"""Characters beside a tag that is mentioned, not used."""


@dataclass(frozen=True)
class TracePlace:
    """Where a template reads a trace."""

    field: str | None = None
    """The field of a message that it renders."""
    inline: bool = True
    """Whether a block at the start of the content is rendered as the field is, or there is no such field."""


def trace_place(template: str, render: Callable[[list[dict[str, Any]]], str]) -> TracePlace:
    """Where a template reads a trace, found by rendering one in a field and one in the content."""
    trace, words = "zq?qzt", "zq?qzw"

    def shown(turn: dict[str, Any]) -> str:
        try:
            return render([{"role": "user", "content": "a"}, {"role": "assistant", **turn}])
        except DataError:
            return ""

    for name in _fields_in(template):
        if trace in (by_field := shown({"content": words, name: trace})):
            inline = shown({"content": f"<think>\n{trace}\n</think>\n\n{words}"})
            return TracePlace(field=name, inline="".join(inline.split()) == "".join(by_field.split()))
    return TracePlace()


def _fields_in(template: str) -> list[str]:
    """The names of reasoning fields that a template mentions, as an attribute or in quotes."""
    return [f for f in REASONING_FIELDS if re.search(rf"[.'\"]{f}\b", template)]


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


def with_one_trace(message: Mapping[str, Any], place: TracePlace, where: str) -> dict[str, Any]:
    """A copy with its reasoning in a single place, the one that the template renders, and with complete tags.

    Raises DataError if the reasoning in the content differs from the one in the field, and if a closing tag without an
    opening one could be either the end of a trace or a mention.
    """
    rest = {k: v for k, v in message.items() if k not in REASONING_FIELDS}
    name = next((f for f in REASONING_FIELDS if str(message.get(f) or "").strip()), None)
    field = "" if name is None else str(message[name])
    field = field.strip().removeprefix("<think>").removesuffix("</think>").strip()
    if not field and "</think>" in str(rest.get("content") or ""):
        rest["content"] = _opened(str(rest["content"]), where)
    inline = "\n".join(traces(rest))
    if field and inline and inline != field:
        raise DataError(f"{where} has conflicting reasoning in content and {name}", hint="keep one of them")
    content = str(rest.get("content") or "")
    if place.field is None or place.inline:
        if inline or not field:
            return {**rest, "content": content}
        if place.field is None:
            return {**rest, "content": f"<think>\n{field}\n</think>\n{answer(rest)}"}
    if not BLOCKS.match(content) and not field:
        return {**rest, "content": content}
    trace = {place.field: field or inline} if field or inline else {}
    return {**rest, "content": answer(rest), **trace}


def _opened(content: str, where: str) -> str:
    """The content with the opening tag that its trace lost, which was in the prompt."""
    if MISSING_OPENING_TAG.match(content):
        return f"<think>\n{content.lstrip()}"
    lone = LONE_CLOSING_TAG.fullmatch(content)
    if lone is None:
        return content
    before, after = lone[1], lone[2]
    if (before and before[-1] in QUOTES) or (after and after[0] in QUOTES):
        return content
    if before.strip() and before[-1] in " \t":
        raise DataError(
            f"{where} has </think> without <think>, which may end its reasoning or be a mention of the tag",
            hint="write reasoning as <think>…</think>, or put a tag that is mentioned in backticks",
        )
    return f"<think>\n{before.strip()}\n</think>\n{after.lstrip()}"
