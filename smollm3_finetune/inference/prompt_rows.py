"""The rows of a file of prompts, each as the messages that a model answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.data.files import read_file, row_format
from smollm3_finetune.errors import ConfigError, DataError
from smollm3_finetune.files.json import json_type
from smollm3_finetune.inference.generate import room_for

if TYPE_CHECKING:
    from smollm3_finetune.model.plan import ModelPlan

COUNTED = ("answer", "answers", "finish_reason")
"""The keys that an output row adds to those of its input row."""
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class PromptRow:
    """A row to answer."""

    value: Mapping[str, Any]
    """The row as it was read."""
    where: str
    """`prompts.jsonl:12`"""
    ids: list[int]
    """The tokens of the prompt."""


def read_prompts(file: Path, renderer: Renderer, mode: Mapping[str, Any], system: str | None) -> list[PromptRow]:
    """The rows of a file: `prompt`, which is text, or `messages`; also `tools` and `chat_template_kwargs`.

    `mode` are arguments of the chat template for rows that do not set them, `system` is the system message of rows
    without one. Raises DataError that names file and line, and ConfigError for a
    file of another format.
    """
    if row_format(file) is None:
        raise ConfigError(f"--prompts: the format of {str(file)!r} is not supported", hint="--prompts prompts.jsonl")
    rows = []
    for row in read_file(file):
        try:
            ids = _prompt_ids(row.value, renderer, mode, system)
            renderer.check_ids(ids, row.where)
        except ValueError as e:
            raise DataError(f"{row.where}: {e}") from e
        except DataError as e:
            raise DataError(f"{row.where}: {e.message}", hint=e.hint) from e
        rows.append(PromptRow(row.value, row.where, ids))
    return rows


def _prompt_ids(row: Mapping[str, Any], renderer: Renderer, mode: Mapping[str, Any], system: str | None) -> list[int]:
    if taken := [key for key in COUNTED if key in row]:
        raise DataError(f"the row has a column {taken[0]!r}, which the output adds", hint=f"rename {taken[0]!r}")
    own = row.get("chat_template_kwargs") or {}
    if not isinstance(own, Mapping):
        raise ValueError(f"'chat_template_kwargs' must be an object, found {json_type(own)}")
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    messages = _messages(row)
    if system and messages[0]["role"] not in ("system", "developer"):
        messages.insert(0, {"role": "system", "content": system})
    return renderer.prompt_ids(messages, **{**mode, **tools, **own})


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a row. Raises ValueError if it has none, or if the last one is an answer."""
    prompt, messages = row.get("prompt"), row.get("messages")
    if (prompt is None) == (messages is None):
        raise ValueError("a row must have either 'prompt' or 'messages'")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("'prompt' is empty")
        return [{"role": "user", "content": prompt}]
    name, found = ("prompt", prompt) if messages is None else ("messages", messages)
    if not isinstance(found, list) or not found:
        expected = "text or a list of messages" if name == "prompt" else "a list of messages"
        raise ValueError(f"{name!r} must be {expected}, found {json_type(found) if found != [] else 'an empty list'}")
    for i, message in enumerate(found):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES or "content" not in message:
            raise ValueError(f"{name}[{i}] must be an object with role ({', '.join(ROLES)}) and content")
    if found[-1]["role"] not in ("user", "tool"):
        raise ValueError(f"the last message must be the user's, found the role {found[-1]['role']!r}")
    return [dict(m) for m in found]


def rooms_for(plan: ModelPlan, rows: Sequence[PromptRow], max_new_tokens: int, *, fixed: bool) -> list[int]:
    """The number of new tokens that fit after each prompt; see `room_for`, whose error names the row here."""
    rooms = []
    for row in rows:
        try:
            rooms.append(room_for(plan, len(row.ids), max_new_tokens, fixed=fixed))
        except ConfigError as e:
            raise ConfigError(f"{row.where}: {e.message}", hint=(e.hint or "").replace("--prompt", "row")) from e
    return rooms
