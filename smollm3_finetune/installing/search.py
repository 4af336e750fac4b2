"""The results of `plugins search`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.utils import canonicalize_name

from smollm3_finetune.installing.environment import InstalledDistribution, from_package_index, repository
from smollm3_finetune.installing.index import IndexedPlugin, PluginIndex


@dataclass(frozen=True, kw_only=True)
class Row:
    """A plugin of the index, and whether it is installed."""

    plugin: IndexedPlugin
    installed: str | None
    """The installed version."""
    install: str
    """The command that installs it."""

    def as_dict(self) -> dict[str, Any]:
        return {**self.plugin.as_dict(), "kinds": list(self.plugin.kinds), "installed": self.installed,
                "install": self.install}  # fmt: skip


def search_rows(index: PluginIndex, words: Sequence[str], found: Mapping[str, InstalledDistribution]) -> list[Row]:
    """The plugins in which all words occur."""
    by_name = repository() is not None or from_package_index(found)
    rows = []
    for plugin in index.search(words):
        one = found.get(canonicalize_name(plugin.name))
        version = one.version if one is not None else None
        rows.append(Row(plugin=plugin, installed=version, install=_line(plugin, by_name)))
    return rows


def _line(plugin: IndexedPlugin, by_name: bool) -> str:
    """The command that installs a plugin, without the clone or with it."""
    needs_clone = plugin.folder is not None and not by_name
    if needs_clone or (not plugin.published and repository() is None):
        return f"smollm3 plugins install {plugin.name} --find-links DIR"
    return f"smollm3 plugins install {plugin.name}"
