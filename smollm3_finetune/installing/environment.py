"""The environment of this process: whether packages can be installed into it, and what is installed in it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from smollm3_finetune.components.discovery import CORE_DISTRIBUTION, GROUP
from smollm3_finetune.errors import IncompatibleError, SmolLM3Error

HEADER = re.compile(r"^(Name|Version): *(\S+)", re.MULTILINE)
HEADERS = 2000
"""Characters of a file of metadata that hold name and version: they are its first lines."""


def check_environment() -> None:
    """Raises an error if packages should not or cannot be installed into this environment."""
    if not in_environment():
        marker = Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
        if marker.is_file():
            raise IncompatibleError(
                f"the Python in {sys.prefix} is managed by the operating system, so nothing is installed into it",
                hint="use an environment of its own: python3 -m venv .venv && .venv/bin/pip install smollm3-finetune",
            )
        return
    place = Path(sysconfig.get_path("purelib"))
    if not os.access(place, os.W_OK):
        raise SmolLM3Error(
            f"the environment {sys.prefix} cannot be written",
            hint=f"use an account that may write to it: ls -ld {shlex.quote(str(place))}",
        )


def in_environment() -> bool:
    """Whether this Python runs in a virtual environment."""
    return sys.prefix != sys.base_prefix


@dataclass(frozen=True, kw_only=True)
class InstalledDistribution:
    """A distribution that Python finds in this process."""

    name: str
    version: str
    location: Path
    plugins: tuple[str, ...]
    """The names of its entry points in the group of plugins; empty: it is not a plugin."""
    source: str | None = None
    """The address that it was installed from; None: a package index."""
    editable: bool = False
    requested: bool = False
    """Whether a user asked for it, rather than another distribution."""
    about: importlib.metadata.Distribution = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def is_core(self) -> bool:
        return canonicalize_name(self.name) == CORE_DISTRIBUTION

    @property
    def is_plugin(self) -> bool:
        return bool(self.plugins) and not self.is_core

    @property
    def folder(self) -> Path | None:
        """The directory that it was installed from."""
        parts = urlsplit(self.source or "")
        path = Path(unquote(parts.path))
        return path if parts.scheme == "file" and path.is_dir() else None

    @property
    def is_outside(self) -> bool:
        """Whether it is in a directory that neither pip nor uv changes here, such as one on PYTHONPATH."""
        own = [Path(sys.prefix), *(Path(p) for p in _site_directories())]
        return not any(self.location.resolve().is_relative_to(p.resolve()) for p in own)


def _site_directories() -> Iterator[str]:
    yield sysconfig.get_path("purelib")
    yield sysconfig.get_path("platlib")
    if site.ENABLE_USER_SITE:
        yield site.getusersitepackages()


def installed() -> dict[str, InstalledDistribution]:
    """Every distribution by its canonical name; of several with one name, the one that Python uses."""
    importlib.invalidate_caches()
    found: dict[str, InstalledDistribution] = {}
    for about in importlib.metadata.distributions():
        text = about.read_text("METADATA") or about.read_text("PKG-INFO") or ""
        headers = dict(reversed(HEADER.findall(text[:HEADERS])))  # the first of each
        name = headers.get("Name")
        if name is None or canonicalize_name(name) in found:  # None: the rest of an interrupted installation
            continue
        direct = _direct_url(about)
        found[canonicalize_name(name)] = InstalledDistribution(
            name=name,
            version=headers.get("Version", ""),
            location=Path(str(about.locate_file(""))),
            plugins=tuple(sorted(p.name for p in about.entry_points if p.group == GROUP)),
            source=direct.get("url"),
            editable=bool(direct.get("dir_info", {}).get("editable")),
            requested=about.read_text("REQUESTED") is not None and _installer(about) != "uv",
            about=about,
        )
    return found


def _installer(about: importlib.metadata.Distribution) -> str:
    """The program that installed it. uv writes REQUESTED for every distribution."""
    return (about.read_text("INSTALLER") or "").strip()


def _direct_url(about: importlib.metadata.Distribution) -> dict[str, Any]:
    try:
        value = json.loads(about.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def constraints(found: Iterable[InstalledDistribution], free: Iterable[str]) -> dict[str, str]:
    """The pins that keep every distribution as it is, except `free`: canonical name to `name==version`."""
    leave = {canonicalize_name(n) for n in free}
    pins: dict[str, str] = {}
    for one in found:
        name = canonicalize_name(one.name)
        try:
            Version(one.version)
        except InvalidVersion:  # neither pip nor uv accepts it in a requirement
            continue
        if name not in leave:
            pins[name] = f"{one.name}=={one.version}"
    return pins


def repository() -> Path | None:
    """The clone of the repository that this smollm3 runs from, or was installed from; None: neither."""
    own = Path(__file__).parents[2]
    core = installed_core()
    for folder in (own, core.folder if core is not None else None):
        if folder is not None and (folder / "pyproject.toml").is_file() and (folder / "plugins").is_dir():
            return folder
    return None


def from_package_index(found: Mapping[str, InstalledDistribution]) -> bool:
    """Whether this smollm3-finetune came from a package index, with which its own plugins are published."""
    core = found.get(CORE_DISTRIBUTION)
    return core is not None and core.source is None


def installed_core() -> InstalledDistribution | None:
    """The distribution of this package."""
    return installed().get(CORE_DISTRIBUTION)


def python() -> str:
    """The interpreter, as a command that can be typed."""
    return shlex.quote(sys.executable)
