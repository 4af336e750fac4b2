"""Lists of messages, converted to the form that chat templates take, each with its path and its weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.api import REASONING_FIELDS
from smollm3_finetune.builtin.formatters.claims import looks_like_list
from smollm3_finetune.builtin.formatters.content import content_and_reasoning, optional_text
from smollm3_finetune.builtin.formatters.roles import CALL, role_of
from smollm3_finetune.builtin.formatters.tools import parse_json, tool_calls
from smollm3_finetune.files.json import has_value, json_type


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of a row."""

    message: dict[str, Any]
    where: str
    """The path of the message in the row: `messages[2]`."""
    weight: int | None = None
    """0 or 1 if the row sets it."""
    unread: tuple[str, ...] = ()
    """Keys of the message that have a value and are not read, such as `messages[].date`."""

    @property
    def role(self) -> str:
        return str(self.message["role"])

    @property
    def empty(self) -> bool:
        """Whether the message has neither text nor tool calls; reasoning alone is not an answer."""
        return not self.message["content"].strip() and not self.message.get("tool_calls")


def text_turn(role: str, text: str, where: str) -> Turn:
    return Turn(message={"role": role, "content": text}, where=where)


def read_turns(value: Any, column: str, *, role: str = "role", content: str = "content") -> list[Turn]:
    """The messages of a column, given as a list or as JSON text; `role` and `content` are the names of these keys.

    Raises ValueError that names the message and the field: `messages[2].tool_calls[0].function.name`.
    """
    if looks_like_list(value):
        value = parse_json(value, column)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{column!r} must be a list of messages with {role} and {content}, found {json_type(value)}")
    if not value:
        raise ValueError(f"{column!r} must be a list with at least one message")
    return [_read_turn(message, f"{column}[{i}]", role, content) for i, message in enumerate(value)]


def _read_turn(message: Any, where: str, role_key: str, content_key: str) -> Turn:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be an object with {role_key} and {content_key}, found {json_type(message)}")
    role = role_of(message.get(role_key), where, role_key)
    content = message.get(content_key)
    if role == CALL:
        role, calls, content = "assistant", tool_calls(content, f"{where}.{content_key}"), ""
    else:
        calls = _calls(message, where)
    if calls and role != "assistant":
        raise ValueError(f"{where}: only an assistant message can have tool_calls, found them with the role {role!r}")
    clean: dict[str, Any] = {"role": role}
    if calls:
        clean["tool_calls"] = calls
    if content is None and role == "assistant" and (calls or content_key in message):
        content = ""  # null next to tool calls (OpenAI) or in a table; a missing key is a mistake
    clean["content"], in_parts = content_and_reasoning(content, where, content_key)
    for key in ("name", "tool_call_id"):
        text = optional_text(message.get(key), f"{where}.{key}")
        if text is not None:
            clean[key] = text
    reasoning = _reasoning(message, where, in_parts)
    if reasoning is not None:
        if role != "assistant":
            raise ValueError(f"{where}: only an assistant message can have reasoning, found it with the role {role!r}")
        clean["reasoning_content"] = reasoning
    unread = _unread_keys(message, where, {role_key, content_key})
    return Turn(message=clean, where=where, weight=weight_of(message, where, content), unread=unread)


def _unread_keys(message: Mapping[str, Any], where: str, read: set[str]) -> tuple[str, ...]:
    """The keys of a message that have a value and are not read. Raises ValueError for those that change its meaning."""
    found = [k for k in message.keys() - READ_KEYS - read if has_value(message[k])]
    if not found:
        return ()
    for key, instead in REFUSED_KEYS.items():
        if key in found:
            raise ValueError(f"{where}.{key} is not read{instead}")
    column = where.partition("[")[0]
    return tuple(f"{column}[].{key}" for key in sorted(found))


def _calls(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """`tool_calls`, or `function_call`, its former name in OpenAI's API."""
    for key in ("tool_calls", "function_call"):
        value = message.get(key)
        if value is not None and value != "":
            return tool_calls(value, f"{where}.{key}")
    return []


def _reasoning(message: Mapping[str, Any], where: str, in_parts: str | None) -> str | None:
    """The reasoning of a message, in a field of its own or in a part of its content."""
    texts = (optional_text(message.get(key), f"{where}.{key}") for key in REASONING_FIELDS)
    field = next((text for text in texts if text is not None), None)
    if field is not None and in_parts is not None and field.strip() != in_parts.strip():
        raise ValueError(f"{where} has two different texts of reasoning, in a part of its content and in a field")
    return in_parts if field is None else field


WEIGHTS = ("loss_weight", "weight", "train", "training", "loss")
"""The keys that set whether a message is supervised: the first two are numbers, the others true or false."""
READ_KEYS = {"tool_calls", "function_call", "name", "tool_call_id", *REASONING_FIELDS, *WEIGHTS, "train_detail"}
"""The keys of a message that are read, besides those of its role and its content."""
REFUSED_KEYS = {
    **dict.fromkeys(("tools", "functions"), ": move it to the column 'tools' of the row"),
    **dict.fromkeys(("images", "videos", "audios", "image", "video", "audio"), ": only text is supported"),
    **dict.fromkeys(("documents", "context"), ": move its text to the content of the message"),
}
"""Keys that belong to the prompt in the formats of other tools, and what to do with each."""


def weight_of(message: Mapping[str, Any], where: str, content: Any) -> int | None:
    """0 or 1, or None if the message does not set a weight.

    Raises ValueError for any other weight, which would be ignored silently, and if two of the keys disagree.
    """
    weights: dict[str, int] = {}
    for key in WEIGHTS:
        value = message.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError(f"{where}.{key} must be 0 or 1 (masked or supervised), found {value!r}")
        weights[key] = int(value)
    if (part := _weight_of_parts(message.get("train_detail"), content, where)) is not None:
        weights["train_detail"] = part
    if len(set(weights.values())) > 1:
        raise ValueError(f"{where}: {' and '.join(f'{key} {message[key]!r}' for key in weights)} disagree")
    return next(iter(weights.values()), None)


def _weight_of_parts(value: Any, content: Any, where: str) -> int | None:
    """The weight of a message whose parts have one each, as in Axolotl's `train_detail`; None if it has none.

    Raises ValueError if the parts have different weights or are not the whole text: a message is supervised as a whole.
    """
    if not has_value(value):
        return None
    try:
        parts = sorted((int(p["begin_offset"]), int(p["end_offset"]), bool(p["train"])) for p in value)
    except (TypeError, KeyError, ValueError) as e:
        raise ValueError(f"{where}.train_detail must be a list of begin_offset, end_offset and train") from e
    reached = 0  # the end of a part is its last character
    for begin, end, _ in parts:
        reached = max(reached, end + 1) if begin <= reached else reached
    weights = {train for _, _, train in parts}
    if len(weights) > 1 or not isinstance(content, str) or not reached >= len(content.rstrip()):
        raise ValueError(
            f"{where}.train_detail trains on a part of the message only, which is not supported; split the message, or "
            "set 'train' of the whole message and remove 'train_detail'"
        )
    return int(weights == {True})
