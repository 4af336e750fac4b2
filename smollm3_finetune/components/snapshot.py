"""What the installed plugins offer, as a small file in the cache: completion and root help import no plugin.

Every command that calls the hooks of plugins writes it, where it differs. It is valid for one environment in one state:
the entries of `sys.path`, the packages in them, and the files of the plugins. A state is read from `stat` alone; no
metadata of packages is parsed. Plugins of `-p` are not in it. A damaged file, or one of another state, is not used.

    <cache>/plugins/<environment>.json
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from smollm3_finetune.cache.place import cache_folder
from smollm3_finetune.version import __version__

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import Registry

FORMAT = 1
KEPT = 90 * 86400.0
"""Seconds after which a file is deleted, when that of another environment is written."""
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
    if (file := _file(folders)) is None or (data := _read(file)) is None:
        return None
    try:
        return _without_disabled(_snapshot(data)) if _is_current(data, folders) else None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):  # damaged
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
    old = _read(file)
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, RecursionError):  # damaged
        if old is not None and _without_options(old) == offered and _is_current(old, folders, exactly=True):
            return
    _write(file, {**_about(folders), **offered, "files": _stats(_hook_files(registry))})


def add_options(component: OfferedComponent, options: Sequence[OfferedOption], files: Iterable[str]) -> None:
    """Add the options of a component, which `files` define, to the snapshot of this environment."""
    folders = package_folders()
    if (file := _file(folders)) is None or (data := _read(file)) is None:
        return
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, RecursionError):  # damaged
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
        data["files"] += _stats(f for f in dict.fromkeys(files) if f not in known)
        _write(file, data)


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
    cache = cache_folder()
    if cache is None:
        return None
    text = "\n".join([sys.version, sys.prefix, *(path for path, _ in folders)])
    name = f"{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}.json"
    return os.path.join(os.path.expanduser(cache), "plugins", name)


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
    return all(_stat(path) == [path, *known] for path, *known in data["files"])


def _stat(path: str) -> list[Any]:
    try:
        about = os.stat(path)
    except OSError:
        return [path, 0, 0]
    return [path, about.st_mtime_ns, about.st_size]


def _stats(files: Iterable[str]) -> list[list[Any]]:
    return [_stat(file) for file in files]


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
            aliases=tuple(map(_text, row["aliases"])),
            options=None if row["options"] is None else tuple(map(_option, row["options"])),
            **_texts(row, "kind", "name", "summary", "distribution", "plugin", "options_class"),
        )
        for row in data["components"]
    )
    return Snapshot(
        tuple(OfferedPlugin(**_texts(p, "name", "distribution", "version", "status")) for p in plugins),
        tuple(components),
    )


def _option(row: list[Any]) -> OfferedOption:
    name, kind, default, help, values = row
    texts = _texts({"name": name, "type": kind, "default": default, "help": help}, "name", "type", "default", "help")
    return OfferedOption(**texts, values=tuple(map(_text, values)))


def _texts(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: _text(row[name]) for name in names}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


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


def _read(file: str) -> dict[str, Any] | None:
    try:
        with open(file, encoding="utf-8") as stream:
            data = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _write(file: str, data: dict[str, Any]) -> None:
    """Replace the file at once, if the cache can be written: a reader finds the old content or the new one."""
    folder, partial = os.path.dirname(file), f"{file}.{os.getpid()}"
    try:
        os.makedirs(folder, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as stream:
            json.dump(data, stream, separators=(",", ":"), ensure_ascii=False)
        os.replace(partial, file)
        for entry in os.scandir(folder):
            if entry.stat().st_mtime < time.time() - KEPT:
                os.unlink(entry.path)
    except (OSError, ValueError):  # read-only, full, or a text that cannot be encoded
        with contextlib.suppress(OSError):
            os.unlink(partial)
