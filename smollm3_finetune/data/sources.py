"""The sources of rows: files, globs, directories and Hub datasets, each with a weight."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smollm3_finetune.config.options import build
from smollm3_finetune.config.schema import SourceConfig
from smollm3_finetune.data.files import FORMATS, row_format
from smollm3_finetune.data.hub import commit_of, part_of
from smollm3_finetune.data.saved_datasets import saved_files
from smollm3_finetune.errors import ConfigError, DataError
from smollm3_finetune.files.limits import not_regular
from smollm3_finetune.paths import is_hub_id, user_path

EMBEDDED = Path(__file__).parents[1] / "builtin" / "chat.jsonl"
EMBEDDED_NAME = "the built-in chat dataset"


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
    config = SourceConfig(path=entry) if isinstance(entry, str) else build(SourceConfig, entry, where, typed=True)
    text = config.path
    if not text:
        raise ConfigError(f"{where} has no path")
    path = user_path(text, "the data")
    title = _title(text)
    if path.is_file():
        return Source(title=title, config=config, files=(_supported(path),))
    if path.is_dir():
        if (saved := saved_files(path, text, config.split)) is not None:
            part = "" if config.split == SourceConfig.split else f"[{config.split}]"
            return Source(title=f"{title}{part}", config=config, files=tuple(saved))
        inside = sorted(f for f in path.iterdir() if row_format(f))
        if not inside:
            raise DataError(f"the data directory {text!r} holds no file of rows ({FORMATS})", hint="--data FILE.jsonl")
        return Source(title=title, config=config, files=tuple(inside))
    if any(c in text for c in "*?["):
        matching = sorted(Path(f) for f in glob.glob(str(path), recursive=True) if Path(f).is_file())
        if not matching:
            raise DataError(f"no file matches {text!r}", hint="quote the pattern: --data 'rows/*.jsonl'")
        return Source(title=title, config=config, files=tuple(_supported(f) for f in matching))
    if is_hub_id(text) and row_format(path) is None:
        part = part_of(config.subset, config.split)
        return Source(title=text if part == SourceConfig.split else f"{text}[{part}]", config=config, hub=text)
    if kind := not_regular(path):
        raise DataError(f"the data file {text!r} is {kind}, not a file", hint="write its content to a file first")
    near = sorted(f.name for f in path.parent.glob("*") if row_format(f))[:5] if path.parent.is_dir() else []
    place = "the current directory" if path.parent == Path(".") else path.parent
    hint = f"data files in {place}: {', '.join(near)}" if near else "--data FILE.jsonl"
    raise DataError(f"the data file {text!r} does not exist", hint=hint)


def _supported(file: Path) -> Path:
    if row_format(file) is None:
        raise DataError(f"the data file {str(file)!r} must be one of {FORMATS}", hint="--data FILE.jsonl")
    return file
