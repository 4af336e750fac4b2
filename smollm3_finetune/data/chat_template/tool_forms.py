"""The forms in which templates expect tool calls: arguments as an object or as JSON text, empty content or null.

Rows have one form after formatting, an object and empty content. Some templates splice the arguments in as text, and
some show calls only if the content is null (DeepSeek V3, R1). If a form is refused or drops the calls, the next is
tried.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from smollm3_finetune.errors import DataError

FORMS = ((False, False), (False, True), (True, False), (True, True))
"""(arguments as JSON text, null instead of empty content), in the order in which they are tried."""


def forms(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages in each form that differs from the ones before it; without tool calls there is one."""
    if not any(m.get("tool_calls") for m in messages):
        yield messages
        return
    empty = any(m.get("tool_calls") and m["content"] == "" for m in messages)
    for text, null in FORMS:
        if empty or not null:
            yield [_formed(m, text, null) if m.get("tool_calls") else m for m in messages]


def _formed(message: dict[str, Any], text: bool, null: bool) -> dict[str, Any]:
    formed = dict(message)
    if null and message["content"] == "":
        formed["content"] = None
    if text:
        formed["tool_calls"] = [_as_text(call) for call in message["tool_calls"]]
    return formed


def _as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _as_text(call["function"])}
    arguments = call.get("arguments")
    return (
        {**call, "arguments": json.dumps(arguments, ensure_ascii=False)} if isinstance(arguments, Mapping) else {**call}
    )


def check_json(messages: Sequence[Mapping[str, Any]], text: str) -> None:
    """Raises DataError if the template writes the arguments of a call as a Python dictionary, with single quotes."""
    for i, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            function = call.get("function")
            arguments = (function if isinstance(function, Mapping) else call).get("arguments")
            if not isinstance(arguments, Mapping) or not arguments:
                continue
            if "'" in str(arguments) and str(arguments) in text:
                raise DataError(
                    f"the chat template writes the arguments of a tool call of message {i} as Python, not as JSON",
                    hint="use a template that applies tojson: --set data.template=FILE.jinja",
                )
