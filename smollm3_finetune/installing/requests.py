"""What a user asks to install: a name, a file, a directory or a URL."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from smollm3_finetune.components.discovery import CORE_DISTRIBUTION
from smollm3_finetune.errors import Collector, ConfigError, PluginError, did_you_mean
from smollm3_finetune.installing.contents import Contents, of_directory, of_wheel
from smollm3_finetune.installing.environment import InstalledDistribution
from smollm3_finetune.installing.failures import without_secrets
from smollm3_finetune.installing.index import IndexedPlugin, PluginIndex
from smollm3_finetune.installing.index_source import LOCAL
from smollm3_finetune.installing.names import (
    NAMES_OF_COMPONENTS,
    may_be_anybodys,
    meant_wheel,
    newest_file,
    of_file_name,
)
from smollm3_finetune.paths import user_path

ARCHIVES = (".tar.gz", ".zip")
SCHEMES = ("https", "http", "file", "git+https", "git+ssh", "git+file")


@dataclass(frozen=True, kw_only=True)
class Request:
    text: str
    """What the user typed."""
    argument: tuple[str, ...]
    """What pip and uv get."""
    name: str | None
    """The canonical name of the distribution; None: only a build would tell."""
    version: str = ""
    """The version that the name of a file states."""
    is_name: bool = False
    """Whether a package index, or a folder of wheels, has to find it."""
    source: str = ""
    """`./my-plugin`, or the URL; empty for a name."""
    editable: bool = False
    contents: Contents | None = None
    """What is known before it is installed."""
    from_index: IndexedPlugin | None = None
    """Its entry in the index of plugins."""

    @property
    def shown(self) -> str:
        """What the user typed, for messages."""
        return without_secrets(self.text)


@dataclass(frozen=True, kw_only=True)
class Parser:
    """Turns what a user typed into requests."""

    index: PluginIndex
    found: Mapping[str, InstalledDistribution]
    """What is installed, by canonical name."""
    repository: Path | None = None
    """The clone that this smollm3 is from."""
    has_source: bool = False
    """Whether the user said where wheels are."""
    named_source: bool = False
    """Whether an option of this command does, not only a variable of pip or uv."""
    has_index: bool = False
    """Whether the user replaced the default package index."""
    folders: tuple[Path, ...] = ()
    """Folders of wheels that the user named."""
    copies: bool = False
    """Whether directories are installed as copies."""

    def parse_all(self, texts: Iterable[str]) -> list[Request]:
        """The requests for all texts; independent problems are raised together."""
        collector = Collector()
        requests = [collector.run(partial(self.parse, text)) for text in dict.fromkeys(texts)]
        collector.finish()
        return [one for one in requests if one is not None]

    def parse(self, text: str) -> Request:
        """The request for NAME, FILE, DIRECTORY or URL. Raises ConfigError or PluginError if it cannot be one."""
        if "://" in text and " @ " not in text:
            return _url(text)
        if text.startswith((".", "/", "~", "\\")) or os.sep in text or text.endswith((".whl", ".py", *ARCHIVES)):
            return path_request(text, self.copies)
        try:
            wanted = Requirement(text)
        except InvalidRequirement as e:
            raise ConfigError(f"{text!r} is not the name of a plugin, a file, a directory or a URL",
                              hint="smollm3 plugins install NAME, or NAME==1.2") from e  # fmt: skip
        if wanted.url is not None:
            return _url(wanted.url, canonicalize_name(wanted.name), text)
        entry = self.index.find(wanted.name)
        return self._listed(text, wanted, entry) if entry is not None else self._unlisted(text, wanted)

    def _unlisted(self, text: str, wanted: Requirement) -> Request:
        """A distribution that is not in the index of plugins: a stranger's, or a typing error."""
        name = canonicalize_name(wanted.name)
        if name == CORE_DISTRIBUTION:
            raise ConfigError("smollm3-finetune is not a plugin", hint="pip install --upgrade smollm3-finetune")
        one = self.found.get(name)
        if one is not None and not one.is_plugin:
            raise not_a_plugin(one.title, text)
        if one is None and not wanted.specifier:
            if not self.named_source and Path(wanted.name, "pyproject.toml").is_file():
                raise ConfigError(f"the plugin index has no {wanted.name!r}, but there is a directory of that name",
                                  hint=f"smollm3 plugins install ./{text}; to install a wheel of that name: "
                                       "--find-links DIR")  # fmt: skip
            if (wheel := meant_wheel(self.folders, wanted.name)) is not None:
                raise ConfigError(f"neither the plugin index nor --find-links has {wanted.name!r}",
                                  hint=f"did you mean {wheel}? {NAMES_OF_COMPONENTS}; to install the distribution "
                                       f"{name}: smollm3 plugins install '{name}>=0'")  # fmt: skip
            near = self.index.near(wanted.name) if len(wanted.name) > 2 and not self.has_source else None
            if near is not None:
                anyway = shlex.quote(f"{wanted.name}>=0")
                raise ConfigError(f"the plugin index has no {wanted.name!r}",
                                  hint=f"did you mean {near!r}? To install the distribution {wanted.name}: "
                                       f"smollm3 plugins install {anyway}")  # fmt: skip
        return Request(text=text, argument=(str(wanted),), name=name, is_name=True)

    def _listed(self, text: str, wanted: Requirement, entry: IndexedPlugin) -> Request:
        """A distribution of the index. One of this repository is taken from the clone, or from where core came from.

        A name that was not published together with this smollm3-finetune may be anybody's on the default package index.
        """
        name = canonicalize_name(entry.name)
        extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
        here = self.found.get(name)
        if here is None or not _accepts(wanted.specifier, here.version):
            folder = self.repository / entry.folder if self.repository is not None and entry.folder else None
            if not self.has_source and folder is not None and (folder / "pyproject.toml").is_file():
                request = _directory(text, folder, copies=True, extras=extras, entry=entry)
                if request.contents is not None and _accepts(wanted.specifier, request.contents.version or ""):
                    return request
            if may_be_anybodys(entry, self.found) and not self.has_index:
                return self._of_folder(text, wanted, entry, extras)
        return Request(text=text, argument=(f"{entry.name}{extras}{wanted.specifier}",), name=name, is_name=True,
                       from_index=entry)  # fmt: skip

    def _of_folder(self, text: str, wanted: Requirement, entry: IndexedPlugin, extras: str) -> Request:
        """The file in a folder that the user named. Raises ConfigError if there is none."""
        file = newest_file(self.folders, entry.name, wanted.specifier)
        if file is None:
            clone = f"; in a clone of the repository: smollm3 plugins install ./{entry.folder}"
            where = f", and {self.folders[0]} has no {entry.name}{wanted.specifier}" if self.folders else ""
            why = "was not published together with this smollm3-finetune" if entry.folder else (
                "is not on the default package index, as the plugin index states")  # fmt: skip
            raise ConfigError(f"{entry.name} {why}{where}", hint="name a source: --find-links DIR"
                              f"{clone if entry.folder else ', or --index-url URL'}")  # fmt: skip
        return replace(path_request(f"{file}{extras}", copies=True), text=text, from_index=entry)


def _accepts(wanted: SpecifierSet, version: str) -> bool:
    try:
        return not wanted or wanted.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _url(url: str, name: str | None = None, text: str | None = None) -> Request:
    parts, shown = urlsplit(url), without_secrets(url)
    if parts.scheme == "http" and parts.hostname not in LOCAL:
        raise ConfigError(f"{shown} is not encrypted: anybody on the network could replace the plugin",
                          hint="use an https address, or download the file and name it")  # fmt: skip
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"{shown} has the scheme {parts.scheme!r}", hint=f"use one of: {', '.join(SCHEMES)}")
    if parts.scheme == "file":
        return path_request(unquote(parts.path), copies=True)
    known, version = of_file_name(unquote(parts.path.rpartition("/")[2]))
    return Request(text=text or url, argument=(text or url,), name=name or known, version=version,
                   source=shown)  # fmt: skip


def path_request(text: str, copies: bool) -> Request:
    """The request for a file or a directory. Raises ConfigError or PluginError if it cannot be one."""
    extras = re.fullmatch(r"(?P<path>.+?)(?P<extras>\[[\w\s,.-]+\])", text)
    bare, wanted = (extras["path"], extras["extras"]) if extras else (text, "")
    path = user_path(bare, "the plugin")
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, beside)
        raise ConfigError(
            f"{bare} does not exist",
            hint=f"did you mean {path.parent / near}?" if near else "name a wheel, or a directory with pyproject.toml",
        )
    if path.is_dir():
        return _directory(text, path, copies=copies, extras=wanted)
    if path.suffix == ".py":
        raise ConfigError(f"{bare} is a plugin file, which needs no installation",
                          hint=f"use it with -p: smollm3 train -p {shlex.quote(bare)}")  # fmt: skip
    if not path.name.endswith((".whl", *ARCHIVES)):
        raise ConfigError(f"{bare} is not a wheel or a source archive", hint="name a .whl, a .tar.gz or a directory")
    contents = of_wheel(path) if path.suffix == ".whl" else None
    if contents is not None and not contents.plugins:
        raise not_a_plugin(f"{contents.name} {contents.version} in {bare}", text)
    known, version = of_file_name(path.name)
    name = contents.name if contents is not None else known
    return Request(text=text, argument=(f"{path.absolute()}{wanted}",), source=bare, contents=contents, version=version,
                   name=canonicalize_name(name) if name else None)  # fmt: skip


def _directory(text: str, path: Path, *, copies: bool, extras: str = "", entry: IndexedPlugin | None = None) -> Request:
    contents = of_directory(path)
    if contents.plugins == ():
        raise not_a_plugin(str(path), text)
    target = f"{path.absolute()}{extras}"
    return Request(
        text=text,
        argument=(target,) if copies else ("-e", target),
        name=canonicalize_name(contents.name) if contents.name else None,
        source=str(path) if entry is not None else text,
        editable=not copies,
        contents=contents,
        from_index=entry,
    )


def not_a_plugin(what: str, text: str) -> PluginError:
    """The error for a distribution without an entry point of a plugin."""
    return PluginError(f"{what} is not a plugin of smollm3: it has no entry point in the group smollm3_finetune",
                       hint=f"to install it anyway: pip install {shlex.quote(text)}; to find plugins: "
                            "smollm3 plugins search")  # fmt: skip
