"""Putting the layers of a configuration together: defaults, what components suggest, a YAML file, the command line.

Every value knows where it came from. A layer is a flat list of `Setting`s; later layers win key by key. Choosing
another component by name drops the options that an earlier layer gave for a different one.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3_finetune.config.options import build, describe, option_problems
from smollm3_finetune.config.schema import COMPONENT_SECTIONS, PLAIN_SECTIONS, ComponentConfig, RunConfig
from smollm3_finetune.config.yaml12 import dump_yaml, parse_value, read_yaml
from smollm3_finetune.errors import ConfigError, Problems, SmolLM3Error, did_you_mean, raise_all

DEFAULT = "default"
EPOCHS, MAX_STEPS = ("train", "epochs"), ("train", "max_steps")
"""Two ways to say how long a run is, of which the later layer's counts."""
PATHS = (("data", "path"), ("calibration", "path"))
"""Where text, alone or in a list, stands for a mapping that has nothing but a `path`."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One value, its key (`("train", "max_steps")`) and where it was written."""

    key: tuple[str, ...]
    value: Any
    origin: str


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """A checked configuration and the origin of every value that is not a default."""

    config: RunConfig
    origins: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()

    def origin(self, key: str) -> str:
        return self.origins.get(key, DEFAULT)

    def section_origins(self, section: str) -> dict[str, str]:
        """For a component's options: each key's origin, where it stands in a file."""
        prefix = f"{section}."
        return {k.removeprefix(prefix): v for k, v in self.origins.items() if k.startswith(prefix)}


def file_settings(path: Path) -> list[Setting]:
    """The settings of a YAML file. Raises ConfigError with file and line."""
    mapping, lines = read_yaml(path)
    settings = []
    for section, value in mapping.items():
        if value is None and section in PLAIN_SECTIONS:  # everything in it is commented out
            continue
        if isinstance(value, dict) and (section in COMPONENT_SECTIONS or section in PLAIN_SECTIONS):
            for key, inner in value.items():
                where = lines[(section, key)]
                settings.append(Setting(key=(section, key), value=inner, origin=where))
        elif section in COMPONENT_SECTIONS and (isinstance(value, str) or value is None):
            settings.append(Setting(key=(section, "name"), value=value, origin=lines[(section,)]))
        else:
            settings.append(Setting(key=(section,), value=value, origin=lines[(section,)]))
    return settings


def assignment(text: str, flag: str, section: str | None = None) -> Setting:
    """A `KEY=VALUE` of the command line. Raises ConfigError where there is no `=`."""
    key, equals, value = text.partition("=")
    path = tuple(p for p in key.strip().split(".") if p)
    if not equals or not path:
        raise ConfigError(f"{flag} takes KEY=VALUE, got {text!r}", hint=f"{flag} {'bits' if section else 'a.b'}=4")
    if section is not None:
        path = (section, *path)
    if len(path) == 1 and path[0] in COMPONENT_SECTIONS:
        path = (path[0], "name")
    return Setting(key=path, value=parse_value(value), origin=f"{flag} {key.strip()}")


def assemble(layers: Iterable[Iterable[Setting]]) -> LoadedConfig:
    """The configuration that the layers give, checked but for the options that plugins describe.

    Raises ConfigError or Problems with the origin of each wrong key.
    """
    values: dict[tuple[str, ...], Setting] = {}
    for layer in layers:
        layer = list(layer)
        for setting in layer:
            section = setting.key[0]
            if setting.key[1:] == ("name",) and section in COMPONENT_SECTIONS:
                before = values.get(setting.key)
                if before is not None and not same_component(before.value, setting.value):
                    values = {k: v for k, v in values.items() if k[0] != section}
        given = {s.key for s in layer}
        if EPOCHS in given and MAX_STEPS not in given:  # an earlier number of steps must not cut the passes short
            values.pop(MAX_STEPS, None)
        for setting in layer:
            values[setting.key] = setting
    problems: list[SmolLM3Error] = []
    for setting in list(values.values()):
        if inside := _inside(values, setting):  # either they or its value would be lost without a word
            problems.append(_clash(setting, inside))
            for inner in inside:
                del values[inner.key]
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {s: {} for s in (*COMPONENT_SECTIONS, *PLAIN_SECTIONS)}
    known = [f.name for f in dataclasses.fields(RunConfig)]
    for key, setting in sorted(values.items(), key=lambda item: len(item[0])):  # a mapping before keys inside it
        section = key[0]
        if section not in known:
            problems.append(_unknown_key(setting, known))
        elif section in sections:
            if len(key) == 1:
                found = type(setting.value).__name__
                problems.append(
                    ConfigError(f"{setting.origin}: {section} is a section of keys, got a {found}: {setting.value!r}")
                )
            else:
                _assign(sections[section], key[1:], setting.value)
        elif len(key) > 1:
            problems.append(ConfigError(f"{setting.origin}: {section} is one value and has no keys"))
        else:
            top[section] = setting.value
    origins = {".".join(k): s.origin for k, s in values.items()}
    config = _checked(top, sections, origins, problems)
    raise_all(problems)
    assert config is not None
    return LoadedConfig(config=config, origins=origins, settings=tuple(values.values()))


def same_component(one: Any, other: Any) -> bool:
    """Whether two names may mean one component: `lora` and `smollm3-peft:lora` may."""
    if one == other or not isinstance(one, str) or not isinstance(other, str):
        return bool(one == other)
    (one_from, _, one_name), (other_from, _, other_name) = one.rpartition(":"), other.rpartition(":")
    return one_name == other_name and not (one_from and other_from)


def _inside(values: Mapping[tuple[str, ...], Setting], outer: Setting) -> list[Setting]:
    """The settings of keys inside `outer`, where it has a value that is no mapping and so has none."""
    depth = len(outer.key)
    if depth == 1 or outer.value is None or isinstance(outer.value, dict):
        return []
    return [s for k, s in values.items() if len(k) > depth and k[:depth] == outer.key]


def _clash(outer: Setting, inside: Sequence[Setting]) -> ConfigError:
    """What is wrong with a value and keys inside it, with the one value that says both."""
    keys: dict[str, Any] = {}
    for inner in inside:
        _assign(keys, inner.key[len(outer.key) :], inner.value)
    whole: Any = keys
    if outer.key in PATHS:
        entries = outer.value if isinstance(outer.value, list) else [outer.value]
        merged = [{**(entry if isinstance(entry, dict) else {"path": entry}), **keys} for entry in entries]
        whole = merged if isinstance(outer.value, list) else merged[0]
    name, origins = ".".join(outer.key), " and ".join(s.origin for s in inside)
    assigned = shlex.quote(f"{name}={dump_yaml(whole, flow=True).strip()}")
    return ConfigError(
        f"{outer.origin} sets {name} to {outer.value!r}, so {origins} cannot set a key inside it",
        hint=f"instead of both: --set {assigned}",
    )


def _unknown_key(setting: Setting, known: list[str]) -> ConfigError:
    name = setting.key[0]
    inner = {k.name: f"{s}.{k.name}" for s, cls in PLAIN_SECTIONS.items() for k in describe(cls)}
    near = inner.get(name) or did_you_mean(name, known) or inner.get(did_you_mean(name, inner) or "")
    hint = f"did you mean {near!r}?" if near else f"known keys: {', '.join(known)}"
    return ConfigError(f"{setting.origin}: unknown key {name!r}", hint=hint)


def _assign(section: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        inner = section.get(part)
        section[part] = dict(inner) if isinstance(inner, dict) else {}
        section = section[part]
    section[path[-1]] = value


def _checked(
    top: dict[str, Any], sections: dict[str, dict[str, Any]], origins: Mapping[str, str], problems: list[SmolLM3Error]
) -> RunConfig | None:
    """The typed configuration, or None with what is wrong appended to `problems`."""
    fields: dict[str, Any] = {}
    for name in COMPONENT_SECTIONS:
        options = dict(sections[name])
        chosen = options.pop("name", None)
        if chosen is not None and not isinstance(chosen, str):
            where = origins.get(f"{name}.name", name)
            problems.append(ConfigError(f"{where}: {name}.name: expected text, got {chosen!r}"))
            chosen = None
        fields[name] = ComponentConfig(name=chosen, options=options)
    for name, cls in PLAIN_SECTIONS.items():
        inside = {k.removeprefix(f"{name}."): v for k, v in origins.items() if k.startswith(f"{name}.")}
        try:
            fields[name] = build(cls, sections[name], name, inside)
        except Problems as several:
            problems += several.problems
        except ConfigError as one:
            problems.append(one)
    plain = _plain_fields()
    problems += option_problems(plain, top, "", origins)
    if problems:
        return None
    typed = build(plain, top, "")
    return RunConfig(**fields, **{f.name: getattr(typed, f.name) for f in dataclasses.fields(plain)})


def _plain_fields() -> Any:
    """The top-level keys that are single values, as an options dataclass of their own."""
    from smollm3_finetune.config.options import field_types

    types = field_types(RunConfig)
    rest = [f for f in dataclasses.fields(RunConfig) if f.name not in (*COMPONENT_SECTIONS, *PLAIN_SECTIONS)]
    return dataclasses.make_dataclass(
        "RunConfig",
        [(f.name, types[f.name], dataclasses.field(default=f.default, metadata=f.metadata)) for f in rest],
        frozen=True,
        kw_only=True,
    )


def as_dict(config: RunConfig) -> dict[str, Any]:
    """A configuration as plain values, in the order of the schema, as `run.yaml` holds it."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(value, ComponentConfig):
            out[f.name] = {"name": value.name, **plain(value.options)}
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            out[f.name] = plain(dataclasses.asdict(value))
        else:
            out[f.name] = plain(value)
    return out


def plain(value: Any) -> Any:
    """Tuples as lists, all the way down, for YAML and JSON."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
