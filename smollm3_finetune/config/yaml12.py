"""Reading and writing YAML 1.2, with the line of every key: `2e-5` is a number and `no` is a word."""

from __future__ import annotations

import datetime
import io
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smollm3_finetune.errors import ConfigError, did_you_mean
from smollm3_finetune.files.limits import CONFIG_SIZE, DEPTH, YAML_VALUES, BeyondLimit, read_text, too_deep

TAGS = {"!", *(f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map"))}
"""The tags that are taken; any other may stand for an object that is not plain data."""
SHOWN = 5
"""Names of files that a hint lists."""


def _plain(value: Any) -> Any:
    """A value of ruamel.yaml as plain Python."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, datetime.date):  # the YAML 1.2 core schema has no dates: keep it as text
        return value.isoformat()
    for cls in (int, float, str):
        if isinstance(value, cls):
            return cls(value)
    return str(getattr(value, "value", value))  # text with a tag, such as `!!str 5`


def _lines(node: Any, origin: str, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """The origin (`run.yaml:7`) of each key of nested mappings and of each entry of lists, by path."""
    found: dict[tuple[str, ...], str] = {}
    if isinstance(node, list):
        for index, value in enumerate(node):
            path = (*prefix, str(index))
            try:
                found[path] = f"{origin}:{node.lc.item(index)[0] + 1}"  # type: ignore[attr-defined]
            except (KeyError, TypeError, AttributeError):
                found[path] = origin
            found |= _lines(value, origin, path)
    if isinstance(node, Mapping):
        for key, value in node.items():
            path = (*prefix, str(key))
            try:
                found[path] = f"{origin}:{node.lc.key(key)[0] + 1}"  # type: ignore[attr-defined]
            except (KeyError, TypeError, AttributeError):  # merged with `<<`: its line is unknown
                found[path] = origin
            found |= _lines(value, origin, path)
    return found


def _check_size(text: str) -> None:
    """Raises BeyondLimit if YAML text is nested too deeply, or has too many values once its aliases are replaced.

    Raises ValueError for a tag outside of `TAGS`. Only events are read, because a small file can stand for
    billions of values: `a: &a [x, x]`, `b: &b [*a, *a]`, …
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    limit, deepest = YAML_VALUES.value(), DEPTH.value()
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []
    """The anchor of each collection that is being read, and the values before it."""
    total = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, CollectionStartEvent):
            open_.append((event.anchor, total))
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = limit  # an alias inside its own collection never ends
        elif isinstance(event, CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, AliasEvent):
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        tag = getattr(event, "tag", None)
        if tag is not None and str(tag) not in TAGS:
            raise ValueError(f"line {event.start_mark.line + 1}: the tag {tag} is not supported")
        if len(open_) > deepest:
            raise too_deep()
        if total > limit:
            raise BeyondLimit(f"it has more than {limit} values, aliases included", YAML_VALUES)


def _instead_of(path: Path) -> str:
    """The hint for a file that does not exist: the YAML files in its directory, the most similar one if there is."""
    here = path.parent
    names = sorted(f.name for f in here.glob("*.y*ml") if f.is_file()) if here.is_dir() else []
    if (near := did_you_mean(path.stem, [Path(name).stem for name in names])) is not None:
        return f"did you mean {str(here / next(n for n in names if Path(n).stem == near))!r}?"
    place = "the current directory" if here == Path() else str(here)
    shown = ", ".join(names[:SHOWN]) + (f", … ({len(names)} in total)" if len(names) > SHOWN else "")
    return f"YAML files in {place}: {shown}" if names else f"ls {shlex.quote(str(here))}"


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """The mapping in a YAML file and the line of each key. Raises ConfigError with file and line."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        text = read_text(path, CONFIG_SIZE)
    except FileNotFoundError as e:
        raise ConfigError(f"the configuration file {path} does not exist", hint=_instead_of(path)) from e
    except (OSError, ValueError) as e:
        hint = e.limit.hint if isinstance(e, BeyondLimit) else None
        raise ConfigError(f"the configuration file {path} cannot be read: {e}", hint=hint) from e
    try:
        _check_size(text)
        node = YAML(typ="rt").load(text)
    except BeyondLimit as e:
        raise ConfigError(f"the configuration file {path} cannot be used: {e}", hint=e.limit.hint) from e
    except MarkedYAMLError as e:
        line = f":{e.problem_mark.line + 1}" if e.problem_mark else ""
        rows = next((line for line in text.splitlines() if line.strip()), "").startswith('{"')
        hint = f"for rows: --data {shlex.quote(str(path))}" if rows else "check the indentation and the quotes there"
        raise ConfigError(f"{path}{line}: not valid YAML: {e.problem}", hint=hint) from e
    except (YAMLError, ValueError, RecursionError) as e:  # ValueError: text that looks like a date but is not one
        raise ConfigError(f"{path}: not valid YAML: {e}") from e
    if node is None:
        return {}, {}
    if not isinstance(node, Mapping):
        found = "a list" if isinstance(node, list) else f"the single value {node!r:.80}"
        raise ConfigError(f"{path}: expected a mapping, got {found}", hint="for example: model: tiny")
    return _plain(node), _lines(node, str(path))


def parse_value(text: str) -> Any:
    """A value typed on the command line: `4`, `2e-5`, `true`, `[q_proj, v_proj]`, `{a: 1}`; anything else is text."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        _check_size(text)
        value = _plain(YAML(typ="safe", pure=True).load(text)) if text.strip() else text
    except BeyondLimit as e:
        if text.lstrip()[:1] not in "[{":  # it would not be a list or mapping anyway
            return text
        raise ConfigError(f"the value {text[:40]!r}… cannot be used: {e}", hint=e.limit.hint) from e
    except (YAMLError, ValueError, RecursionError):
        return text
    if "#" in text and text.lstrip()[:1] not in "[{\"'":
        return text  # YAML would cut off a comment
    return text if isinstance(value, dict | list) and text.lstrip()[:1] not in "[{" else value


STARTS_PLAIN = re.compile("[A-Za-z0-9_./~+-]")
LINE_BREAKS = re.compile("[\n\r\x85\u2028\u2029]")


def dump_yaml(value: Any, *, flow: bool = False, encoding: str = "utf-8") -> str:
    """Plain values as YAML 1.2 text that is read as the same values; each scalar is on one line.

    With `flow`, everything is on one line in brackets, as the command line accepts it. If `encoding` lacks a
    character, all that are not ASCII are escaped.
    """
    text = _dumped(value, flow, escape=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return _dumped(value, flow, escape=True)
    return text


def _dumped(value: Any, flow: bool, *, escape: bool) -> str:
    from ruamel.yaml import YAML

    stream = io.StringIO()
    writer = YAML()
    writer.default_flow_style = flow
    writer.allow_unicode = not escape
    writer.version = None
    writer.width = sys.maxsize
    writer.representer.ignore_aliases = lambda _: True
    writer.dump(_quoted(value, flow), stream)
    return stream.getvalue()


def commented_yaml(
    values: Mapping[str, Any], comments: Mapping[str, str], *, indent: int = 0, encoding: str = "utf-8"
) -> str:
    """The entries of a mapping as YAML text, each with its comment if it has one.

    The comment is at the end of the first line, or above the entry if its first line cannot hold a comment. Every line
    begins with `indent` spaces.
    """
    out = []
    width = 47 - indent
    for key, value in values.items():
        first, *rest = dump_yaml({key: value}, encoding=encoding).splitlines()
        comment = comments.get(key)
        if not comment:
            out += [first, *rest]
        elif not rest or first.endswith(":"):
            out += [f"{first:<{width}} # {one_line(comment)}", *rest]
        else:
            out += [f"# {one_line(comment)}", first, *rest]
    return "\n".join(" " * indent + line for line in out)


def one_line(text: str) -> str:
    """The text for a comment: characters that YAML does not allow there, such as line breaks, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _quoted(value: Any, flow: bool) -> Any:
    """The value with double quotes around text that ruamel.yaml would write on several lines, or cannot read again."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, Mapping):
        return {_quoted(k, flow): _quoted(v, flow) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(v, flow) for v in value]
    if isinstance(value, str) and (LINE_BREAKS.search(value) or (flow and not STARTS_PLAIN.match(value))):
        return DoubleQuotedScalarString(value)
    return value
