"""Which installed plugins are upgraded from a package index, and which are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from packaging.utils import canonicalize_name

from smollm3_finetune.errors import ConfigError, raise_all
from smollm3_finetune.installing.environment import InstalledDistribution
from smollm3_finetune.installing.index import PluginIndex
from smollm3_finetune.installing.requests import Request
from smollm3_finetune.installing.uninstall import installed_plugin


def upgrades(
    names: Sequence[str], found: Mapping[str, InstalledDistribution], index: PluginIndex, has_source: bool
) -> tuple[list[Request], dict[str, str]]:
    """The requests that upgrade the named plugins, or all; and why others are left out, by distribution.

    A plugin that came from a file, a directory or a URL is not on a package index, as far as anybody knows: it is left
    out, and refused if it is named, unless the user names a source. Raises ConfigError for a name that is not that of
    an installed plugin.
    """
    named = [installed_plugin(n, found, index) for n in names]
    chosen = named or sorted((d for d in found.values() if d.is_plugin), key=lambda d: d.name)
    left = {d.name: _why(d) for d in chosen if d.is_outside or (d.source is not None and not has_source)}
    if named:
        raise_all([ConfigError(f"{d.title} {left[d.name]}", hint=_instead(d)) for d in named if d.name in left])
    return [_request(d) for d in chosen if d.name not in left], left


def _why(one: InstalledDistribution) -> str:
    if one.is_outside:
        return f"is in {one.location}, which does not belong to this environment"
    return f"was installed from {one.folder or one.source}, not from a package index"


def _instead(one: InstalledDistribution) -> str:
    if one.is_outside:
        return "remove that directory from PYTHONPATH, or use the environment that it belongs to"
    if one.editable:
        return "it is editable: change the files there"
    return f"smollm3 plugins install {one.folder or 'FILE, DIRECTORY or URL'}, or name a source: --find-links DIR"


def _request(one: InstalledDistribution) -> Request:
    return Request(text=one.name, argument=(one.name,), name=canonicalize_name(one.name), is_name=True)
