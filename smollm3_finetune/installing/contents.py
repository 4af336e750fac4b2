"""What a distribution contains, read before it is installed: a wheel, an unpacked one, or a directory of sources."""

from __future__ import annotations

import configparser
import email.parser
import importlib.metadata
import tomllib
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from smollm3_finetune.components.discovery import GROUP
from smollm3_finetune.errors import ConfigError
from smollm3_finetune.installing.environment import InstalledDistribution

LARGEST = 4_000_000
"""Bytes of a file of metadata; larger ones are refused."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is known about a distribution before it is installed; None: not known."""

    name: str | None = None
    version: str | None = None
    plugins: tuple[str, ...] | None = None
    """The names of its entry points in the group of plugins."""
    files: frozenset[str] = frozenset()
    """The files that it installs, relative to site-packages."""
    commands: frozenset[str] = frozenset()
    """The names of the programs that it installs beside python."""


COMMANDS = ("console_scripts", "gui_scripts")


def of_wheel(path: Path) -> Contents:
    """The contents of a wheel. Raises ConfigError if it is not a wheel."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            about = [n for n in names if n.count("/") == 1 and n.endswith(".dist-info/METADATA")]
            if len(about) != 1:
                raise ConfigError(
                    f"{path} is not a wheel: it has no metadata", hint="build one: pip wheel --no-deps DIR"
                )
            folder = about[0].rpartition("/")[0]
            header = email.parser.Parser().parsestr(_read(archive, about[0]), headersonly=True)
            points = f"{folder}/entry_points.txt"
            groups = _groups(_read(archive, points)) if points in names else {}
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError, ValueError, KeyError) as e:
        raise ConfigError(f"{path} is not a wheel: {e}", hint="build one: pip wheel --no-deps DIR") from e
    scripts = f"{folder.removesuffix('.dist-info')}.data/scripts/"
    own = {n.removeprefix(scripts) for n in names if n.startswith(scripts)} - {""}
    return Contents(
        name=header["Name"],
        version=header["Version"],
        plugins=groups.get(GROUP, ()),
        files=frozenset(_files(names, folder)),
        commands=frozenset(own.union(*(groups.get(group, ()) for group in COMMANDS))),
    )


def _read(archive: zipfile.ZipFile, name: str) -> str:
    if archive.getinfo(name).file_size > LARGEST:
        raise ValueError(f"{name} is too large")
    return archive.read(name).decode("utf-8")


def _groups(text: str) -> dict[str, tuple[str, ...]]:
    """The names of the entry points of each group."""
    parser = configparser.ConfigParser(delimiters=("=",), strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text)
    except configparser.Error as e:
        raise ValueError(f"its entry points cannot be read: {' '.join(str(e).split())}") from e
    return {group: tuple(parser[group]) for group in parser.sections()}


def _files(names: Iterable[str], folder: str) -> Iterator[str]:
    """The files that go to site-packages, without the metadata."""
    data = f"{folder.removesuffix('.dist-info')}.data/"
    for name in names:
        if name.startswith(data):
            part, _, name = name.removeprefix(data).partition("/")
            if part not in ("purelib", "platlib"):
                continue
        if name and not name.endswith("/") and not name.partition("/")[0].endswith(".dist-info"):
            yield name


def of_unpacked(folder: Path) -> Iterator[Contents]:
    """The contents of every distribution in a folder that uv filled."""
    for about in importlib.metadata.distributions(path=[str(folder)]):
        files = (str(f) for f in about.files or ())
        yield Contents(
            name=about.metadata["Name"],
            version=about.metadata["Version"],
            plugins=tuple(p.name for p in about.entry_points if p.group == GROUP),
            files=frozenset(_files(files, "")),
            commands=_commands(about),
        )


def _commands(about: importlib.metadata.Distribution) -> frozenset[str]:
    return frozenset(p.name for p in about.entry_points if p.group in COMMANDS)


def staged(folder: Path) -> list[Contents]:
    """The contents of every distribution in a folder that `Installer.stage` filled."""
    return [*(of_wheel(p) for p in sorted(folder.glob("*.whl"))), *of_unpacked(folder)]


def of_directory(path: Path) -> Contents:
    """What `pyproject.toml` says. Raises ConfigError if the directory has none and no `setup.py`."""
    file = path / "pyproject.toml"
    if not file.is_file():
        if (path / "setup.py").is_file():
            return Contents()
        raise ConfigError(f"{path} has no pyproject.toml", hint=_inside(path))
    try:
        value = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ConfigError(f"{file} cannot be read: {e}", hint="correct the file") from e
    project: Mapping[str, Any] = value.get("project", {})
    if not isinstance(project, dict) or not project:
        return Contents()
    points = project.get("entry-points", {}).get(GROUP, {})
    known = points or "entry-points" not in project.get("dynamic", ())
    return Contents(
        name=project.get("name"), version=project.get("version"), plugins=tuple(sorted(points)) if known else None
    )


def _inside(path: Path) -> str:
    """The hint for a directory that is not a distribution: those directly inside it."""
    inside = sorted(p.parent for p in path.glob("*/pyproject.toml") if GROUP in _text(p))
    if inside:
        names = [str(p) if p.is_absolute() else f"./{p}" for p in inside[:3]]
        return f"did you mean {' or '.join(names)}?"
    return "name the directory with pyproject.toml, or create a plugin: smollm3 plugins new"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


SHARED = ("test", "tests", "docs", "examples", "scripts", "benchmarks")
"""Folders that distributions put beside their packages by mistake; nobody imports them."""


def overwritten(contents: Contents, found: Collection[InstalledDistribution]) -> tuple[str, str] | None:
    """A file or a program of another installed distribution that this one would replace, and the other one's name."""
    own = canonicalize_name(contents.name or "")
    for one in found if contents.commands else ():
        if canonicalize_name(one.name) != own and (taken := contents.commands & _commands(one.about)):
            return f"the program {min(taken)}", one.name
    for place in {one.location for one in found}:
        for file in sorted(contents.files):
            if file.partition("/")[0] in SHARED or not (place / file).is_file():
                continue
            owner = next((one for one in found if one.location == place and _has(one, file)), None)
            if owner is not None and canonicalize_name(owner.name) != own:
                return f"{file}, a file", owner.name
    return None


def _has(one: InstalledDistribution, file: str) -> bool:
    return any(str(f) == file for f in one.about.files or ())
