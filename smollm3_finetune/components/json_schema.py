"""The JSON schema of `run.yaml`, with the options of every installed component."""

from __future__ import annotations

from typing import Any

from smollm3_finetune.components.kinds import KINDS, Kind
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.config.options import json_schema
from smollm3_finetune.config.schema import COMPONENT_SECTIONS, RunConfig
from smollm3_finetune.errors import SmolLM3Error


def run_schema(registry: Registry) -> dict[str, Any]:
    """The schema of a run. A component's section is a name, or a mapping with the name and that component's options."""
    schema = json_schema(RunConfig)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "smollm3 run"
    schema.get("$defs", {}).pop("ComponentConfig", None)
    for kind in KINDS:
        if kind.section in COMPONENT_SECTIONS:
            schema["properties"][kind.section] = _section(registry, kind)
    return schema


def _section(registry: Registry, kind: Kind) -> dict[str, Any]:
    names: list[str] = []
    variants: list[dict[str, Any]] = []
    for component in registry.of(kind):
        mine = [component.spec.name, *component.spec.aliases, component.full_name]
        try:
            options = json_schema(component.options_class())
        except SmolLM3Error:  # options that cannot be imported; `plugins list` shows the component
            continue
        names += mine
        properties = {"name": {"enum": mine}, **options.get("properties", {})}
        variants.append(
            {
                "type": "object",
                "description": component.spec.summary,
                "properties": properties,
                "required": ["name"],
                "additionalProperties": False,
            }
        )
    unnamed = {"type": "object", "properties": {"name": {"type": "null"}}}
    return {"anyOf": [{"enum": [*names, None]}, *variants, unnamed]}
