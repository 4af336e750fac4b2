"""The JSON schema of the file of a sweep, with the keys of a run and the options of every installed component."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from smollm3_finetune.components.json_schema import run_schema
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.schema import COMPONENT_SECTIONS, PLAIN_SECTIONS
from smollm3_finetune.sweep.file import MOST, NAME, NOT_IN_RUN, NOT_SWEPT, OBJECTIVE

DEEPER = r"^[^.]+\.[^.]+\..+$"
"""A key inside the value of another one, such as `data.path.0.weight`."""


def sweep_schema(registry: Registry) -> dict[str, Any]:
    """The schema of a sweep. It accepts the keys and values that `read_sweep` and the runs accept."""
    run = run_schema(registry)
    head = {"$schema": run.pop("$schema"), "title": "smollm3 sweep"}
    run.pop("title")
    keys = dict(_keys(run["properties"]))
    for key in NOT_IN_RUN:
        run["properties"][key] = {"type": "null"}
    lists = {key: {"type": "array", "minItems": 1, "items": value} for key, value in keys.items()}
    ranges = {key: {"anyOf": [lists[key], *_ranges(lists[key])]} for key in keys}
    anything: dict[str, Any] = {"type": "array", "minItems": 1}
    properties: dict[str, Any] = {
        "name": {"type": "string", "pattern": f"^{NAME.pattern}$", "description": "Name of the sweep."},
        "output": {"type": ["string", "null"], "description": "Directory; default: runs/sweeps/NAME."},
        "run": {"anyOf": [run, {"type": ["string", "null"]}], "description": "What all trials have in common."},
        "grid": {**_section(lists, anything), "description": "Values of keys, of which all combinations are run."},
        "random": {
            **_section(ranges, {"anyOf": [anything, *_ranges(anything)]}),
            "description": "Ranges of keys, from which each trial draws a value.",
        },
        "trials": {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MOST},
                {"type": "array", "minItems": 1, "maxItems": MOST, "items": _section(keys, {}, least=0)},
            ],
            "description": "With random: how many. Without grid and random: the values of each trial.",
        },
        "seed": {"type": "integer", "description": "Seed of random; default: 0."},
        "objective": {"const": OBJECTIVE, "description": "The loss that trials are sorted by."},
    }
    several = {"trials": {"type": "array"}}
    return {
        **head,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "oneOf": [
            {"required": ["grid"], "not": {"anyOf": [{"required": [k]} for k in ("random", "trials", "seed")]}},
            {"required": ["random", "trials"], "properties": {"trials": {"type": "integer"}}},
            {
                "required": ["trials"],
                "properties": several,
                "not": {"anyOf": [{"required": [k]} for k in ("grid", "random", "seed")]},
            },
        ],
    }


def _section(keys: Mapping[str, Any], deeper: Mapping[str, Any], least: int = 1) -> dict[str, Any]:
    """A mapping with keys of a run."""
    return {
        "type": "object",
        "minProperties": least,
        "properties": dict(keys),
        "patternProperties": {DEEPER: dict(deeper)},
        "additionalProperties": False,
    }


def _ranges(choices: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas of ranges; that of `choice` has the values."""

    def one(kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "object", "required": [kind], "properties": {kind: value}, "additionalProperties": False}

    yield one("choice", choices)
    number: dict[str, Any] = {"type": "number"}
    for kind, end in (("uniform", number), ("log_uniform", {**number, "exclusiveMinimum": 0})):
        yield one(kind, {"type": "array", "minItems": 2, "maxItems": 2, "items": end})
    yield one("integer", {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer"}})


def _keys(properties: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys that trials can differ in, with dots, and the schema of each."""
    for section, node in properties.items():
        if section in NOT_SWEPT:
            continue
        yield section, node
        if section in PLAIN_SECTIONS:
            inner = next(one for one in node["anyOf"] if "properties" in one)
            yield from ((f"{section}.{key}", value) for key, value in inner["properties"].items())
        elif section in COMPONENT_SECTIONS:
            yield from _options(section, node)


def _options(section: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The name of a component, and the options of all components of a section; several may have one name."""
    yield f"{section}.name", node["anyOf"][0]
    found: dict[str, list[Any]] = {}
    for variant in node["anyOf"]:
        for key, value in variant.get("properties", {}).items():
            if key != "name" and value not in found.setdefault(key, []):
                found[key].append(value)
    for key, values in found.items():
        yield f"{section}.{key}", values[0] if len(values) == 1 else {"anyOf": values}
