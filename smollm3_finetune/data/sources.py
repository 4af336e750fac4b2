"""The sources of rows: files, globs, directories and Hub datasets, each with a weight."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smollm3_finetune.config.examples import example_of
from smollm3_finetune.config.options import build, describe, field_types
from smollm3_finetune.config.schema import SourceConfig
from smollm3_finetune.config.yaml12 import dump_yaml, parse_value
from smollm3_finetune.data.files import FORMATS, row_format
from smollm3_finetune.data.hub import commit_of, part_of
from smollm3_finetune.data.saved_datasets import saved_files
from smollm3_finetune.errors import ConfigError, DataError, did_you_mean
from smollm3_finetune.files.limits import not_regular
from smollm3_finetune.paths import is_hub_id, user_path

EMBEDDED = Path(__file__).parents[1] / "builtin" / "chat.jsonl"
EMBEDDED_NAME = "the built-in chat dataset"
SHOWN = 5
"""Data files that a hint lists."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of rows."""

    title: str
    """Its name in reports; unique within one `data.path`."""
    config: SourceConfig
    files: tuple[Path, ...] = ()
    hub: str | None = None
    """The id of a Hub dataset; None for files. After `pinned`, `config.revision` is a commit."""
    validation: bool = False
    """Whether it is named by `data.validation`: all its rows are held out."""


def find_sources(
    path: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None, key: str = "data.path"
) -> list[Source]:
    """The sources that a configuration key names. Does not read rows or use the network.

    Raises DataError or ConfigError if one does not exist.
    """
    if path is None:
        return [Source(title=EMBEDDED_NAME, config=SourceConfig(), files=(EMBEDDED,))]
    if isinstance(path, str | Mapping):
        return [_source(path, key)]
    entries = list(path)
    if not entries:
        raise ConfigError(f"{key} is an empty list", hint=f"--set {key}=FILE.jsonl")
    return with_unique_titles([_source(entry, f"{key}[{i}]") for i, entry in enumerate(entries)])


def find_validation(path: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]) -> list[Source]:
    """The sources that `data.validation` names. Raises ConfigError for a weight, which would have no effect."""
    sources = find_sources(path, "data.validation")
    if weighted := next((s for s in sources if s.config.weight != 1), None):
        raise ConfigError(
            f"data.validation: the weight {weighted.config.weight:g} of {weighted.title!r} has no effect: "
            "held-out rows are not trained on",
            hint="remove the weight",
        )
    return [replace(s, validation=True) for s in sources]


def pinned(source: Source) -> Source:
    """The source at a fixed commit if it is a Hub dataset, so that all later reads see the same rows.

    Raises DataError if the Hub cannot be asked.
    """
    if source.hub is None:
        return source
    return replace(source, config=replace(source.config, revision=commit_of(source.hub, source.config.revision)))


def with_unique_titles(sources: Sequence[Source]) -> list[Source]:
    """The sources, with a number added to each repeated title: `rows.jsonl`, `rows.jsonl (2)`."""
    titles: dict[str, Source] = {}
    for source in sources:
        title, times = source.title, 1
        while title in titles:
            times += 1
            title = f"{source.title} ({times})"
        titles[title] = replace(source, title=title)
    return list(titles.values())


def _title(text: str) -> str:
    """The path of a file, directory or glob, relative to the working directory if inside; run.yaml has it in full."""
    here = Path.cwd()
    return str(Path(text).relative_to(here)) if Path(text).is_relative_to(here) else text


def _source(entry: str | Mapping[str, Any], where: str) -> Source:
    values: Mapping[str, Any] = {"path": entry} if isinstance(entry, str) else entry
    _check_keys(values, where)
    config = SourceConfig(path=entry) if isinstance(entry, str) else _built(entry, where)
    text = config.path
    if not text:
        example = {"path": "rows.jsonl", **{name: value for name, value in values.items() if name != "path"}}
        raise ConfigError(f"{where}: the source has no path", hint=_assignment(where, example))
    path = user_path(text, "the data")
    title = _title(text)
    if path.is_file():
        _check_no_part(config, where, "is a file")
        return Source(title=title, config=config, files=(_supported(path),))
    if path.is_dir():
        if (saved := saved_files(path, text, config.split)) is not None:
            part = "" if config.split == SourceConfig.split else f"[{config.split}]"
            return Source(title=f"{title}{part}", config=config, files=tuple(saved))
        _check_no_part(config, where, "is a directory of files")
        inside = sorted(f for f in path.iterdir() if row_format(f))
        if not inside:
            raise DataError(f"the data directory {text!r} contains no data files ({FORMATS})", hint="--data FILE.jsonl")
        return Source(title=title, config=config, files=tuple(inside))
    if any(c in text for c in "*?["):
        matching = sorted(Path(f) for f in glob.glob(str(path), recursive=True) if Path(f).is_file())
        if not matching:
            found = _data_files(Path("."))
            hint = f"data files in the current directory: {found}" if found else "--data 'DIRECTORY/*.jsonl'"
            raise DataError(f"no file matches {text!r}", hint=hint)
        _check_no_part(config, where, "are files")
        return Source(title=title, config=config, files=tuple(_supported(f) for f in matching))
    if is_hub_id(text) and row_format(path) is None:
        part = part_of(config.subset, config.split)
        return Source(title=text if part == SourceConfig.split else f"{text}[{part}]", config=config, hub=text)
    if kind := not_regular(path):
        raise DataError(f"the data file {text!r} is {kind}, not a file", hint="write its content to a file first")
    raise DataError(f"the data file {text!r} does not exist", hint=_instead_of(path, text))


def _instead_of(path: Path, text: str) -> str:
    """The hint for a file that does not exist."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and all(user_path(part, "the data").exists() for part in parts if part):
        several = " ".join(f"--data {shlex.quote(part)}" for part in parts if part)
        return f"to use several files, repeat the option: {several}"
    inside = [f.name for f in path.parent.glob("*") if row_format(f)] if path.parent.is_dir() else []
    if (near := did_you_mean(path.name, inside)) is not None:
        return f"did you mean {str(path.parent / near)!r}?"
    place = "the current directory" if path.parent == Path(".") else path.parent
    return f"data files in {place}: {_data_files(path.parent)}" if inside else "--data FILE.jsonl"


def _data_files(directory: Path) -> str:
    """The names of the first data files of a directory; empty if it has none."""
    names = sorted(f.name for f in directory.glob("*") if row_format(f)) if directory.is_dir() else []
    rest = f", … ({len(names)} in total)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _built(entry: Mapping[str, Any], where: str) -> SourceConfig:
    """Raises ConfigError for an invalid value; the hint is the source with a valid one."""
    try:
        return build(SourceConfig, entry, where, typed=True)
    except ConfigError as e:
        types = field_types(SourceConfig)
        for info in describe(SourceConfig):
            if e.message.startswith(f"{where}.{info.name}: "):
                example = example_of(info, types[info.name], entry[info.name])
                if example is not None:
                    raise ConfigError(
                        e.message, hint=_assignment(where, {**entry, info.name: parse_value(example)})
                    ) from e
        raise


def _check_keys(entry: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for a key that a source does not have."""
    known = [info.name for info in describe(SourceConfig)]
    for key in entry:
        if key not in known:
            near = did_you_mean(str(key), known)
            if near is None:
                hint = f"keys of a source: {', '.join(known)}"
            else:
                hint = _assignment(where, {near if name == key else name: value for name, value in entry.items()})
            raise ConfigError(f"{where}: a source has no key {key!r}", hint=hint)


def _assignment(where: str, entry: Mapping[str, Any]) -> str:
    """The source as it is typed: as an option, or inside a list in a file."""
    value = dump_yaml(dict(entry), flow=True).strip()
    return f"--set {shlex.quote(f'{where}={value}')}" if "[" not in where else f"for example: {value}"


def _check_no_part(config: SourceConfig, where: str, what: str) -> None:
    """Raises ConfigError for options of Hub datasets beside files."""
    for name in ("split", "subset", "revision"):
        if getattr(config, name) != getattr(SourceConfig, name):
            kinds = "Hub datasets and saved datasets" if name == "split" else "Hub datasets"
            raise ConfigError(
                f"{where}: {name} applies to {kinds} only, and {config.path!r} {what}", hint=f"remove {name}"
            )


def _supported(file: Path) -> Path:
    if row_format(file) is None:
        raise DataError(
            f"the data file {str(file)!r} must have one of these extensions: {FORMATS}", hint="--data FILE.jsonl"
        )
    return file
