"""Merge the layers of a configuration: defaults, suggestions of components, a YAML file, the command line.

Every value has an origin. A layer is a flat list of `Setting`s; for each key, the last layer wins. A layer that
selects another component discards the options that earlier layers set for the previous one.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from smollm3_finetune.config.options import build, describe, key_of, option_problems, without_key
from smollm3_finetune.config.preset import with_presets
from smollm3_finetune.config.schema import COMPONENT_SECTIONS, PLAIN_SECTIONS, SOURCE_KEYS, ComponentConfig, RunConfig
from smollm3_finetune.config.settings import (
    DEFAULT,
    GIVEN,
    PRESET,
    LoadedConfig,
    Setting,
    file_settings,
    mapping_settings,
)
from smollm3_finetune.config.yaml12 import dump_yaml, parse_value
from smollm3_finetune.errors import ConfigError, Problems, SmolLM3Error, did_you_mean, raise_all

__all__ = [
    "DEFAULT", "GIVEN", "LoadedConfig", "Setting", "as_dict", "assemble", "assignment", "file_settings",
    "mapping_settings", "plain", "same_component", "set_options", "ship_config",
]  # fmt: skip
EPOCHS, MAX_STEPS = ("train", "epochs"), ("train", "max_steps")
"""Two settings for the length of a run: the one in the later layer wins."""
SHIP_AS = ("train", "ship_as")
"""A component inside a section: a name, or a mapping with a name and options."""
PATHS = (("data", "path"), ("data", "validation"), ("calibration", "path"))
"""Keys for which text, alone or in a list, means a mapping with only a `path`."""


def assignment(text: str, flag: str, section: str | None = None) -> Setting:
    """The setting of a `KEY=VALUE` on the command line. Raises ConfigError if the key or the `=` is missing."""
    key, equals, value = text.partition("=")
    path = tuple(p for p in key.strip().split(".") if p)
    if not equals or not path:
        inner = {k.name: f"{s}.{k.name}" for s, cls in PLAIN_SECTIONS.items() for k in describe(cls)}
        whole = key.strip() if section else inner.get(key.strip(), key.strip())
        example = shlex.quote(whole) if path else ("NAME" if section else "train.max_steps")
        raise ConfigError(f"{flag} takes KEY=VALUE, got {text!r}", hint=f"{flag} {example}=VALUE")
    if section is not None:
        path = (*section.split("."), *path)
    if len(path) == 1 and path[0] in COMPONENT_SECTIONS:
        path = (path[0], "name")
    return Setting(key=path, value=parse_value(value), origin=f"{flag} {key.strip()}")


def assemble(layers: Iterable[Iterable[Setting]]) -> LoadedConfig:
    """The configuration from its layers, validated except for the options of components.

    The presets that they name are the layers below them. Raises ConfigError or Problems with the origin of each invalid
    key.
    """
    given_layers = [list(layer) for layer in layers]
    if any(s.key == PRESET for layer in given_layers for s in layer):
        given_layers = with_presets(given_layers)
    values: dict[tuple[str, ...], Setting] = {}
    for given_layer in given_layers:
        layer = _marked(given_layer)
        for setting in layer:
            section = setting.key[0]
            if setting.key[1:] == ("name",) and section in COMPONENT_SECTIONS:
                before = values.get(setting.key)
                if before is not None and not same_component(before.value, setting.value):
                    values = {k: v for k, v in values.items() if k[0] != section}
            if setting.key[:2] == SHIP_AS:
                values = _without_former_format(values, setting)
        given = {s.key for s in layer}
        if EPOCHS in given and MAX_STEPS not in given:  # max_steps of an earlier layer must not override these epochs
            values.pop(MAX_STEPS, None)
        for setting in layer:
            values[setting.key] = setting
    if GIVEN in values and _are_names(values[GIVEN].value):
        names = [f"{section}.{name}" for section, found in _given(values).items() for name in found]
        names = sorted([*names, *(".".join(k) for k, s in values.items() if _is_ship_option(k) and s.given)])
        values[GIVEN] = replace(values[GIVEN], value=names)
    problems: list[SmolLM3Error] = []
    for setting in list(values.values()):
        if inside := _settings_inside(values, setting):  # otherwise one of the two would be ignored silently
            problems.append(_conflict(setting, inside))
            for inner in inside:
                del values[inner.key]
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {s: {} for s in (*COMPONENT_SECTIONS, *PLAIN_SECTIONS)}
    known = [key_of(f) for f in dataclasses.fields(RunConfig)]
    for key, setting in sorted(values.items(), key=lambda item: len(item[0])):  # a mapping before the keys inside it
        section = key[0]
        if section not in known:
            problems.append(_unknown_key(setting, known))
        elif section in sections:
            if len(key) == 1:
                problems.append(_not_a_section(setting, section))
            else:
                _assign(sections[section], key[1:], setting.value)
        elif len(key) > 1:
            problems.append(ConfigError(f"{setting.origin}: {section} is a single value and has no keys"))
        else:
            top[section] = setting.value
    origins = {".".join(k): s.origin for k, s in values.items()}
    if (ship := sections[SHIP_AS[0]].get(SHIP_AS[1])) is not None:
        problems += _settle_format(sections[SHIP_AS[0]], ship, origins)
    config = _checked(top, sections, _given(values), origins, problems)
    raise_all(problems)
    assert config is not None
    return LoadedConfig(config=config, origins=origins, settings=tuple(values.values()))


def _marked(layer: Iterable[Setting]) -> list[Setting]:
    """The settings of a layer. Options of components that its key `given` does not name were not set."""
    settings = [one for setting in layer for one in _expanded(setting)]
    names: Any = next((s.value for s in reversed(settings) if s.key == GIVEN), None)
    if not _are_names(names):
        return settings

    def marked(setting: Setting) -> Setting:
        name = setting.key[: 3 if _is_ship_option(setting.key) else 2]
        return replace(setting, given=".".join(name) in names)

    return [marked(s) if _is_option(s.key) or _is_ship_option(s.key) else s for s in settings]


def _expanded(setting: Setting) -> list[Setting]:
    """`train.ship_as` as settings of its name and of its options; every other setting as it is."""
    if setting.key != SHIP_AS or not isinstance(setting.value, str | Mapping):
        return [setting]
    values = {"name": setting.value} if isinstance(setting.value, str) else setting.value
    return [replace(setting, key=(*SHIP_AS, str(name)), value=value) for name, value in values.items()]


def _is_ship_option(key: tuple[str, ...]) -> bool:
    return len(key) > 2 and key[:2] == SHIP_AS and key[2] != "name"


def _without_former_format(values: dict[tuple[str, ...], Setting], setting: Setting) -> dict[tuple[str, ...], Setting]:
    """The values of earlier settings, without those of another format than the one that `setting` names."""
    if setting.key == SHIP_AS:  # none
        return {k: v for k, v in values.items() if k[:2] != SHIP_AS}
    values = {k: v for k, v in values.items() if k != SHIP_AS}
    before = values.get((*SHIP_AS, "name"))
    if setting.key[2:] != ("name",) or before is None or same_component(before.value, setting.value):
        return values
    return {k: v for k, v in values.items() if k[:2] != SHIP_AS}


def _settle_format(section: dict[str, Any], ship: Any, origins: dict[str, str]) -> list[SmolLM3Error]:
    """Make `train.ship_as` a name, or a mapping that begins with the name; returns what is wrong with it."""
    key = ".".join(SHIP_AS)
    if not isinstance(ship, Mapping):
        return []
    first = next((v for k, v in origins.items() if k.startswith(f"{key}.")), key)
    origins.setdefault(key, origins.get(f"{key}.name", first))
    name = ship.get("name")
    if not isinstance(name, str) or not name:
        del section[SHIP_AS[1]]
        wrong = "options are given without a name" if name is None else f"the name must be text, got {name!r}"
        return [ConfigError(f"{without_key(f'{first}: ')}{key}: {wrong}", hint="--ship-as NAME")]
    section[SHIP_AS[1]] = name if len(ship) == 1 else {"name": name, **{k: v for k, v in ship.items() if k != "name"}}
    return []


def _are_names(value: Any) -> bool:
    """Whether a value of `given` is a list of names; otherwise it is null or an error."""
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _given(values: Mapping[tuple[str, ...], Setting]) -> dict[str, frozenset[str]]:
    """The options of the component of each section that a user set."""
    found = [s.key for k, s in values.items() if _is_option(k) and s.given]
    return {section: frozenset(key[1] for key in found if key[0] == section) for section in COMPONENT_SECTIONS}


def _is_option(key: tuple[str, ...]) -> bool:
    return key[0] in COMPONENT_SECTIONS and len(key) > 1 and key[1] != "name"


def ship_config(config: RunConfig) -> ComponentConfig | None:
    """The format of `train.ship_as` and its options; None if it is not set."""
    ship = config.train.ship_as
    if ship is None:
        return None
    if isinstance(ship, str):
        return ComponentConfig(name=ship)
    prefix = f"{'.'.join(SHIP_AS)}."
    given = None
    if config.given is not None:
        given = frozenset(n.removeprefix(prefix) for n in config.given if n.startswith(prefix))
    options = {name: value for name, value in ship.items() if name != "name"}
    return ComponentConfig(name=ship["name"], options=options, given=given)


def same_component(one: Any, other: Any) -> bool:
    """Whether two names may mean the same component, such as `lora` and `smollm3-peft:lora`."""
    if one == other or not isinstance(one, str) or not isinstance(other, str):
        return bool(one == other)
    (one_from, _, one_name), (other_from, _, other_name) = one.rpartition(":"), other.rpartition(":")
    return one_name == other_name and not (one_from and other_from)


def _settings_inside(values: Mapping[tuple[str, ...], Setting], outer: Setting) -> list[Setting]:
    """The settings of keys inside `outer`; empty if its value is a mapping or None, which may have keys."""
    depth = len(outer.key)
    if depth == 1 or outer.value is None or isinstance(outer.value, dict):
        return []
    return [s for k, s in values.items() if len(k) > depth and k[:depth] == outer.key]


def _conflict(outer: Setting, inside: Sequence[Setting]) -> ConfigError:
    """The error for a value that conflicts with keys inside it. The hint is one value that sets both, if there is one.

    In `data.path.0.weight`, the number selects an entry of the list; without it, all entries are meant.
    """
    name, origins = ".".join(outer.key), " and ".join(s.origin for s in inside)
    message = f"{outer.origin} sets {name} to {outer.value!r}, so {origins} cannot set a key inside it"
    if outer.key not in PATHS:
        return ConfigError(message, hint=f"omit {origins}")
    unknown: list[str] = []
    entries = [
        dict(e) if isinstance(e, dict) else {"path": e}
        for e in (outer.value if isinstance(outer.value, list) else [outer.value])
    ]
    for inner in inside:
        first, *rest = inner.key[len(outer.key) :]
        number = int(first) if first.isdecimal() and rest else None
        key = ".".join(rest if number is not None else (first, *rest))
        if key not in SOURCE_KEYS:
            unknown.append(f"{without_key(f'{inner.origin}: ')}unknown key {'.'.join(inner.key)!r}")
            similar = did_you_mean(key, SOURCE_KEYS)
            if similar is None:
                return ConfigError(unknown[-1], hint=f"known keys: {', '.join(SOURCE_KEYS)}")
            key = similar
        if number is not None and number >= len(entries):
            found = f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, counted from 0"
            unknown.append(f"{inner.origin}: {name} has {found}")
            number = len(entries) - 1
        for entry in entries if number is None else [entries[number]]:
            entry[key] = inner.value
    whole = entries if isinstance(outer.value, list) else entries[0]
    assigned = shlex.quote(f"{name}={dump_yaml(whole, flow=True).strip()}")
    return ConfigError(unknown[0] if unknown else message, hint=f"to set both: --set {assigned}")


def _not_a_section(setting: Setting, section: str) -> ConfigError:
    name = section in COMPONENT_SECTIONS
    return ConfigError(
        f"{setting.origin}: expected {'a name or ' if name else ''}a mapping for {section}, got {setting.value!r}",
        hint=f"for example: {section}: NAME"
        if name
        else f"keys of {section}: {', '.join(k.name for k in describe(PLAIN_SECTIONS[section]))}",
    )


def _unknown_key(setting: Setting, known: list[str]) -> ConfigError:
    name, *rest = setting.key
    inner = {k.name: f"{s}.{k.name}" for s, cls in PLAIN_SECTIONS.items() for k in describe(cls)}
    similar = inner.get(name) or did_you_mean(name, known) or inner.get(did_you_mean(name, inner) or "")
    if similar in known and rest:
        name, similar = ".".join((name, *rest)), ".".join((similar, *rest))
    file = setting.origin.rpartition(":")[0]
    if name == "stages" and file:
        return ConfigError(f"{file} is a pipeline, not the configuration of a run",
                           hint=f"smollm3 pipeline run {shlex.quote(file)}")  # fmt: skip
    if name in ("grid", "random", "trials") and file:
        return ConfigError(f"{file} is a sweep, not the configuration of a run",
                           hint=f"smollm3 sweep run {shlex.quote(file)}")  # fmt: skip
    hint = f"did you mean {similar!r}?" if similar else f"known keys: {', '.join(known)}"
    return ConfigError(f"{without_key(f'{setting.origin}: ')}unknown key {name!r}", hint=hint)


def _assign(section: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        inner = section.get(part)
        section[part] = dict(inner) if isinstance(inner, dict) else {}
        section = section[part]
    section[path[-1]] = value


def _checked(
    top: dict[str, Any],
    sections: dict[str, dict[str, Any]],
    given: Mapping[str, frozenset[str]],
    origins: Mapping[str, str],
    problems: list[SmolLM3Error],
) -> RunConfig | None:
    """The typed configuration; None if it is invalid. Appends what is wrong to `problems`."""
    fields: dict[str, Any] = {}
    for name in COMPONENT_SECTIONS:
        options = dict(sections[name])
        chosen = options.pop("name", None)
        if chosen is not None and not isinstance(chosen, str):
            where = origins.get(f"{name}.name", name)
            problems.append(ConfigError(f"{where}: {name}.name: expected text, got {chosen!r}"))
            chosen = None
        fields[name] = ComponentConfig(
            name=chosen, options=options, given=None if given[name] >= options.keys() else given[name]
        )
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
    """An options dataclass of the top-level keys that are single values."""
    from smollm3_finetune.config.options import field_types

    types = field_types(RunConfig)
    rest = [f for f in dataclasses.fields(RunConfig) if f.name not in (*COMPONENT_SECTIONS, *PLAIN_SECTIONS)]
    return dataclasses.make_dataclass(
        "RunConfig",
        [(f.name, types[f.name], dataclasses.field(default=f.default, metadata=f.metadata)) for f in rest],
        frozen=True,
        kw_only=True,
    )


def set_options(config: RunConfig) -> tuple[str, ...]:
    """The options of components that a user set, such as `quant.bits`, as the key `given` lists them."""
    sections = {name: getattr(config, name).set_options() for name in COMPONENT_SECTIONS}
    if (ship := ship_config(config)) is not None:
        sections[".".join(SHIP_AS)] = ship.set_options()
    return tuple(sorted(f"{name}.{option}" for name, options in sections.items() for option in options))


def as_dict(config: RunConfig) -> dict[str, Any]:
    """A configuration as plain values in the order of the schema, as written to `run.yaml`."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(value, ComponentConfig):
            out[key_of(f)] = {"name": value.name, **plain(value.options)}
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            out[key_of(f)] = plain(dataclasses.asdict(value))
        else:
            out[key_of(f)] = plain(value)
    return out


def plain(value: Any) -> Any:
    """The value with all tuples, nested ones too, as lists, for YAML and JSON."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
