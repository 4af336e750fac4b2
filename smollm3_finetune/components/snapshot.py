"""What the installed plugins offer, as a small file in the cache: completion and root help import no plugin.

Every command that calls the hooks of plugins writes it, where it differs. It is valid for one environment in one state:
the entries of `sys.path`, the packages in them, and the files of the plugins. A state is read from `stat` alone; no
metadata of packages is parsed. Plugins of `-p` are not in it. A damaged file, or one of another state, is not used.

    <cache>/plugins/<environment>.json
"""

from __future__ import annotations

import contextlib
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from smollm3_finetune.cache.small import (
    DAMAGED,
    file_states,
    read_small,
    small_file,
    text,
    texts,
    unchanged,
    write_small,
)
from smollm3_finetune.version import __version__

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import Registry

FORMAT = 1
METADATA = (".dist-info", ".egg-info")
SWITCHED_OFF = ("1", "all", "true")
INSTALLED = ("built in", "entry point")
"""The origins of plugins that are in a snapshot."""

Folders = list[tuple[str, int]]
"""The entries of `sys.path` that may hold packages, each with its modification time; 0 if it does not exist."""


@dataclass(frozen=True)
class OfferedOption:
    """An option of a component."""

    name: str
    type: str
    default: str
    help: str
    values: tuple[str, ...]
    """Its possible values; empty if they are not listed."""


@dataclass(frozen=True)
class OfferedComponent:
    """A component, as far as help and completion need it."""

    kind: str
    """The name of its kind, such as `quantizer`."""
    name: str
    aliases: tuple[str, ...]
    summary: str
    distribution: str
    plugin: str
    options_class: str
    """The dotted name of its options."""
    options: tuple[OfferedOption, ...] | None = None
    """None: not known yet."""


@dataclass(frozen=True)
class OfferedPlugin:
    """A plugin."""

    name: str
    distribution: str
    version: str
    status: str
    """`active` or `broken`."""


@dataclass(frozen=True)
class Snapshot:
    """What the installed plugins and the built-in one offer."""

    plugins: tuple[OfferedPlugin, ...]
    components: tuple[OfferedComponent, ...]

    def of(self, kind: str) -> list[OfferedComponent]:
        """The components of a kind, sorted by name and distribution."""
        return sorted((c for c in self.components if c.kind == kind), key=lambda c: (c.name, c.distribution))

    def named(self, kind: str) -> list[tuple[str, OfferedComponent]]:
        """The components of a kind by the words that name them: with the distribution where several have one name."""
        found = self.of(kind)
        names = [c.name for c in found]
        return [(c.name if names.count(c.name) == 1 else f"{c.distribution}:{c.name}", c) for c in found]


def disabled_by_environment() -> tuple[bool, frozenset[str]]:
    """`SMOLLM3_DISABLE_PLUGINS`: whether it disables all plugins, and the names of those that it disables."""
    value = os.environ.get("SMOLLM3_DISABLE_PLUGINS", "")
    if value in SWITCHED_OFF:
        return True, frozenset()
    return False, frozenset(n.strip() for n in value.split(",") if n.strip() and n.strip() != "0")


def read_snapshot() -> Snapshot | None:
    """The snapshot of this environment, without the plugins that `SMOLLM3_DISABLE_PLUGINS` names.

    None if there is none for the present state. Never raises; takes about a millisecond.
    """
    folders = package_folders()
    if (file := _file(folders)) is None or (data := read_small(file)) is None:
        return None
    try:
        return _without_disabled(_snapshot(data)) if _is_current(data, folders) else None
    except DAMAGED:
        return None


def write_snapshot(registry: Registry, before: Folders | None = None) -> None:
    """Write what the plugins of a registry offer, unless the file says so already; a cache that is read-only stays so.

    `before` is `package_folders()` from before the plugins were imported: if it has changed since, nothing is written.
    A registry without all installed plugins is not written.
    """
    folders = package_folders()
    if not registry.entry_points or any(p.status == "disabled" for p in registry.plugins):
        return
    if before not in (None, folders) or (file := _file(folders)) is None:
        return
    offered = _offered(registry)
    old = read_small(file)
    with contextlib.suppress(*DAMAGED):
        if old is not None and _without_options(old) == offered and _is_current(old, folders, exactly=True):
            return
    write_small(file, {**_about(folders), **offered, "files": file_states(_hook_files(registry))})


def snapshot_of(registry: Registry) -> Snapshot:
    """What a registry offers, without the plugins of `-p`."""
    return _snapshot(_offered(registry))


def add_options(component: OfferedComponent, options: Sequence[OfferedOption], files: Iterable[str]) -> None:
    """Add the options of a component, which `files` define, to the snapshot of this environment."""
    folders = package_folders()
    if (file := _file(folders)) is None or (data := read_small(file)) is None:
        return
    with contextlib.suppress(*DAMAGED):
        if not _is_current(data, folders):
            return
        for row in data["components"]:
            if (row["kind"], row["name"], row["distribution"]) == (
                component.kind,
                component.name,
                component.distribution,
            ):
                row["options"] = [[o.name, o.type, o.default, o.help, list(o.values)] for o in options]
        known = {name for name, *_ in data["files"]}
        data["files"] += file_states(f for f in dict.fromkeys(files) if f not in known)
        write_small(file, data)


# ------------------------------------------------------------------------------------------------------- the state


def package_folders() -> Folders:
    """The state of the entries of `sys.path`, cheaply.

    The first entry is the directory of the script, or the working directory for `python -m`: it counts only if
    packages are installed in it.
    """
    entries = [_absolute(entry) for entry in sys.path]
    if entries and not sys.flags.safe_path and (entries[0] in entries[1:] or not any(_metadata(entries[0]))):
        del entries[0]
    return [(entry, _modified(entry)) for entry in dict.fromkeys(entries)]


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # the working directory was deleted
        return path


def _modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _metadata(folder: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from (name for name in sorted(os.listdir(folder)) if name.endswith(METADATA))


def _packages(folder: str) -> int:
    """A number for the installed packages of a folder, which other changes in the folder leave as it is."""
    found = [f"{name} {_modified(os.path.join(folder, name))}" for name in _metadata(folder)]
    return zlib.crc32("\n".join(found).encode("utf-8", "surrogateescape"))


def _file(folders: Folders) -> str | None:
    """The file of this environment; None if there is no place for a cache."""
    about = "\n".join([sys.version, sys.prefix, *(path for path, _ in folders)])
    return small_file("plugins", f"{zlib.crc32(about.encode('utf-8', 'surrogateescape')):08x}")


def _about(folders: Folders) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": __version__,
        "python": sys.version,
        "prefix": sys.prefix,
        "folders": [[path, modified, _packages(path)] for path, modified in folders],
    }


def _is_current(data: dict[str, Any], folders: Folders, *, exactly: bool = False) -> bool:
    """Whether a file was written for this environment in this state; a folder whose packages are the same may change.

    With `exactly`, its modification times must be the same too: reading it again is then as cheap as it can be.
    """
    if [data["format"], data["version"], data["python"], data["prefix"]] != [
        FORMAT, __version__, sys.version, sys.prefix,
    ]:  # fmt: skip
        return False
    if [path for path, *_ in data["folders"]] != [path for path, _ in folders]:
        return False
    for (path, modified), (_, known, packages) in zip(folders, data["folders"], strict=True):
        if modified != known and (exactly or packages != _packages(path)):
            return False
    return unchanged(data["files"])


# -------------------------------------------------------------------------------------------------------- the file


def _offered(registry: Registry) -> dict[str, Any]:
    """The plugins and components of a registry, as written; options are added when they are needed."""
    return {
        "plugins": [
            [p.name, p.distribution, p.version, p.status] for p in registry.plugins if p.origin in INSTALLED
        ],
        "components": [
            {
                "kind": c.kind.name,
                "name": c.spec.name,
                "aliases": list(c.spec.aliases),
                "summary": c.spec.summary,
                "distribution": c.distribution,
                "plugin": c.plugin,
                "options_class": c.spec.options,
                "options": None,
            }
            for c in registry.components
            if c.origin in INSTALLED
        ],
    }  # fmt: skip


def _without_options(data: dict[str, Any]) -> dict[str, Any]:
    return {"plugins": data["plugins"], "components": [{**row, "options": None} for row in data["components"]]}


def _hook_files(registry: Registry) -> list[str]:
    return list(dict.fromkeys(p.file for p in registry.plugins if p.file is not None and p.origin in INSTALLED))


def _snapshot(data: dict[str, Any]) -> Snapshot:
    """The content of a file. Raises what a damaged one causes."""
    plugins = (dict(zip(("name", "distribution", "version", "status"), row, strict=True)) for row in data["plugins"])
    components = (
        OfferedComponent(
            aliases=tuple(map(text, row["aliases"])),
            options=None if row["options"] is None else tuple(map(_option, row["options"])),
            **texts(row, "kind", "name", "summary", "distribution", "plugin", "options_class"),
        )
        for row in data["components"]
    )
    return Snapshot(
        tuple(OfferedPlugin(**texts(p, "name", "distribution", "version", "status")) for p in plugins),
        tuple(components),
    )


def _option(row: list[Any]) -> OfferedOption:
    name, kind, default, help, values = row
    return OfferedOption(text(name), text(kind), text(default), text(help), tuple(map(text, values)))


def _without_disabled(snapshot: Snapshot) -> Snapshot:
    everything, names = disabled_by_environment()
    if not everything and not names:
        return snapshot
    off = {(p.name, p.distribution) for p in snapshot.plugins if everything or {p.name, p.distribution} & names}
    off.discard(("builtin", "smollm3-finetune"))
    return replace(
        snapshot,
        plugins=tuple(p for p in snapshot.plugins if (p.name, p.distribution) not in off),
        components=tuple(c for c in snapshot.components if (c.plugin, c.distribution) not in off),
    )
