"""The JSON schema of `run.yaml`, with the options of every installed component.

It accepts and rejects the same keys and values as the configuration itself. Only what lies outside the file, such as
rows, models, packages and names of optimizers, and the options of a component that the run selects by its model or its
rows, is left to `smollm3 config validate`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.components.kinds import ADAPTER, KINDS, LAUNCHER, OBJECTIVE, Kind
from smollm3_finetune.components.registry import RegisteredComponent, Registry
from smollm3_finetune.config.accepted import TEXT, accepted
from smollm3_finetune.config.load import PATHS
from smollm3_finetune.config.schema import (
    COMPONENT_SECTIONS,
    DEFAULT_ADAPTER,
    DEFAULT_LAUNCHER,
    DEFAULT_OBJECTIVE,
    PLAIN_SECTIONS,
    RunConfig,
    SourceConfig,
)
from smollm3_finetune.errors import SmolLM3Error

DEFAULTS: Mapping[str, str] = {
    ADAPTER.section: DEFAULT_ADAPTER,
    OBJECTIVE.section: DEFAULT_OBJECTIVE,
    LAUNCHER.section: DEFAULT_LAUNCHER,
}
"""The component of a section without a name, if neither the model nor the rows decide it."""
BOTH_HELD_OUT = {
    "required": ["validation", "held_out"],
    "properties": {"validation": {"not": {"type": "null"}}, "held_out": {"exclusiveMinimum": 0}},
}
"""Separate held-out rows and a fraction of the others exclude each other."""


def run_schema(registry: Registry) -> dict[str, Any]:
    """The schema of a run. A component's section is a name, or a mapping with the name and that component's options."""
    schema = accepted(RunConfig)
    properties = schema["properties"]
    for section, cls in PLAIN_SECTIONS.items():
        about = {k: v for k, v in properties[section].items() if k == "description"}
        keys = accepted(cls)
        for _, key in (path for path in PATHS if path[0] == section):
            keys["properties"][key] |= _sources(validation=key == "validation")
        if section == "data":
            keys["not"] = BOTH_HELD_OUT
        properties[section] = {**about, "anyOf": [keys, {"type": "null"}]}
    for kind in KINDS:
        if kind.section in COMPONENT_SECTIONS:
            properties[kind.section] = _section(registry, kind)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "smollm3 run", **schema}


def _sources(*, validation: bool) -> dict[str, Any]:
    """The schema of a key that names rows."""
    source = copy.deepcopy(accepted(SourceConfig))
    source["required"] = ["path"]
    source["properties"]["path"]["minLength"] = 1
    if validation:
        source["properties"]["weight"]["enum"] = [1]
    one = [{**TEXT, "minLength": 1}, source]
    several = {"type": "array", "minItems": 1, "items": {"anyOf": one}}
    return {"anyOf": [*one, several, {"type": "null"}]}


def _section(registry: Registry, kind: Kind) -> dict[str, Any]:
    names: list[str] = []
    variants: list[dict[str, Any]] = []
    unnamed: list[dict[str, Any]] = [
        {"type": "object", "properties": {"name": {"type": "null"}}, "additionalProperties": False}
    ]
    for component in registry.of(kind):
        mine = _names(registry, component)
        try:
            options = accepted(component.options_class())
        except SmolLM3Error:  # options that cannot be imported; `plugins list` shows the component
            continue
        names += mine
        variants.append(_variant(options, {"enum": mine}, component.spec.summary, required=["name"]))
        default = DEFAULTS.get(kind.section)
        if options["properties"] and (default is None or default in mine):
            unnamed.append(_variant(options, {"type": "null"}, f"{component.spec.name}, not named", required=[]))
    return {"anyOf": [{"enum": [*names, None]}, *variants, *unnamed]}


def _variant(options: Mapping[str, Any], name: Any, description: str, required: list[str]) -> dict[str, Any]:
    return {
        **options,
        "description": description,
        "properties": {"name": name, **options["properties"]},
        "required": [*required, *options.get("required", ())],
    }


def _names(registry: Registry, component: RegisteredComponent) -> list[str]:
    """The names that select a component: not those that another distribution offers too."""
    bare = [component.spec.name, *component.spec.aliases]
    mine = [o for o in registry.of(component.kind) if set(bare) & {o.spec.name, *o.spec.aliases}]
    shared = {n for o in mine if o is not component for n in (o.spec.name, *o.spec.aliases)}
    return [*(n for n in bare if n not in shared), *(f"{component.distribution}:{n}" for n in bare)]
