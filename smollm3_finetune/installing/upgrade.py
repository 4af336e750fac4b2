"""Which installed plugins are upgraded from a package index, and which are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from smollm3_finetune.errors import ConfigError, raise_all
from smollm3_finetune.installing.environment import InstalledDistribution
from smollm3_finetune.installing.failures import without_secrets
from smollm3_finetune.installing.index import PluginIndex
from smollm3_finetune.installing.names import may_be_anybodys, newest_file, of_file_name
from smollm3_finetune.installing.plan import newer
from smollm3_finetune.installing.requests import Request, path_request
from smollm3_finetune.installing.uninstall import installed_plugin


def upgrades(
    names: Sequence[str], found: Mapping[str, InstalledDistribution], index: PluginIndex, has_source: bool,
    has_index: bool = False, folders: Sequence[Path] = (),
) -> tuple[list[Request], dict[str, str]]:  # fmt: skip
    """The requests that upgrade the named plugins, or all; and why others are left out, by distribution.

    A plugin that came from a file, a directory or a URL is not on a package index, as far as anybody knows: it is left
    out, and refused if it is named, unless the user names a source. So is one whose name may be anybody's on the
    default package index, unless a folder that the user names has a newer file. Raises ConfigError for a name that is
    not that of an installed plugin.
    """
    named = [installed_plugin(n, found, index) for n in names]
    chosen = named or sorted((d for d in found.values() if d.is_plugin), key=lambda d: d.name)
    listed = {d.name: index.distribution(d.name) for d in chosen if not has_index}
    guarded = [d for d in chosen if (entry := listed.get(d.name)) is not None and may_be_anybodys(entry, found)]
    files = {d.name: _newer_file(d, folders) for d in guarded}
    left = {d.name: _why(d) for d in chosen if d.is_outside or (d.source is not None and not has_source)}
    left |= {d.name: _guard(folders) for d in guarded if d.name not in left and files[d.name] is None}
    if named:
        raise_all([ConfigError(f"{d.title} {left[d.name]}", hint=_instead(d)) for d in named if d.name in left])
    return [_request(d, files.get(d.name)) for d in chosen if d.name not in left], left


def _newer_file(one: InstalledDistribution, folders: Sequence[Path]) -> Path | None:
    file = newest_file(folders, one.name, SpecifierSet())
    return file if file is not None and newer(one.version, of_file_name(file.name)[1]) == "upgrade" else None


def _guard(folders: Sequence[Path]) -> str:
    """Why a plugin is left out whose name may be anybody's."""
    if folders:
        return f"has no newer file in {folders[0]}"
    return "was not published together with this smollm3-finetune, so its name may be anybody's on a package index"


def _why(one: InstalledDistribution) -> str:
    if one.is_outside:
        return f"is in {one.location}, which does not belong to this environment"
    return f"was installed from {one.folder or without_secrets(one.source or '')}, not from a package index"


def _instead(one: InstalledDistribution) -> str:
    if one.is_outside:
        return "remove that directory from PYTHONPATH, or use the environment that it belongs to"
    if one.editable:
        return "it is editable: change the files there"
    return f"smollm3 plugins install {one.folder or 'FILE, DIRECTORY or URL'}, or name a source: --find-links DIR"


def _request(one: InstalledDistribution, file: Path | None) -> Request:
    name = canonicalize_name(one.name)
    if file is None:
        return Request(text=one.name, argument=(one.name,), name=name, is_name=True)
    return replace(path_request(str(file), copies=True), text=one.name)
