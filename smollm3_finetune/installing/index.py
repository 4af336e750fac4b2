"""The index of plugins: what each distribution offers, as data in this package, plus a newer file if named.

No plugin and no library of one is imported. `scripts/plugin_index.py` writes the file, `plugins index` a newer one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from smollm3_finetune.components.contract import NAME
from smollm3_finetune.components.kinds import KINDS
from smollm3_finetune.components.registry import INDEX_FILE, INDEX_VARIABLE
from smollm3_finetune.errors import ConfigError, did_you_mean

FORMAT = 1
DISTRIBUTION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
KIND_NAMES = tuple(k.name for k in KINDS)


@dataclass(frozen=True, kw_only=True)
class IndexedComponent:
    kind: str
    name: str
    aliases: tuple[str, ...] = ()
    summary: str = ""


@dataclass(frozen=True, kw_only=True)
class IndexedPlugin:
    """A distribution of the index."""

    name: str
    summary: str
    plugins: tuple[str, ...]
    """The names of its entry points."""
    components: tuple[IndexedComponent, ...]
    folder: str | None = None
    """Its folder in the repository of smollm3-finetune, if it is kept there."""
    published: bool = True
    """Whether it is on the package index, those of this repository in the same release as smollm3-finetune."""
    homepage: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(k for k in KIND_NAMES if any(c.kind == k for c in self.components))

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that finds it: its own, those of its entry points, its components and their aliases."""
        own = (n for c in self.components for n in (c.name, *c.aliases))
        return tuple(dict.fromkeys((self.name, *self.plugins, *own)))

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "summary": self.summary,
            "plugins": list(self.plugins),
            "components": [
                {"kind": c.kind, "name": c.name, "aliases": list(c.aliases), "summary": c.summary}
                for c in self.components
            ],
            "folder": self.folder,
            "published": self.published,
            "homepage": self.homepage,
        }


@dataclass(frozen=True)
class PluginIndex:
    """All plugins of the index, by name."""

    plugins: tuple[IndexedPlugin, ...]

    @cached_property
    def _by_name(self) -> Mapping[str, IndexedPlugin]:
        return {canonicalize_name(p.name): p for p in self.plugins}

    def with_newer(self, other: PluginIndex) -> PluginIndex:
        """This index with the plugins of another one, which replace those of the same name."""
        return PluginIndex(tuple({**self._by_name, **other._by_name}.values()))

    def distribution(self, name: str) -> IndexedPlugin | None:
        """The plugin of this distribution name."""
        return self._by_name.get(canonicalize_name(name))

    def find(self, name: str) -> IndexedPlugin | None:
        """The plugin that a user calls `name`: a distribution, a plugin or a component that it offers.

        Raises ConfigError if several distributions offer it.
        """
        if (own := self.distribution(name) or self.distribution(f"smollm3-{name}")) is not None:
            return own
        lower = name.lower()
        for found in (
            [p for p in self.plugins if lower in p.plugins],
            [p for p in self.plugins if lower in p.names],
        ):
            if len(found) > 1:
                names = [p.name for p in found]
                raise ConfigError(f"{name!r} is offered by {' and '.join(names)}",
                                  hint=" or ".join(f"smollm3 plugins install {n}" for n in names))  # fmt: skip
            if found:
                return found[0]
        return None

    def near(self, name: str) -> str | None:
        """The name of the index that is most similar to a mistyped one."""
        return did_you_mean(name.lower(), dict.fromkeys(n for p in self.plugins for n in p.names))

    def search(self, words: Iterable[str]) -> list[IndexedPlugin]:
        """The plugins in which every word occurs; those with a word as a name come first."""
        wanted = [w.lower() for w in words]
        found = [p for p in self.plugins if _has_all(_text(p), wanted)]
        return sorted(found, key=lambda p: (not any(w in p.names for w in wanted), p.name))


def _has_all(text: str, words: Iterable[str]) -> bool:
    return all(w in text for w in words)


def _text(plugin: IndexedPlugin) -> str:
    about = (f"{c.kind} {c.name} {' '.join(c.aliases)} {c.summary}" for c in plugin.components)
    return "\n".join((plugin.name, plugin.summary, *plugin.plugins, *about)).lower()


def embedded_index() -> PluginIndex:
    """The index in this package."""
    return parsed(INDEX_FILE.read_text(encoding="utf-8"), str(INDEX_FILE))


def plugin_index(newer: str | None = None) -> PluginIndex:
    """The index in this package, and over it that of a file or a URL, which `--index` names or else the variable.

    Raises ConfigError if that one is invalid.
    """
    index, origin = embedded_index(), "--index"
    if newer is None:
        newer, origin = os.environ.get(INDEX_VARIABLE) or None, INDEX_VARIABLE
    if newer is None:
        return index
    from smollm3_finetune.installing.failures import without_secrets
    from smollm3_finetune.installing.index_source import index_text

    return index.with_newer(parsed(index_text(newer, origin), f"{without_secrets(newer)} ({origin})"))


def parsed(text: str, source: str) -> PluginIndex:
    """The index in a JSON text. Raises ConfigError that names the first wrong value."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"the plugin index {source} is not valid JSON: {e}", hint=_HINT) from e
    if not isinstance(value, dict) or "plugins" not in value:
        raise ConfigError(f"{source} is not a plugin index: it has no key 'plugins'", hint=_HINT)
    if value.get("format") != FORMAT:
        raise ConfigError(f"the plugin index {source} has format {value.get('format')!r}, this smollm3 reads {FORMAT}",
                          hint="pip install --upgrade smollm3-finetune")  # fmt: skip
    plugins = value["plugins"]
    if not isinstance(plugins, list):
        raise ConfigError(f"the plugin index {source}: plugins must be a list", hint=_HINT)
    return PluginIndex(tuple(_plugin(p, f"the plugin index {source}: plugin {n}") for n, p in enumerate(plugins, 1)))


_HINT = "see the format in docs/installing-plugins.md"


def _plugin(value: Any, where: str) -> IndexedPlugin:
    entry = _Entry(value, where)
    name = entry.text("name")
    if not DISTRIBUTION.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} is not the name of a distribution", hint=_HINT)
    folder = entry.text("folder", required=False) or None
    if folder is not None and (".." in Path(folder).parts or Path(folder).is_absolute()):
        raise ConfigError(f"{where}: folder {folder!r} must be below the repository", hint=_HINT)
    published = entry.value.get("published", True)
    if not isinstance(published, bool):
        raise ConfigError(f"{where}: published must be true or false", hint=_HINT)
    return IndexedPlugin(
        name=name,
        summary=entry.text("summary", required=False),
        plugins=tuple(entry.names("plugins")),
        components=tuple(_component(c, f"{where}, component {n}") for n, c in enumerate(entry.list("components"), 1)),
        folder=folder,
        published=published,
        homepage=entry.text("homepage", required=False),
    )


def _component(value: Any, where: str) -> IndexedComponent:
    entry = _Entry(value, where)
    kind, name = entry.text("kind"), entry.text("name")
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} is not the name of a component", hint=_HINT)
    aliases = tuple(entry.names("aliases"))
    return IndexedComponent(kind=kind, name=name, aliases=aliases, summary=entry.text("summary", required=False))


@dataclass(frozen=True)
class _Entry:
    """An object of the index, whose values are checked when they are read."""

    value: Any
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.value, dict):
            raise ConfigError(f"{self.where} must be an object", hint=_HINT)

    def text(self, key: str, required: bool = True) -> str:
        text = self.value.get(key)
        if text is None and not required:
            return ""
        if not isinstance(text, str) or not text.isprintable():
            raise ConfigError(f"{self.where}: {key} must be a line of text", hint=_HINT)
        return text

    def list(self, key: str) -> list[Any]:
        found = self.value.get(key, [])
        if not isinstance(found, list):
            raise ConfigError(f"{self.where}: {key} must be a list", hint=_HINT)
        return found

    def names(self, key: str) -> Iterator[str]:
        for name in self.list(key):
            if not isinstance(name, str) or not name.isprintable():
                raise ConfigError(f"{self.where}: {key} must be a list of names", hint=_HINT)
            yield name
