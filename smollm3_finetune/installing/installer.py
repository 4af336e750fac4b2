"""What the program that installs must do, and where it finds distributions."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from smollm3_finetune.errors import ConfigError
from smollm3_finetune.paths import user_path

INDEXES = {"pip": ("PIP_INDEX_URL",), "uv": ("UV_DEFAULT_INDEX", "UV_INDEX_URL")}
"""The variables with which a user replaces the default package index. Others, for torch for CPUs, only add one."""
FOLDERS = {"pip": "PIP_FIND_LINKS", "uv": "UV_FIND_LINKS"}
"""The variable with folders of wheels."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where distributions come from, besides what the user configured for pip or uv."""

    index_url: str | None = None
    find_links: tuple[str, ...] = ()
    offline: bool = False
    """Only `find_links`, no package index."""

    @classmethod
    def of(cls, index_url: str | None, find_links: Sequence[str], offline: bool) -> Sources:
        """The sources that a user named. Raises ConfigError for a folder that does not exist."""
        links = []
        for text in find_links:
            if "://" not in text:
                path = user_path(text, "--find-links")
                if not path.exists():
                    raise ConfigError(
                        f"--find-links {text} does not exist", hint="--find-links DIR, or --find-links URL"
                    )
                text = str(path.absolute())
            links.append(text)
        if offline and index_url is not None:
            raise ConfigError("--offline uses no package index, but --index-url names one", hint="omit one of them")
        return cls(index_url=index_url, find_links=tuple(links), offline=offline)

    @property
    def flags(self) -> list[str]:
        """The options of pip and uv, which have the same names."""
        index = ["--index-url", self.index_url] if self.index_url is not None else []
        links = [part for link in self.find_links for part in ("--find-links", link)]
        return [*index, *links, *(["--no-index"] if self.offline else [])]

    def names_index(self, installer: Installer) -> bool:
        """Whether the default package index is not used: an option or a variable names another one, or none."""
        return bool(self.index_url or self.offline) or any(os.environ.get(v) for v in INDEXES[installer.name])

    @property
    def named(self) -> bool:
        """Whether an option names a source."""
        return bool(self.index_url or self.find_links or self.offline)

    def names_any(self, installer: Installer) -> bool:
        """Whether the user names a source: an option, or a variable of pip or uv."""
        return bool(self.find_links or os.environ.get(FOLDERS[installer.name])) or self.names_index(installer)

    def folders(self, installer: Installer) -> tuple[Path, ...]:
        """The folders of wheels that the user names."""
        links = [*self.find_links, *re.split(r"[\s,]+", os.environ.get(FOLDERS[installer.name], ""))]
        return tuple(Path(link) for link in links if link and "://" not in link)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A distribution that would be installed."""

    name: str
    version: str
    """Empty if only a build would tell: uv does not say the version of a direct reference."""
    requires: tuple[str, ...] | None = None
    """Its requirements; None: not known before it is installed."""
    url: str = ""


class Installer(Protocol):
    name: str

    def resolve(
        self, wanted: Sequence[Sequence[str]], pins: Iterable[str], sources: Sources, upgrade: Sequence[str] = ()
    ) -> list[Resolved]:
        """What an installation would install; nothing is changed. Raises an error if there is no solution."""

    def stage(self, wanted: Sequence[Sequence[str]], sources: Sources, folder: Path) -> None:
        """Put these distributions, without their requirements, into a folder: as wheels, or unpacked."""

    def install(
        self, wanted: Sequence[Sequence[str]], pins: Iterable[str], sources: Sources, folder: Path, builds: bool
    ) -> None:
        """Install these distributions and their requirements, in the versions of `pins`, with what is staged.

        `builds` says that one is built from sources, which may need tools that are not staged.
        """

    def uninstall(self, names: Sequence[str]) -> None:
        """Uninstall these distributions."""

    def shown(self, *arguments: str) -> str:
        """A command of the installer for a message."""


@contextlib.contextmanager
def constraints_file(pins: Sequence[str]) -> Iterator[str]:
    """The path of a file with constraints, which is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="smollm3-install-") as work:
        file = Path(work, "constraints.txt")
        file.write_text("\n".join(pins) + "\n", encoding="utf-8")
        yield str(file)


def flat(wanted: Sequence[Sequence[str]]) -> list[str]:
    return [part for parts in wanted for part in parts]
