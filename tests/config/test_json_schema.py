"""The JSON schema of a configuration accepts and rejects the same files as the configuration."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from smollm3_finetune.api import option
from smollm3_finetune.components.discovery import PluginSelection, discover
from smollm3_finetune.components.json_schema import run_schema
from smollm3_finetune.components.kinds import ADAPTER, LOADER, QUANTIZER
from smollm3_finetune.components.registry import Registry
from smollm3_finetune.components.selection import choose
from smollm3_finetune.config.load import PATHS, as_dict, assemble, file_settings, plain
from smollm3_finetune.config.options import build, field_types, option_problems
from smollm3_finetune.config.schema import PLAIN_SECTIONS, ComponentConfig, RunConfig
from smollm3_finetune.config.yaml12 import read_yaml
from smollm3_finetune.data.plan import select_rows
from smollm3_finetune.errors import ConfigError, SmolLM3Error
from smollm3_finetune.model_files.dtypes import ALIASES

KEYWORDS = {
    "$schema", "anyOf", "not", "enum", "type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "multipleOf", "items", "minItems", "minLength", "pattern", "properties", "additionalProperties", "required",
    "title", "description", "default", "deprecated",
}  # fmt: skip
KINDS = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "integer": lambda v: not isinstance(v, bool) and (isinstance(v, int) or (isinstance(v, float) and v.is_integer())),
}
LIMITS: dict[str, Any] = {
    "minimum": lambda v, limit: v >= limit,
    "maximum": lambda v, limit: v <= limit,
    "exclusiveMinimum": lambda v, limit: v > limit,
    "exclusiveMaximum": lambda v, limit: v < limit,
    "multipleOf": lambda v, limit: v % limit == 0,
}


def accepts(schema: Any, value: Any) -> bool:
    """Whether a value is valid under a schema of JSON Schema 2020-12, for the keywords that `run_schema` uses."""
    if isinstance(schema, bool):
        return schema
    assert set(schema) <= KEYWORDS, "add the new keyword to this function"
    if "anyOf" in schema and not any(accepts(s, value) for s in schema["anyOf"]):
        return False
    if "not" in schema and accepts(schema["not"], value):
        return False
    if "enum" in schema and not any(
        v == value and isinstance(v, bool) == isinstance(value, bool) for v in schema["enum"]
    ):
        return False
    types = schema.get("type", list(KINDS))
    if not any(KINDS[kind](value) for kind in ([types] if isinstance(types, str) else types)):
        return False
    if KINDS["number"](value):
        return all(check(value, schema[name]) for name, check in LIMITS.items() if name in schema)
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        items = schema.get("items", {})
        return len(value) >= schema.get("minItems", 0) and all(accepts(items, v) for v in value)
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
        known = all(accepts(properties.get(k, extra), v) for k, v in value.items())
        return known and set(schema.get("required", ())) <= set(value)
    return True


@pytest.fixture
def schema() -> dict[str, Any]:
    made = run_schema(discover(PluginSelection.of([], no_plugins=True)))
    return dict(json.loads(json.dumps(made)))


def test_the_schema_accepts_default_and_resolved_configurations(schema: dict[str, Any]) -> None:
    assert accepts(schema, as_dict(RunConfig()))
    full = ComponentConfig(name="smollm3-finetune:full", options={"parameters": ["*.norm"]})
    hf = {"revision": None, "trust_remote_code": False, "pickle": False}
    resolved = RunConfig(adapter=full, loader=ComponentConfig(name="smollm3-finetune:hf", options=hf))
    assert accepts(schema, as_dict(resolved))
    assert accepts(schema, {"quant": "none", "adapter": {"name": "full"}, "train": {"learning_rate": 2e-5}})


@pytest.mark.parametrize(
    "value",
    [
        {"modle": "tiny"},
        {"train": {"max_step": 3}},
        {"train": {"batch_size": 0}},
        {"train": {"schedule": "steep"}},
        {"quant": "nune"},
        {"adapter": {"name": "fulll"}},
        {"adapter": {"name": "full", "params": []}},
        {"dtype": "int3"},
    ],
)
def test_the_schema_rejects_what_config_validate_rejects(value: dict[str, Any], schema: dict[str, Any]) -> None:
    assert not accepts(schema, value)


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 8, 64, 3.0, 0.5, 2.5, 1e9, "", "8", "2.5", "text", "none", "off", "on", "Yes", "NO",
    "1,2", "1, x", ",", "a,b", [], [1], ["8"], [0.5], ["a", "b"], [True], [None], [[]], {}, {"a": 1}, [{"path": "x"}],
)  # fmt: skip
"""What a file may contain for any key, with right and wrong types, and numbers inside and outside of limits."""


@pytest.fixture(scope="module")
def installed() -> Registry:
    return discover(PluginSelection.of([]))


def values_for(f: dataclasses.Field[Any], hint: Any) -> list[Any]:
    """`VALUES`, and the words and the default of an option."""
    words = [w for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal for w in get_args(kind)]
    default = [] if f.default is dataclasses.MISSING else [plain(f.default)]
    return [*VALUES, *ALIASES, *words, *default, *f.metadata.get("former_values", {})]


def test_schema_and_validator_accept_the_same_values_of_every_option(installed: Registry) -> None:
    schema = json.loads(json.dumps(run_schema(installed)))
    owners = [(section, None, cls) for section, cls in PLAIN_SECTIONS.items()]
    owners += [(o.kind.section, o.full_name, o.options_class()) for o in installed.components]  # type: ignore[misc]
    tried = Counter[bool]()
    for section, name, cls in owners:
        if section not in schema["properties"]:
            continue
        hints = field_types(cls)
        for f in dataclasses.fields(cls):
            if name is None and (section, f.name) in PATHS:
                continue  # their values are checked when the files are looked up; see below
            for key in (f.name, f.metadata.get("former_name")):
                for value in values_for(f, hints[f.name]) if key else ():
                    needed = {"name": name} if name else {}
                    valid = not option_problems(cls, {key: value}, section, {key: "run.yaml:1"})
                    assert accepts(schema, {section: {**needed, key: value}}) == valid, (section, name, key, value)
                    tried[valid] += 1
    assert min(tried.values()) > 500


def valid(file: Path, registry: Registry) -> bool:
    """Whether the file is a valid configuration with existing components, options and rows."""
    try:
        loaded = assemble([file_settings(file)])
        select_rows(registry, loaded)
        for kind in (LOADER, QUANTIZER, ADAPTER):
            section = getattr(loaded.config, kind.section)
            if section.name is not None:
                choose(registry, kind, section.name, section.options, loaded.origins)
    except SmolLM3Error:
        return False
    return True


FILES: tuple[tuple[bool, str], ...] = (
    (True, "train: {report_to: tensorboard}"),
    (True, "train: {report_to: 'tensorboard, wandb'}"),
    (True, "train: {report_to: [tensorboard]}"),
    (False, "train: {report_to: {tensorboard: true}}"),
    (False, "data: {path: [{path: rows.jsonl, wieght: 2}]}"),
    (False, "data: {path: {path: rows.jsonl, wieght: 2}}"),
    (True, "data: {path: [{path: rows.jsonl, weight: 2}, rows.jsonl]}"),
    (False, "data: {path: [{path: rows.jsonl, weight: 0}]}"),
    (False, "data: {path: [{path: rows.jsonl, weight: '2'}]}"),
    (False, "data: {path: [{weight: 2}]}"),
    (False, "data: {path: {path: ''}}"),
    (False, "data: {path: ''}"),
    (False, "data: {path: []}"),
    (False, "data: {path: true}"),
    (False, "data: {path: [[rows.jsonl]]}"),
    (True, "data: {path: {path: rows.jsonl, limit: none, formatter: messages}}"),
    (True, "data: {path: rows.jsonl, validation: rows.jsonl}"),
    (True, "data: {path: rows.jsonl, validation: {path: rows.jsonl, limit: 1, weight: 1}, held_out: 0}"),
    (False, "data: {path: rows.jsonl, validation: {path: rows.jsonl, weight: 2}}"),
    (False, "data: {path: rows.jsonl, validation: [{path: rows.jsonl, splt: test}]}"),
    (False, "data: {path: rows.jsonl, validation: rows.jsonl, held_out: 0.1}"),
    (True, "data: {validation: null, held_out: 0.1}"),
    (False, "calibration: {path: {path: rows.jsonl, wieght: 2}}"),
    (True, "calibration: {path: [rows.jsonl], rows: 3}"),
    (True, "data:\ntrain:\nquant:\nadapter:\n"),
    (False, "data: rows.jsonl"),
    (False, "train: []"),
    (True, "model: 7\noutput: 2026"),
    (False, "model: null"),
    (False, "seed: '3'"),
    (True, "seed: 3.0"),
    (False, "seed: true"),
    (True, "train: {packing: yes, save_minutes: off}"),
    (True, "data: {enable_thinking: off}"),
    (False, "train: {packing: maybe}"),
    (False, "train: {batch_size: '8'}"),
    (True, "adapter: full"),
    (True, "adapter: smollm3-finetune:full"),
    (True, "adapter: {name: full, parameters: 'a, b'}"),
    (False, "adapter: {name: full, paramters: a}"),
    (False, "adapter: {name: nothing}"),
    (False, "adapter: 4"),
    (True, "formatter: {name: text, column: body}\ndata: {path: rows.jsonl}"),
    (False, "formatter: {name: text, colunm: body}"),
    (True, "plugins: one.py"),
    (False, "trian: {}"),
)


@pytest.mark.parametrize(("expected", "text"), FILES)
def test_schema_and_validator_accept_the_same_files(
    expected: bool, text: str, installed: Registry, isolated: Path
) -> None:
    Path("rows.jsonl").write_text('{"messages": []}\n')
    file = Path("run.yaml")
    file.write_text(text)
    schema = json.loads(json.dumps(run_schema(installed)))
    assert (accepts(schema, read_yaml(file)[0]), valid(file, installed)) == (expected, expected)


def test_options_of_a_section_without_a_name_are_those_of_some_component(installed: Registry) -> None:
    schema = json.loads(json.dumps(run_schema(installed)))
    assert accepts(schema, {"loader": {"revision": "main"}, "formatter": {"column": "body"}, "adapter": {"name": None}})
    for wrong in ({"loader": {"revison": "main"}}, {"quant": {"nmae": "none"}}, {"adapter": {"parameters": "x"}}):
        assert not accepts(schema, wrong)


def test_true_is_not_a_number_and_off_is_false() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        count: int = option(1, "A count.")
        rate: float | None = option(None, "A rate.")
        on: bool | None = option(None, "A switch.")

    for values in ({"count": True}, {"rate": False}):
        with pytest.raises(ConfigError, match=r"expected (integer|number or none), got (True|False)"):
            build(Options, values, "quant")
    assert build(Options, {"on": "off"}, "quant").on is False
    assert build(Options, {"on": "none"}, "quant").on is None
    assert build(Options, {"rate": "off"}, "quant").rate is None
    with pytest.raises(ConfigError, match=r"run.yaml:1: quant.count: expected integer, got '8'"):
        build(Options, {"count": "8"}, "quant", {"count": "run.yaml:1"})


def test_the_schema_has_the_help_of_every_option(schema: dict[str, Any]) -> None:
    assert schema["properties"]["model"]["description"].startswith("Model to fine-tune: Hub ID")
    full = next(v for v in schema["properties"]["adapter"]["anyOf"] if "full" in json.dumps(v.get("properties", {})))
    assert "globs" in full["properties"]["parameters"]["description"]
    assert full["properties"]["name"]["enum"] == ["full", "smollm3-finetune:full"]
