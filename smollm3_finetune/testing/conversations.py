"""Checks of conversations that a formatter returns: what the chat template and the loss mask need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import Conversation
from smollm3_finetune.testing.conformance import demand, outcome

ROLES = ("system", "user", "assistant", "tool")


def check_conversation(made: Conversation, what: str) -> None:
    """Fail the test, which says `what` became the conversation, if a part of it is not as the contract says."""
    demand(made.text is not None or bool(made.messages), f"{what} became neither messages nor text")
    demand(made.text is None or isinstance(made.text, str), f"{what}: `text` must be text, found {made.text!r}")
    for name in ("messages", "tools"):
        value = getattr(made, name)
        demand(isinstance(value, tuple | list), f"{what}: `{name}` must be a tuple, found a {type(value).__name__}")
    demand(
        made.rejected is None or isinstance(made.rejected, tuple | list),
        f"{what}: `rejected` must be a tuple of messages or None, found a {type(made.rejected).__name__}",
    )
    for message in (*made.messages, *(made.rejected or ())):
        _check_message(message, what)
    for tool in made.tools:
        demand(isinstance(tool, Mapping), f"{what}: a tool must be a JSON schema, found {tool!r}")
    demand(isinstance(made.template_kwargs, Mapping), f"{what}: `template_kwargs` must be a mapping")
    demand(
        made.desirable is None or isinstance(made.desirable, bool),
        f"{what}: `desirable` must be True, False or None, found {made.desirable!r}",
    )
    _check_supervised(made, what)


def _check_message(message: Any, what: str) -> None:
    demand(isinstance(message, Mapping), f"{what}: a message must be a mapping, found {message!r}")
    role, content = message.get("role"), message.get("content")
    demand(role in ROLES, f"{what}: the role {role!r} is not one of {ROLES}")
    demand(isinstance(content, str), f"{what}: the content of a message must be text, found {content!r}")
    calls = message.get("tool_calls")
    if calls is None:
        return
    demand(role == "assistant", f"{what}: a message of the {role} has tool_calls; only the assistant calls tools")
    demand(isinstance(calls, list | tuple), f"{what}: tool_calls must be a list, found a {type(calls).__name__}")
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        valid = isinstance(function, Mapping) and isinstance(function.get("name"), str)
        demand(valid, f'{what}: a tool call must be {{"type": "function", "function": {{"name": …}}}}, found {call!r}')
        assert isinstance(function, Mapping)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments, _ = outcome(json.loads, arguments)
        demand(
            isinstance(arguments, Mapping),
            f"{what}: the arguments of the tool call {function['name']!r} must be a mapping, or its JSON, found "
            f"{function.get('arguments')!r}",
        )


def _check_supervised(made: Conversation, what: str) -> None:
    if made.supervised is None:
        return
    count = len(made.messages)
    for index in made.supervised:
        valid = isinstance(index, int) and not isinstance(index, bool) and 0 <= index < count
        demand(
            valid,
            f"{what}: `supervised` has {index!r}; expected indices of its {count} messages, from 0 to {count - 1}",
        )
        role = made.messages[index]["role"]
        demand(role == "assistant", f"{what}: `supervised` has {index}, a message of the {role}: name the assistant's")
    demand(
        len(set(made.supervised)) == len(made.supervised),
        f"{what}: `supervised` names a message twice: {made.supervised}",
    )
