"""What wheels and project folders offer, for an index of plugins: their metadata, and what their hooks return.

Of a plugin only its hook modules are imported, which need neither torch nor another library. Nothing is installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from smollm3_finetune.components.discovery import CORE_DISTRIBUTION, GROUP, PluginSelection, discover
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.installing.contents import LARGEST, of_directory, of_wheel
from smollm3_finetune.installing.index import FORMAT, IndexedComponent, IndexedPlugin, parsed
from smollm3_finetune.installing.names import of_file_name

BUILD = "build a wheel, and name it: pip wheel --no-deps --wheel-dir dist"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A distribution that was read, but not imported yet."""

    name: str
    summary: str
    points: Mapping[str, str]
    """The entry points of its plugins: name to module."""
    homepage: str
    folders: tuple[Path, ...]
    """Where its modules are."""


def index_of(plugins: Iterable[IndexedPlugin]) -> str:
    """The text of an index with these plugins. Raises ConfigError if no command could read it."""
    plugins = sorted(plugins, key=lambda p: p.name)
    names = [canonicalize_name(p.name) for p in plugins]
    if twice := [p.name for p, name in zip(plugins, names, strict=True) if names.count(name) > 1]:
        raise ConfigError(f"{twice[0]} was named twice", hint="name one wheel or one folder of each plugin")
    entries = [p.as_dict() for p in plugins]
    text = json.dumps({"format": FORMAT, "plugins": entries}, indent=1, ensure_ascii=False) + "\n"
    parsed(text, "of these plugins")
    return text


def offered_by(path: Path, published: bool = False) -> IndexedPlugin:
    """What the plugin in a wheel or in a project folder offers.

    Raises ConfigError if it is not a plugin, and PluginError if its hooks cannot be called.
    """
    if path.is_dir():
        return _indexed(_of_project(path), published)
    contents = of_wheel(path)
    if not contents.plugins:
        raise ConfigError(f"{path} is not a plugin: it has no entry point in the group {GROUP}", hint=_ENTRY_POINT)
    with tempfile.TemporaryDirectory(prefix="smollm3-index-") as work:
        return _indexed(_of_wheel(path, Path(work)), published)


_ENTRY_POINT = "see the entry point in docs/packaging.md"


def sources_in(paths: Sequence[Path]) -> list[Path]:
    """The wheels and project folders that these paths name: each itself, or what a folder has directly inside.

    Of several wheels of one distribution in a folder, the newest. Wheels that are not plugins, such as what plugins
    require, are left out. Raises ConfigError for a path without any.
    """
    found: list[Path] = []
    for path in paths:
        inside = [path]
        if path.is_dir() and not (path / "pyproject.toml").is_file():
            inside = _newest(sorted(path.glob("*.whl"))) or _projects(path)
            if not inside:
                raise ConfigError(f"{path} has neither wheels of plugins nor folders of plugins", hint=f"{BUILD} DIR")
        elif not path.is_dir() and path.suffix != ".whl":
            wrong = "is not a wheel" if path.exists() else "does not exist"
            raise ConfigError(f"{path} {wrong}", hint="name a wheel, a folder of wheels, or a folder of a plugin")
        found += inside
    return list(dict.fromkeys(found))


def _newest(wheels: Iterable[Path]) -> list[Path]:
    newest: dict[str, tuple[Version, Path]] = {}
    for file in wheels:
        name, version = of_file_name(file.name)
        with contextlib.suppress(InvalidVersion):
            one = (Version(version), file)
            if name is not None and of_wheel(file).plugins and (name not in newest or one > newest[name]):
                newest[name] = one
    return [file for name, (_, file) in sorted(newest.items())]


def _projects(folder: Path) -> list[Path]:
    return [file.parent for file in sorted(folder.glob("*/pyproject.toml")) if of_directory(file.parent).plugins]


def _of_wheel(path: Path, work: Path) -> _Found:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.file_size <= LARGEST:  # larger ones are not hook modules
                archive.extract(info, work)
    about = next(iter(importlib.metadata.distributions(path=[str(work)])))
    headers: Any = about.metadata
    links = (str(link).partition(",") for link in headers.get_all("Project-URL", ()))
    named = {label.strip().lower(): address.strip() for label, _, address in links}
    return _Found(
        name=headers["Name"],
        summary=headers.get("Summary") or "",
        points={p.name: p.value for p in about.entry_points if p.group == GROUP},
        homepage=named.get("homepage") or headers.get("Home-page") or "",
        folders=(work, *work.glob("*.data/purelib"), *work.glob("*.data/platlib")),
    )


def _of_project(path: Path) -> _Found:
    contents = of_directory(path)
    if contents.name is None or contents.plugins is None:
        raise ConfigError(f"{path}/pyproject.toml does not state its name and entry points", hint=f"{BUILD} {path}")
    if not contents.plugins:
        raise ConfigError(f"{path} is not a plugin: it has no entry point in the group {GROUP}", hint=_ENTRY_POINT)
    project = tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return _Found(
        name=contents.name,
        summary=str(project.get("description", "")),
        points=project["entry-points"][GROUP],
        homepage=str(project.get("urls", {}).get("Homepage", "")),
        folders=tuple(p.absolute() for p in (path, path / "src") if p.is_dir()),
    )


def _indexed(found: _Found, published: bool) -> IndexedPlugin:
    with _importable(found):
        modules = tuple(dict.fromkeys(found.points.values()))
        registry = discover(PluginSelection(files=modules, entry_points=False))
        for record in registry.plugins:
            own = Path(record.file or ".").resolve()
            if record.name in modules and not any(own.is_relative_to(f.resolve()) for f in found.folders):
                raise ConfigError(f"{found.name} does not contain its hook module {record.name}",
                                  hint=f"correct the entry point or the contents; python imports {own}")  # fmt: skip
        components = sorted((c for c in registry.components if c.distribution != CORE_DISTRIBUTION),
                            key=lambda c: (c.kind.name, c.spec.name))  # fmt: skip
    return IndexedPlugin(
        name=found.name,
        summary=" ".join(found.summary.split()),
        plugins=tuple(sorted(found.points)),
        components=tuple(
            IndexedComponent(kind=c.kind.name, name=c.spec.name, aliases=c.spec.aliases, summary=c.spec.summary)
            for c in components
        ),
        published=published,
        homepage=found.homepage,
    )


@contextlib.contextmanager
def _importable(found: _Found) -> Iterator[None]:
    """Import its modules from its folders, also if another version of them is imported already; write no bytecode."""
    if canonicalize_name(found.name) == CORE_DISTRIBUTION:
        raise ConfigError("smollm3-finetune is not a plugin", hint="name the wheel or the folder of a plugin")
    if odd := [f"{name} = {value}" for name, value in found.points.items() if ":" in value]:
        raise ConfigError(f"{found.name}: the entry point {odd[0]!r} is not a module", hint=_ENTRY_POINT)
    tops = {module.partition(".")[0] for module in found.points.values()}
    before, path, bytecode = _modules(tops), list(sys.path), sys.dont_write_bytecode
    for name in before:
        del sys.modules[name]
    sys.path[:0], sys.dont_write_bytecode = map(str, found.folders), True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, bytecode
        for name in _modules(tops):
            del sys.modules[name]
        sys.modules.update(before)


def _modules(tops: set[str]) -> dict[str, Any]:
    return {n: m for n, m in list(sys.modules.items()) if n.partition(".")[0] in tops}
