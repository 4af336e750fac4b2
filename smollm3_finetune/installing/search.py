"""The results of `plugins search`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.utils import canonicalize_name

from smollm3_finetune.components.snapshot import OfferedComponent
from smollm3_finetune.installing.environment import InstalledDistribution, repository
from smollm3_finetune.installing.index import IndexedComponent, IndexedPlugin, PluginIndex
from smollm3_finetune.installing.names import may_be_anybodys


@dataclass(frozen=True, kw_only=True)
class Row:
    """A plugin of the index, or an installed one, and whether it is installed."""

    plugin: IndexedPlugin
    installed: str | None
    """The installed version."""
    install: str | None
    """The command that installs it; None: it is installed, and the index does not have it."""

    def as_dict(self) -> dict[str, Any]:
        return {**self.plugin.as_dict(), "kinds": list(self.plugin.kinds), "installed": self.installed,
                "install": self.install}  # fmt: skip


def with_installed(
    index: PluginIndex, found: Mapping[str, InstalledDistribution], components: Iterable[OfferedComponent]
) -> PluginIndex:
    """The index with the installed plugins that it does not have. `components` are what the installed ones offer."""
    offered: dict[str, list[OfferedComponent]] = {}
    for component in components:
        offered.setdefault(canonicalize_name(component.distribution), []).append(component)
    return PluginIndex((
        *index.plugins,
        *(
            IndexedPlugin(
                name=one.name,
                summary=" ".join((one.about.metadata["Summary"] or "").split()),
                plugins=one.plugins,
                components=tuple(
                    IndexedComponent(kind=c.kind, name=c.name, aliases=c.aliases, summary=c.summary)
                    for c in offered.get(name, ())
                ),
            )
            for name, one in found.items()
            if one.is_plugin and index.distribution(name) is None
        ),
    ))  # fmt: skip


def search_rows(
    index: PluginIndex, words: Sequence[str], found: Mapping[str, InstalledDistribution],
    components: Iterable[OfferedComponent] = (),
) -> list[Row]:  # fmt: skip
    """The plugins of the index and the installed ones in which all words occur."""
    clone = repository()
    rows = []
    for plugin in with_installed(index, found, components).search(words):
        one = found.get(canonicalize_name(plugin.name))
        if index.distribution(plugin.name) is None:
            rows.append(Row(plugin=plugin, installed=one.version if one is not None else None, install=None))
            continue
        by_name = (clone is not None and plugin.folder is not None) or not may_be_anybodys(plugin, found)
        line = f"smollm3 plugins install {plugin.name}{'' if by_name else ' --find-links DIR'}"
        rows.append(Row(plugin=plugin, installed=one.version if one is not None else None, install=line))
    return rows
