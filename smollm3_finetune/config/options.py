"""Option dataclasses: description for help, and validation of the values that a user wrote.

Every option, in core's configuration and in every plugin, is a field made with `api.option()` in a frozen dataclass.
Describing them needs only the standard library, which keeps `--help` fast; validating values imports pydantic.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from smollm3_finetune.api.given import remember
from smollm3_finetune.errors import ConfigError, PluginError, SmolLM3Error, did_you_mean
from smollm3_finetune.model_files.dtypes import full_name

T = TypeVar("T")
UNREACHED = 10**9
"""An upper limit of this size only protects against overflow, and is not shown."""


@dataclass(frozen=True, kw_only=True)
class OptionInfo:
    """The description of an option in help."""

    name: str
    type: str
    default: Any
    help: str
    limits: Mapping[str, float]

    @property
    def range(self) -> str:
        """The limits in words, such as `at least 1`, or an empty string; no limit that nobody reaches."""
        words = {
            "ge": "at least",
            "gt": "greater than",
            "le": "at most",
            "lt": "less than",
            "multiple_of": "a multiple of",
        }
        return ", ".join(
            f"{words[k]} {v if isinstance(v, int) else f'{v:g}'}" for k, v in self.limits.items() if v < UNREACHED
        )


def key_of(field: dataclasses.Field[Any]) -> str:
    """The key of an option in a configuration: the name of its field, unless that is a keyword of Python."""
    return str(field.metadata.get("key", field.name))


PLURALS = {str: "texts", int: "integers", float: "numbers"}


def type_name(annotation: Any) -> str:
    """A type annotation in the words of help: `integer`, `nf4|fp4`, `text`, `list of strings`."""
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(str(a) for a in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join("none" if a is type(None) else type_name(a) for a in get_args(annotation))
    if origin in (tuple, list):
        inner = type_name(get_args(annotation)[0])
        plural = {"integer": "integers", "number": "numbers", "text": "strings", "mapping": "mappings"}
        return f"list of ({inner})" if " or " in inner else f"list of {plural.get(inner, inner)}"
    if origin in (dict, Mapping) and get_args(annotation)[1] in PLURALS:
        return f"mapping of names to {PLURALS[get_args(annotation)[1]]}"
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return "mapping"
    names = {bool: "true|false", str: "text", int: "integer", float: "number"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


@lru_cache(maxsize=256)
def field_types(cls: type) -> dict[str, Any]:
    """The annotations of an options dataclass, by field and by key. Raises PluginError if one cannot be resolved."""
    try:
        hints = typing.get_type_hints(cls)
        fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
        return {**hints, **{key_of(f): hints[f.name] for f in fields}}
    except (NameError, TypeError, SyntaxError) as e:
        raise PluginError(
            f"the options class {cls.__qualname__} has an annotation that cannot be resolved: {e}",
            hint=f"import the type in {cls.__module__}, outside of `if TYPE_CHECKING:`",
        ) from e


def describe(cls: type) -> list[OptionInfo]:
    """The options of a dataclass, in the order of its fields. Raises PluginError if it is not a dataclass."""
    if not dataclasses.is_dataclass(cls):
        raise PluginError(
            f"the options class {cls.__qualname__} is not a dataclass", hint="@dataclass(frozen=True, kw_only=True)"
        )
    hints = field_types(cls)
    infos = []
    for f in dataclasses.fields(cls):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        default = None if default is dataclasses.MISSING else default
        infos.append(
            OptionInfo(
                name=key_of(f),
                type=type_name(hints[f.name]),
                default=default,
                help=f.metadata.get("help", ""),
                limits=f.metadata.get("limits", {}),
            )
        )
    return infos


@lru_cache(maxsize=256)
def pydantic_model(cls: type) -> Any:
    """A pydantic model with the fields, limits and help of an options dataclass; unknown keys are errors."""
    from pydantic import ConfigDict, Field, create_model

    hints = field_types(cls)
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        limits = dict(f.metadata.get("limits", {}))
        help_text = f.metadata.get("help") or None
        if dataclasses.is_dataclass(hints[f.name]):
            nested = pydantic_model(hints[f.name])
            fields[key_of(f)] = (nested, Field(default_factory=nested, description=help_text))
        elif f.default_factory is not dataclasses.MISSING:
            factory: Any = f.default_factory
            fields[key_of(f)] = (hints[f.name], Field(default_factory=factory, description=help_text, **limits))
        else:
            default = ... if f.default is dataclasses.MISSING else f.default
            fields[key_of(f)] = (hints[f.name], Field(default=default, description=help_text, **limits))
    config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False, coerce_numbers_to_str=True)
    return create_model(cls.__name__, __config__=config, __doc__=cls.__doc__, **fields)


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON schema of an options dataclass: the types of its values, without the other ways to write them."""
    schema: dict[str, Any] = pydantic_model(cls).model_json_schema()
    return schema


def _explain(error: Mapping[str, Any], infos: Mapping[str, OptionInfo]) -> str:
    """The expected and the found value, for one pydantic error."""
    name = str(error["loc"][0]) if error["loc"] else ""
    info = infos.get(name)
    if error["type"] == "missing":
        return "a value is required"
    found = f"got {error['input']!r}"
    if info is None:
        return f"{error['msg']}, {found}"
    kind, unset = info.type.removesuffix(" or none"), "none" if info.default is None else "off"
    or_none = f" or {unset}" if info.type.endswith(" or none") else ""
    expected = f"{kind} ({info.range}){or_none}" if info.range else f"{kind}{or_none}"
    return f"expected {expected}, {found}"


def words_for_none(annotation: Any) -> tuple[str, ...]:
    """The words for no value of an option. Text has none, and for true or false, `off` is false."""
    kinds, own = _kinds(annotation), _words(annotation)
    if str in kinds:
        return ()
    return tuple(w for w in ("none", "off") if w not in own and (w == "none" or bool not in kinds))


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The types of a union; of another annotation, itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _words(annotation: Any) -> set[Any]:
    """The fixed values that an option accepts."""
    return {word for kind in _kinds(annotation) if get_origin(kind) is Literal for word in get_args(kind)}


def split_lists(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the current option names, with lists, `none` and short names of dtypes converted.

    For a list option, `q_proj,v_proj` or a single value becomes a list. `none` and `off` become None, unless the option
    accepts text, which could be that word; for true or false, `off` is false. An option with fixed words that include
    a dtype accepts its short name too: `bf16`.
    """
    hints = field_types(cls)
    out = _with_current_names(cls, values)
    for name, value in list(out.items()):
        if type(None) in get_args(hints.get(name)) and isinstance(value, str) and value in words_for_none(hints[name]):
            out[name] = None
        out[name] = _with_full_name(out[name], hints.get(name))
        if get_origin(hints.get(name)) is tuple and not isinstance(value, list | tuple | dict | None):
            parts = value.split(",") if isinstance(value, str) else [value]
            kind = get_args(hints[name])[0]
            out[name] = [_number(p.strip(), kind) if isinstance(p, str) else p for p in parts if p != ""]
        if isinstance(out[name], list) and get_origin(hints.get(name)) is tuple:
            out[name] = [_with_full_name(part, get_args(hints[name])[0]) for part in out[name]]
    return out


def _with_full_name(value: Any, annotation: Any) -> Any:
    """The full name of a dtype that the annotation has by this name only; other values as they are."""
    if not isinstance(value, str):
        return value
    words = _words(annotation)
    return full_name(value) if value not in words and full_name(value) in words else value


def _number(text: str, kind: Any) -> Any:
    """The number in a part of a list that is written with commas; the text if numbers are not expected."""
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError:
        return text


def _has_type(value: Any, annotation: Any, *, quoted: bool) -> bool:
    """Whether a value can be meant for an annotation, before limits are checked.

    pydantic alone takes true for 1. With `quoted`, numbers as text are accepted, as from Python callers; in a file,
    `"8"` is text, and the JSON schema of the configuration agrees.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_has_type(value, a, quoted=quoted) for a in arguments)
    if annotation is type(None):
        return value is None
    if origin is Literal:
        return any(a == value and isinstance(a, bool) == isinstance(value, bool) for a in arguments)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_has_type(v, arguments[0], quoted=quoted) for v in value)
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        inner = arguments[1] if arguments else Any
        return isinstance(value, Mapping) and (
            inner is Any or all(_has_type(v, inner, quoted=quoted) for v in value.values())
        )
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type) and isinstance(value, Mapping):
        inner = field_types(annotation)
        return all(_has_type(v, inner[k], quoted=quoted) for k, v in value.items() if k in inner)
    if annotation in (int, float):
        return not isinstance(value, bool) and (quoted or not isinstance(value, str))
    return annotation is not str or not isinstance(value, bool)


def _with_current_names(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the current names of their options; former spellings of values are replaced too."""
    out = dict(values)
    for f in dataclasses.fields(cls):
        former, renamed = f.metadata.get("former_name"), f.metadata.get("former_values", {})
        if former in out and f.name not in out:
            out[f.name] = out.pop(former)
        if f.name not in out:
            continue
        value = out[f.name]
        if None in renamed and isinstance(value, str) and value in words_for_none(field_types(cls)[f.name]):
            value = None
        if value is None or isinstance(value, str):
            out[f.name] = renamed.get(value, value)
            if value is None and value in renamed and out[f.name] == f.default:  # nobody set it
                del out[f.name]
    return out


def option_problems(
    cls: type,
    values: Mapping[str, Any],
    section: str,
    where: Mapping[str, str],
    owner: str | None = None,
    *,
    typed: bool = False,
) -> list[SmolLM3Error]:
    """Everything that is wrong with `values` as options of `cls`; empty if they are valid.

    `section` is the section for the message (`quant`; empty for the top level), `where` maps each key to its origin
    (`run.yaml:7`). `owner` is the component whose options they are (`adapter 'lora'`); None: a configuration section.
    Numbers as text are valid unless they come from a file, or from another place where values are `typed`.
    """
    from pydantic import ValidationError

    from smollm3_finetune.config.examples import value_hint

    infos = {i.name: i for i in describe(cls)}
    values = split_lists(cls, values)
    problems: list[SmolLM3Error] = []

    def origin(key: str) -> str:
        return f"{where[key]}: " if where.get(key) else ""

    for key in values:
        if key not in infos:
            similar = did_you_mean(str(key), infos)
            hint = (
                f"{'its options' if owner else 'known keys'}: {', '.join(infos)}"
                if infos
                else f"{owner or 'it'} has no options; to use a different one: --{section} NAME"
            )
            hint = f"did you mean {similar if owner else _full(section, similar)!r}?" if similar else hint
            what = f"{owner} has no option {key!r}" if owner else f"unknown key {_full(section, key)!r}"
            problems.append(ConfigError(f"{without_key(origin(key))}{what}", hint=hint))
    for name, found in _invalid_defaults(cls):
        if name not in values:
            key = _full(section, name)
            problems.append(PluginError(f"the default of {key} is invalid: {found}",
                                        hint=f"set {key}, and report this to the plugin's author"))  # fmt: skip
    hints = field_types(cls)
    wrong: dict[str, str] = {}
    for name, value in values.items():
        from_file = bool(where.get(name)) and not where[name].startswith("--")
        if name in infos and not _has_type(value, hints[name], quoted=not (typed or from_file)):
            wrong[name] = _explain({"loc": (name,), "type": "", "input": value}, infos)
    try:
        pydantic_model(cls).model_validate({k: v for k, v in values.items() if k in infos})
    except ValidationError as e:
        for error in e.errors(include_url=False):
            name = str(error["loc"][0]) if error["loc"] else ""  # pydantic reports every branch of a union
            wrong.setdefault(name, _explain({**error, "input": values.get(name, error["input"])}, infos))
    for name, found in wrong.items():
        named = where.get(name, "").startswith("--")  # the flag names the option already
        place = where[name] if named else f"{origin(name)}{_full(section, name)}"
        example = value_hint(infos[name], hints[name], place, values.get(name)) if name in infos else None
        problems.append(ConfigError(f"{place}: {found}", hint=example))
    return problems


def without_key(origin: str) -> str:
    """`--set: ` for `--set train.max_stepz: `, in front of a message that names the key itself."""
    return "--set: " if origin.startswith("--set ") else origin


def _full(section: str, name: Any) -> str:
    return f"{section}.{name}" if section else str(name)


@lru_cache(maxsize=256)
def _invalid_defaults(cls: type) -> tuple[tuple[str, str], ...]:
    """The options whose default is invalid, and why. Nested sections are checked separately."""
    from pydantic import ValidationError

    hints, infos = field_types(cls), {i.name: i for i in describe(cls)}
    plain = [f for f in dataclasses.fields(cls) if not dataclasses.is_dataclass(hints[f.name])]
    given = {
        key_of(f): infos[key_of(f)].default
        for f in plain
        if (f.default, f.default_factory) != (dataclasses.MISSING,) * 2
    }
    try:
        pydantic_model(cls).model_validate(given)
    except ValidationError as e:
        wrong = {str(error["loc"][0]): error for error in reversed(e.errors(include_url=False)) if error["loc"]}
        return tuple((n, _explain({**wrong[n], "input": given[n]}, infos)) for n in given if n in wrong)
    return ()


def build(
    cls: Callable[..., T],
    values: Mapping[str, Any],
    section: str,
    where: Mapping[str, str] | None = None,
    owner: str | None = None,
    *,
    typed: bool = False,
    given: Collection[str] | None = None,
) -> T:
    """An instance of the options dataclass `cls` from plain values, which may be text from the command line.

    `given` are the names in `values` that a user set; None: all. Also set is what differs from its default.
    Raises ConfigError or Problems with section, key, origin, expected and found value if a value is invalid. A
    ValueError from `__post_init__` of the class becomes a ConfigError.
    """
    from smollm3_finetune.errors import raise_all

    kind = typing.cast(type, cls)
    raise_all(option_problems(kind, values, section, where or {}, owner, typed=typed))
    current = split_lists(kind, values)
    validated = pydantic_model(kind).model_validate(current)
    names = (
        current if given is None else current.keys() & split_lists(kind, {k: values[k] for k in values if k in given})
    )
    try:
        return remember(typing.cast(T, _construct(kind, validated)), names)
    except ValueError as e:
        raise ConfigError(f"{section}: {e}") from e
    except SmolLM3Error:
        raise
    except Exception as e:
        if owner is None:
            raise
        raise PluginError(f"the options of {owner} failed in __post_init__: {type(e).__name__}: {e}",
                          hint="to see the traceback: --debug") from e  # fmt: skip


def _construct(cls: Any, validated: Any) -> Any:
    """The dataclass from the validated pydantic model of the same fields, nested sections included."""
    kwargs = {}
    for f in dataclasses.fields(cls):
        value = getattr(validated, key_of(f))
        nested = field_types(cls)[f.name]
        kwargs[f.name] = _construct(nested, value) if dataclasses.is_dataclass(nested) else value
    return cls(**kwargs)
