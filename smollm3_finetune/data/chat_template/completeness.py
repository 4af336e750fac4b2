"""Checks that a template renders every part of a conversation, because an omitted part would be lost silently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smollm3_finetune.data.chat_template.escaping import SYSTEM_ROLES
from smollm3_finetune.data.chat_template.reasoning import answer
from smollm3_finetune.errors import DataError

Render = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], str]
TOOL_LISTS = ("tools", "xml_tools", "python_tools")
HINT = "use a template that renders it: --set data.template=FILE.jinja"


TOOL_AS_USER = "tool answer rendered as a user message"


def check_complete(
    text: str, messages: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any], render: Render
) -> list[str]:
    """Raises DataError if `text`, the rendering of a conversation, lacks a part of the conversation; returns notes.

    Plain turns are searched for in the text. If there are other parts, each part is marked with a unique word and the
    conversation is rendered again: every mark must appear. Templates may render a tool answer as a user message, as
    SmolLM3's does: that is their convention, in training and in use, and it is noted.
    """
    lists = [k for k in TOOL_LISTS if kwargs.get(k)]
    special = any(m.get("tool_calls") or m["role"] == "tool" for m in messages)
    special = special or any(m["role"] in SYSTEM_ROLES for m in messages[1:])
    if not (special or lists or kwargs.get("custom_instructions")) and all(_shown(m, text) for m in messages):
        return []
    marks = _Marks()
    marked = [_marked(m, i, marks) for i, m in enumerate(messages)]
    arguments = dict(kwargs)
    if isinstance(kwargs.get("custom_instructions"), str):
        arguments["custom_instructions"] += " " + marks.new("the custom_instructions")
    for key in lists:
        if key == "xml_tools" and kwargs[key] is kwargs.get("tools"):
            arguments[key] = arguments["tools"]  # one list under two names; the template reads one of them
        else:
            arguments[key] = [_marked_tool(tool, marks.new(f"the {key}")) for tool in kwargs[key]]
    marks.check(render(marked, arguments))
    if any(m["role"] == "tool" for m in messages):
        as_user = [{**m, "role": "user"} if m["role"] == "tool" else m for m in messages]
        if render(as_user, kwargs) == text:
            return [TOOL_AS_USER]
    return []


class _Marks:
    """Unique words, each with a description of the part that it marks."""

    def __init__(self) -> None:
        self.what: list[str] = []

    def new(self, what: str) -> str:
        self.what.append(what)
        return f"zq{len(self.what) - 1}qz"

    def check(self, text: str) -> None:
        for n, what in enumerate(self.what):
            if f"zq{n}qz" not in text:
                raise DataError(f"the chat template drops {what}", hint=HINT)


def _shown(message: Mapping[str, Any], text: str) -> bool:
    content = answer(message) if message["role"] == "assistant" else message["content"]
    return not isinstance(content, str) or content.strip() in text


def _marked(message: Mapping[str, Any], i: int, marks: _Marks) -> dict[str, Any]:
    marked = dict(message)
    if isinstance(message["content"], str) and message["content"].strip():
        marked["content"] += " " + marks.new(f"message {i}, role {message['role']!r}")
    if message.get("tool_calls"):
        marked["tool_calls"] = [_marked_call(c, f"the tool calls of message {i}", marks) for c in message["tool_calls"]]
    return marked


def _marked_call(call: Mapping[str, Any], what: str, marks: _Marks) -> dict[str, Any]:
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _marked_call(call["function"], what, marks)}
    arguments = call.get("arguments") or {}
    mark = marks.new(what)
    marked = {**arguments, mark: mark} if isinstance(arguments, Mapping) else f"{arguments} {mark}"
    return {**call, "name": f"{call.get('name')}{marks.new(what)}", "arguments": marked}


def _marked_tool(tool: Any, mark: str) -> Any:
    if not isinstance(tool, Mapping):
        return f"{tool} {mark}"
    if isinstance(tool.get("function"), Mapping):
        return {**tool, "function": _marked_tool(tool["function"], mark)}
    return {**tool, "name": f"{tool.get('name', '')}{mark}"}
