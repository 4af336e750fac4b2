"""The JSON schema of what a configuration file may contain: it accepts and rejects what `options.build` does.

`options.json_schema` has the types of the values. Files may write some of them in other ways: a list as text with
commas, `none`, `yes`, a number where text is expected, the short name of a dtype, or the former name of an option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from smollm3_finetune.config.options import field_types, json_schema, key_of, words_for_none
from smollm3_finetune.model_files.dtypes import ALIASES

WORDS = ("0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes")
"""The words for true and false, in upper or lower case."""
_INTEGER = r"\s*[+-]?\d+\s*"
_NUMBER = r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*"
TEXT = {"type": ["string", "number"]}


def accepted(cls: type) -> dict[str, Any]:
    """The schema of a mapping with the options of `cls`, without references."""
    raw = json_schema(cls)
    return _object(raw, cls, raw.get("$defs", {}), fields=dataclasses.fields(cls))


def _object(raw: Mapping[str, Any], cls: type, inner: Mapping[str, Any], fields: Any) -> dict[str, Any]:
    hints, properties = field_types(cls), {}
    both: list[dict[str, Any]] = []
    required = list(raw.get("required", ()))
    for f in fields:
        node = _field(raw["properties"][key_of(f)], hints[f.name], inner)
        if former_values := f.metadata.get("former_values"):
            former = [*former_values, *(words_for_none(hints[f.name]) if None in former_values else ())]
            node = _or(node, {"enum": former, "deprecated": True})
        properties[key_of(f)] = node
        if former := f.metadata.get("former_name"):
            properties[former] = {**node, "deprecated": True}
            both.append({"required": [former, f.name]})
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = required
    if both:
        schema["not"] = {"anyOf": both}
    return schema


def _field(raw: Mapping[str, Any], hint: Any, inner: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of one option."""
    node = _widened(raw, inner)
    kinds = get_args(hint)
    if get_origin(hint) is tuple:
        return _or(node, *_without_brackets(kinds[0], node.get("items", {})))
    if type(None) in kinds and (unset := words_for_none(hint)):
        return _or(node, {"enum": list(unset)})
    return node


def _widened(raw: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with the other ways to write its values."""
    node = dict(raw)
    if "$ref" in node:
        target = inner[node.pop("$ref").rpartition("/")[2]]
        return {**_widened(target, inner), **node}
    if "anyOf" in node:
        node["anyOf"] = [_widened(n, inner) for n in node["anyOf"]]
    elif "enum" in node:
        words = node["enum"]
        node["enum"] = [*words, *(alias for alias, dtype in ALIASES.items() if dtype in words and alias not in words)]
    elif "const" in node:
        pass
    elif node.get("type") == "string":
        node |= TEXT
    elif node.get("type") == "boolean":
        del node["type"]
        node["anyOf"] = [{"type": "boolean"}, {"enum": [0, 1]}, {"type": "string", "pattern": _any_case(WORDS)}]
    elif node.get("type") == "array":
        node["items"] = _widened(node.get("items", {}), inner)
    elif "properties" in node:
        node["properties"] = {k: _widened(v, inner) for k, v in node["properties"].items()}
    return node


def _without_brackets(kind: Any, item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A list as one value, or as text with commas."""
    if kind in (int, float):
        number = _INTEGER if kind is int else _NUMBER
        text = {"type": "string", "pattern": f"^({number})?(,({number})?)*$"}
        return [{"type": "integer" if kind is int else "number"}, text]
    return [dict(item)]


def _or(node: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """The node or one of the others; its help and its default stay outside."""
    about: dict[str, Any] = {k: node[k] for k in ("title", "description", "default") if k in node}
    rest = {k: v for k, v in node.items() if k not in about}
    first = rest["anyOf"] if list(rest) == ["anyOf"] else [rest]
    return {**about, "anyOf": [*first, *others]}


def _any_case(words: tuple[str, ...]) -> str:
    """A pattern for the words in upper or lower case, without flags, which JSON schema does not have."""
    return "^(" + "|".join("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in w) for w in words) + ")$"
