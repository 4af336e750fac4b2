"""The results of `plugins search`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.utils import canonicalize_name

from smollm3_finetune.installing.environment import InstalledDistribution, repository
from smollm3_finetune.installing.index import IndexedPlugin, PluginIndex
from smollm3_finetune.installing.names import may_be_anybodys


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
    clone = repository()
    rows = []
    for plugin in index.search(words):
        one = found.get(canonicalize_name(plugin.name))
        by_name = (clone is not None and plugin.folder is not None) or not may_be_anybodys(plugin, found)
        line = f"smollm3 plugins install {plugin.name}{'' if by_name else ' --find-links DIR'}"
        rows.append(Row(plugin=plugin, installed=one.version if one is not None else None, install=line))
    return rows
