"""Tool calls and tool schemas, converted to the form that chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from smollm3_finetune.builtin.formatters.content import required_text
from smollm3_finetune.errors import did_you_mean
from smollm3_finetune.files import limits
from smollm3_finetune.files.json import has_value, json_type

ARGUMENTS = ("arguments", "parameters")
FUNCTION_KEYS = ("name", *ARGUMENTS)
CALL_KEYS = ("id", "type", "index")
"""Keys of a call besides its function; `index` is its place in the list, in streamed answers of OpenAI's API."""


def parse_json(text: str, where: str) -> Any:
    """The decoded JSON. Raises ValueError with the path of the field."""
    try:
        return limits.parse_json(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{where} is not valid JSON: {e.msg} (line {e.lineno}, column {e.colno})") from e
    except ValueError as e:
        raise ValueError(f"{where} is not usable JSON: {e}") from e


def tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls as `{"type": "function", "function": {"name": …, "arguments": {…}}}`, each with its `id` if it has one.

    Accepts OpenAI's form, the bare `{"name", "arguments"}`, one call or a list, arguments as an object or as JSON
    text (also under `parameters`, as in Llama 3's format), and any of these as JSON text. Raises ValueError for keys of
    a call that it would lose.
    """
    if isinstance(value, str):
        value = parse_json(value, where)
    if isinstance(value, Mapping):
        return [_tool_call(value, where)]
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list of tool calls, found {json_type(value)}")
    return [_tool_call(call, f"{where}[{n}]") for n, call in enumerate(value)]


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, str):
        call = parse_json(call, where)
    if not isinstance(call, Mapping):
        raise ValueError(f"{where} must be an object with a name and arguments, found {json_type(call)}")
    if call.get("type") not in (None, "function"):
        raise ValueError(f"{where}.type must be 'function', found {call['type']!r}")
    function, path = call, where
    if call.get("function") is not None:
        function, path = call["function"], f"{where}.function"
        if not isinstance(function, Mapping):
            raise ValueError(f"{path} must be an object with a name and arguments, found {json_type(function)}")
    name = required_text(function.get("name"), f"{path}.name")
    arguments = _either_arguments(function, path)
    if function is call:
        _refuse_other_keys(call, (*FUNCTION_KEYS, *CALL_KEYS), where)
    else:
        _refuse_other_keys(call, ("function", *CALL_KEYS), where)
        _refuse_other_keys(function, FUNCTION_KEYS, path)
    clean: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if call.get("id") is not None:
        clean["id"] = required_text(call["id"], f"{where}.id")  # the `tool_call_id` of the tool answer refers to it
    return clean


def _refuse_other_keys(value: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raises ValueError for a key whose value would be lost; null and empty values are not."""
    for key in value:
        if key not in known and has_value(value[key]):
            near = did_you_mean(str(key), known)
            meant = f"; did you mean {near!r}?" if near else ""
            raise ValueError(f"{where}.{key} is not a key of a tool call{meant} (keys: {', '.join(known)})")


def _either_arguments(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments under either of their names. Raises ValueError if the two differ."""
    found = [a for key in ARGUMENTS if (a := _arguments(function.get(key), f"{where}.{key}"))]
    if len(found) == 2 and found[0] != found[1]:
        raise ValueError(f"{where} has different values in {ARGUMENTS[0]!r} and {ARGUMENTS[1]!r}")
    return found[0] if found else {}


def _arguments(value: Any, where: str) -> dict[str, Any]:
    """The arguments of a call; None and empty text mean no arguments."""
    if isinstance(value, str):
        value = parse_json(value, where) if value.strip() else {}
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object or an object as JSON text, found {json_type(value)}")
    return dict(value)


def schemas(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """The tool schemas of a row: a list of objects, or JSON text of the list or of each object."""
    if isinstance(value, str):
        value = parse_json(value, where) if value.strip() else None
    if value is None:
        return ()
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list of tool schemas, found {json_type(value)}")
    return tuple(_schema(tool, f"{where}[{n}]") for n, tool in enumerate(value))


def _schema(tool: Any, where: str) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = parse_json(tool, where)
    if not isinstance(tool, Mapping):
        raise ValueError(f"{where} must be an object that describes a tool, found {json_type(tool)}")
    return dict(tool)
