"""Formatters for rows of messages and for alpaca rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Conversation, NoOptions

ROLES = ("system", "user", "assistant", "tool")


def _text(content: Any, where: str) -> str:
    """A message's text: a string, or the text of its typed parts (`text` or `value`) joined."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text":
                raise ValueError(f"{where}: only text parts are supported, found {part!r}")
            text = part.get("text", part.get("value"))
            if not isinstance(text, str):
                raise ValueError(f"{where}: a text part has no 'text'")
            parts.append(text)
        return "".join(parts)
    raise ValueError(f"{where}: content must be text or a list of parts, found {type(content).__name__}")


class MessagesFormatter:
    """`{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`

    Optional columns: `tools` (a list of schemas) and `chat_template_kwargs` (such as `{"enable_thinking": false}`).
    """

    def __init__(self, options: NoOptions) -> None:
        pass

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ValueError("'messages' must be a list with at least one message")
        out = []
        for i, message in enumerate(messages):
            where = f"messages[{i}]"
            if not isinstance(message, Mapping):
                raise ValueError(f"{where} must be an object with role and content")
            role = message.get("role")
            if role not in ROLES:
                raise ValueError(f"{where}: role must be one of {', '.join(ROLES)}, found {role!r}")
            clean: dict[str, Any] = {"role": role}
            calls = message.get("tool_calls")
            if calls:
                clean["tool_calls"] = calls
            if message.get("content") is not None or not calls:
                clean["content"] = _text(message.get("content"), where)
            else:
                clean["content"] = ""
            for key in ("name", "tool_call_id", "reasoning_content"):
                if message.get(key) is not None:
                    clean[key] = message[key]
            out.append(clean)
        if not any(m["role"] == "assistant" for m in out):
            raise ValueError("there is no assistant message to learn from")
        return Conversation(
            messages=tuple(out),
            tools=tuple(row.get("tools") or ()),
            template_kwargs=dict(row.get("chat_template_kwargs") or {}),
        )


class AlpacaFormatter:
    """`{"instruction": "…", "input": "…", "output": "…"}`; `input` and `system` may be missing or empty."""

    def __init__(self, options: NoOptions) -> None:
        pass

    def __call__(self, row: Mapping[str, Any]) -> Conversation:
        for key in ("instruction", "output"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise ValueError(f"{key!r} must be text that is not empty")
        extra = row.get("input") or ""
        if not isinstance(extra, str):
            raise ValueError("'input' must be text")
        prompt = row["instruction"] + (f"\n\n{extra}" if extra.strip() else "")
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["output"]}]
        if isinstance(row.get("system"), str) and row["system"].strip():
            messages.insert(0, {"role": "system", "content": row["system"]})
        return Conversation(messages=tuple(messages))
